"""Choose labels to hold out from training, and the bias of a matcher with them."""

from typing import Dict, List, NamedTuple, Sequence, Set, Tuple

import numpy as np
import torch

from ..probes.match import MatchProbe
from ..probes.segmentation import IMPOSSIBLE
from ..probes.semi_markov import decode_texts
from .corpora import Corpus
from .pretraining import BATCH, Read, TrainingData, batch_of

# Every n-th label is held out, if it has enough mentions.
EVERY = 6
MIN_MENTIONS = 20
# Texts per corpus on which the bias is chosen.
TEXTS = 200
BIASES = tuple(np.arange(-1.0, 5.1, 0.5).tolist())


class HeldOutScores(NamedTuple):
    """Scores on labels that were left out of training.

    bias (float): The best bias.
    ents_f (float): F-score at this bias, from 0 to 1.
    untyped_f (float): F-score of the spans without their labels.
    labels (List[str]): The labels.
    """

    bias: float
    ents_f: float
    untyped_f: float
    labels: List[str]


def labels_to_hold_out(corpora: Sequence[Corpus]) -> Set[str]:
    """RETURNS (Set[str]): Every sixth label that has enough mentions, in alphabetical order. Corpora with a
    single label keep it.
    """
    counts: Dict[str, int] = {}
    for corpus in corpora:
        found = [label for mentions in corpus.mentions for _, _, label in mentions]
        if len(set(found)) > 1:
            for label in found:
                counts[label] = counts.get(label, 0) + 1
    frequent = sorted(label for label, n in counts.items() if n >= MIN_MENTIONS)
    return set(frequent[EVERY // 2 :: EVERY])


def choose_bias(probe: MatchProbe, data: TrainingData, read: Read) -> HeldOutScores:
    """Find the bias with the best F-score on the labels that were held out.

    probe (MatchProbe): A matcher that was trained without these labels.
    data (TrainingData): The data that it was trained on.
    read (Read): Returns features.
    RETURNS (HeldOutScores): The bias and its scores.
    """
    counts = np.zeros(
        (len(BIASES), 2, 3)
    )  # typed and untyped: correct, found and annotated mentions
    for k, corpus in enumerate(data.corpora):
        chosen = [
            i
            for i, mentions in enumerate(corpus.mentions)
            if any(label in data.held_out for _, _, label in mentions)
        ][:TEXTS]
        if chosen:
            labels = sorted(set().union(*(corpus.asked[i] for i in chosen)))
            states = [data.states[data.labels.names_of(label)[0]][None] for label in labels]
            with_labels = probe.with_labels(states)
            for first in range(0, len(chosen), BATCH):
                indices = chosen[first : first + BATCH]
                counts += _count(with_labels, corpus, indices, read(k, indices), labels)
    f = 2 * counts[..., 0] / np.maximum(counts[..., 1] + counts[..., 2], 1)
    best = int(f[:, 0].argmax())
    return HeldOutScores(BIASES[best], float(f[best, 0]), float(f[best, 1]), sorted(data.held_out))


def _count(
    probe: MatchProbe,
    corpus: Corpus,
    indices: Sequence[int],
    features: List,
    labels: Sequence[str],
) -> np.ndarray:
    with torch.no_grad():
        (scores,) = probe(batch_of(corpus, indices, features))
    counts = np.zeros((len(BIASES), 2, 3))
    for b, bias in enumerate(BIASES):
        shifted = scores.masked_fill(scores <= IMPOSSIBLE / 2, IMPOSSIBLE - bias) + bias
        texts = [shifted[row, : len(corpus.docs[i])].numpy() for row, i in enumerate(indices)]
        for i, (found, _) in zip(indices, decode_texts(texts, 0.5)):
            gold = set(corpus.mentions[i])
            typed = {(start, end, labels[c]) for start, end, c in found}
            counts[b, 0] += _matches(typed, gold)
            counts[b, 1] += _matches({m[:2] for m in typed}, {m[:2] for m in gold})
    return counts


def _matches(found: Set[Tuple], gold: Set[Tuple]) -> Tuple[int, int, int]:
    return len(found & gold), len(found), len(gold)
