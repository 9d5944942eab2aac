"""Fine-tune a matcher on a few annotated sentences, in seconds."""

import random
from typing import Iterator, List, Sequence

import numpy as np
import torch

from ..features.batch import GoldSpans, collate
from ..features.words import WordFeatures
from ..probes.match import MatchProbe

STEPS = 150
WARM_UP = 10
BATCH = 16
LEARN_RATE = 1e-3
WEIGHT_DECAY = 0.01
CLIP_NORM = 1.0
DROPOUT = 0.3
# The comparison with words stays as it is. So do the embeddings of spellings, since a few sentences contain
# few of them.
FROZEN = ("matcher.", "embed.")


def fine_tune(
    probe: MatchProbe,
    features: Sequence[WordFeatures],
    surfaces: Sequence[np.ndarray],
    gold: Sequence[GoldSpans],
) -> None:
    """Train a matcher further. The same texts always give the same weights.

    probe (MatchProbe): The probe, which is changed.
    features (Sequence[WordFeatures]): The features of each text.
    surfaces (Sequence[ndarray]): The result of `surface` for each text.
    gold (Sequence[GoldSpans]): The annotation of each text.
    """
    trained = [p for name, p in probe.named_parameters() if not name.startswith(FROZEN)]
    optimizer = torch.optim.AdamW(trained, lr=LEARN_RATE, weight_decay=WEIGHT_DECAY)
    device = probe.output.weight.device
    probe.train()
    probe.set_dropout(DROPOUT)
    with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.enable_grad():
        torch.manual_seed(0)
        for step, chosen in enumerate(_batches(len(gold))):
            rate = LEARN_RATE * min(1, (step + 1) / WARM_UP) * (1 - step / STEPS)
            for group in optimizer.param_groups:
                group["lr"] = rate
            batch = collate([features[i] for i in chosen], [surfaces[i] for i in chosen], device)
            scores = probe(batch)
            _, gradients = probe.loss(scores, [gold[i] for i in chosen])
            optimizer.zero_grad()
            torch.autograd.backward(scores, gradients)
            torch.nn.utils.clip_grad_norm_(trained, CLIP_NORM)
            optimizer.step()
    probe.eval()


def _batches(n: int) -> Iterator[List[int]]:
    rng = random.Random(0)
    for _ in range(STEPS):
        yield rng.sample(range(n), min(BATCH, n))
