"""Fine-tune a matcher on a few annotated sentences, in seconds."""

import random
from typing import Iterator, List, Sequence

import numpy as np
import torch

from ..features.batch import GoldSpans, collate
from ..features.words import WordFeatures
from ..probes.match import MatchProbe

# Few sentences get fewer and smaller steps, so that the probe doesn't forget what the words say.
STEPS_PER_TEXT, MIN_STEPS, MAX_STEPS = 1.5, 30, 300
LEARN_RATE, MIN_LEARN_RATE, FULL_RATE_TEXTS = 1e-3, 5e-4, 100
WARM_UP = 10
BATCH = 16
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
    steps = min(max(int(STEPS_PER_TEXT * len(gold)), MIN_STEPS), MAX_STEPS)
    highest = max(LEARN_RATE * min(1, len(gold) / FULL_RATE_TEXTS), MIN_LEARN_RATE)
    optimizer = torch.optim.AdamW(trained, lr=highest, weight_decay=WEIGHT_DECAY)
    device = probe.output.weight.device
    probe.train()
    probe.set_dropout(DROPOUT)
    with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.enable_grad():
        torch.manual_seed(0)
        for step, chosen in enumerate(_batches(len(gold), steps)):
            rate = highest * min(1, (step + 1) / WARM_UP) * (1 - step / steps)
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


def _batches(n: int, steps: int) -> Iterator[List[int]]:
    """YIELDS (List[int]): For each step, the indices of some of n texts."""
    rng = random.Random(0)
    for _ in range(steps):
        yield rng.sample(range(n), min(BATCH, n))
