"""Train a matcher: a probe that compares spans with labels in words."""

import random
from dataclasses import dataclass, field
from typing import Callable, Dict, Iterator, List, Optional, Sequence, Set, Tuple

import torch
import torch.nn.functional as F
from tqdm import tqdm

from ..features.batch import WordBatch, collate, surface
from ..features.words import WordFeatures
from ..probes.base import Dims
from ..probes.match import STORED_MENTIONS, MatchProbe, MatchSettings
from ..probes.segmentation import IMPOSSIBLE
from .corpora import Corpus, Labels, draw_offer
from .wordnet import Match, WordNet

BATCH = 32
LEARN_RATE = 2e-3
WARM_UP = 30
WEIGHT_DECAY = 0.02
CLIP_NORM = 1.0
DROPOUT = 0.3
LABEL_DROPOUT = 0.1
# Standard deviation of the noise that is added to label vectors, so that similar words count as similar.
LABEL_NOISE = 0.15
# Weight of the loss on types from WordNet.
WORDNET_WEIGHT = 0.5
# The nearest type is the target in this share of the cases, any type above it in the others.
NEAREST = 0.5
# Log-odds of a mention before training.
FIRST_BIAS = -3.0
# Texts of a corpus from which mentions are stored for calibration.
CALIBRATION_TEXTS = 60

# Reads the words of some Docs of a corpus: its index, and indices of Docs.
Read = Callable[[int, Sequence[int]], List[WordFeatures]]


@dataclass
class TrainingData:
    """Everything that a matcher is trained on.

    corpora (List[Corpus]): The annotated corpora.
    labels (Labels): Names and parents of their labels.
    held_out (Set[str]): Labels that are left out of training.
    states (Dict[str, Tensor]): Hidden states of all names, shape (layers * width,).
    wordnet (Optional[WordNet]): Types of common words.
    matches (List[List[List[Match]]]): For each corpus and text, the words that WordNet knows.
    """

    corpora: List[Corpus]
    labels: Labels
    held_out: Set[str]
    states: Dict[str, torch.Tensor]
    wordnet: Optional[WordNet] = None
    matches: List[List[List[Match]]] = field(default_factory=list)


def pretrain(
    data: TrainingData,
    settings: MatchSettings,
    dims: Dims,
    read: Read,
    epochs: int,
    seed: int = 0,
) -> MatchProbe:
    """Train a matcher on the CPU or a GPU, wherever the features are.

    data (TrainingData): Corpora, labels and types.
    settings (MatchSettings): Sizes of the probe.
    dims (Dims): Sizes of the LLM.
    read (Read): Returns features.
    epochs (int): Passes over the corpora.
    seed (int): Seed of all randomness.
    RETURNS (MatchProbe): The trained probe, without labels.
    """
    rng = random.Random(seed)
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        probe = settings.build(dims)
        torch.nn.init.constant_(probe.matcher.mention.bias, FIRST_BIAS)
        names = sorted(data.states)
        probe.matcher.fit_reduction(torch.stack([data.states[name] for name in names]))
        reduced = dict(
            zip(names, probe.matcher.reduce(torch.stack([data.states[n] for n in names])))
        )
        sample = [f for k in range(len(data.corpora)) for f in read(k, range(CALIBRATION_TEXTS))]
        probe.fit_scale(WordFeatures(torch.cat([f.hidden.float() for f in sample])))
        _run(probe, data, reduced, read, epochs, rng)
        probe.eval()
        _store_mentions(probe, data, read, rng)
    return probe


def _run(
    probe: MatchProbe,
    data: TrainingData,
    reduced: Dict[str, torch.Tensor],
    read: Read,
    epochs: int,
    rng: random.Random,
) -> None:
    parameters = [p for name, p in probe.named_parameters() if not name.startswith("output.")]
    optimizer = torch.optim.AdamW(parameters, lr=LEARN_RATE, weight_decay=WEIGHT_DECAY)
    probe.train()
    probe.set_dropout(DROPOUT)
    batches = [batch for _ in range(epochs) for batch in _epoch(data.corpora, rng)]
    for step, (k, indices) in enumerate(tqdm(batches, desc="Training", disable=None)):
        rate = LEARN_RATE * min(1, (step + 1) / WARM_UP) * max(0.02, 1 - step / len(batches))
        for group in optimizer.param_groups:
            group["lr"] = rate
        batch = batch_of(data.corpora[k], indices, read(k, indices))
        spans, impossible = probe.spans(batch)
        roots, gradients = _annotated(probe, data, k, indices, spans, impossible, reduced, rng)
        if data.wordnet is not None:
            loss = _typed(probe, data, k, indices, spans, reduced, rng)
            if loss is not None:
                roots.append(WORDNET_WEIGHT * loss)
                gradients.append(torch.ones_like(loss))
        optimizer.zero_grad()
        torch.autograd.backward(roots, gradients)
        torch.nn.utils.clip_grad_norm_(parameters, CLIP_NORM)
        optimizer.step()


def batch_of(corpus: Corpus, indices: Sequence[int], features: Sequence[WordFeatures]) -> WordBatch:
    """RETURNS (WordBatch): Texts of a corpus."""
    surfaces = [surface(corpus.docs[i]) for i in indices]
    return collate(features, surfaces, features[0].hidden.device)


def _epoch(corpora: Sequence[Corpus], rng: random.Random) -> List[Tuple[int, List[int]]]:
    """RETURNS (List[Tuple[int, List[int]]]): Batches of texts that have the same annotators."""
    batches = []
    for k, corpus in enumerate(corpora):
        groups: Dict[Tuple[str, ...], List[int]] = {}
        for i, asked in enumerate(corpus.asked):
            groups.setdefault(tuple(sorted(asked)), []).append(i)
        for order in groups.values():
            rng.shuffle(order)
            batches += [(k, order[i : i + BATCH]) for i in range(0, len(order), BATCH)]
    rng.shuffle(batches)
    return batches


def _annotated(
    probe: MatchProbe,
    data: TrainingData,
    k: int,
    indices: Sequence[int],
    spans: torch.Tensor,
    impossible: torch.Tensor,
    reduced: Dict[str, torch.Tensor],
    rng: random.Random,
) -> Tuple[List[torch.Tensor], List[torch.Tensor]]:
    """RETURNS (Tuple[List[Tensor], List[Tensor]]): Scores of the batch, and the gradient of the loss on the
    annotated entities.
    """
    corpus = data.corpora[k]
    asked = sorted(corpus.asked[indices[0]] - data.held_out)
    if not asked:
        return [], []
    offer = draw_offer(asked, data.labels, rng)
    labels = _noisy_labels(probe, torch.stack([reduced[name] for name in offer.names]))
    scores = probe.matcher.mention(spans) + probe.matcher(spans, labels)
    scores = scores.masked_fill(impossible[..., None], IMPOSSIBLE)
    gold = []
    for i in indices:
        mentions = [(s, e, offer.index[c]) for s, e, c in corpus.mentions[i] if c in offer.index]
        gold.append((mentions, corpus.unknown[i]))
    _, (gradient,) = probe.loss((scores,), gold)
    return [scores], [gradient]


def _typed(
    probe: MatchProbe,
    data: TrainingData,
    k: int,
    indices: Sequence[int],
    spans: torch.Tensor,
    reduced: Dict[str, torch.Tensor],
    rng: random.Random,
) -> Optional[torch.Tensor]:
    """RETURNS (Optional[Tensor]): The cross-entropy of types from WordNet, among those of the batch. Other
    types that are also correct don't count as wrong. None if there are none.
    """
    assert data.wordnet is not None
    found = [(row, match) for row, i in enumerate(indices) for match in data.matches[k][i]]
    if not found:
        return None
    targets = [
        match.types[0] if rng.random() < NEAREST else rng.choice(match.types) for _, match in found
    ]
    types = sorted(set(targets))
    column = {synset: c for c, synset in enumerate(types)}
    names = []
    for synset in types:
        known = data.wordnet.names(synset)
        names.append(known[0] if rng.random() < 0.6 else rng.choice(known))
    labels = _noisy_labels(probe, torch.stack([reduced[name] for name in names]))
    cells = [(row, m.end - 1, m.end - m.start - 1) for row, m in found]
    rows, ends, sizes = (list(part) for part in zip(*cells))
    logits = probe.matcher(spans[rows, ends, sizes], labels)
    also = torch.zeros(logits.shape, dtype=torch.bool, device=logits.device)
    for r, ((_, match), target) in enumerate(zip(found, targets)):
        also[r, [column[t] for t in match.types if t in column and t != target]] = True
    wanted = torch.tensor([column[target] for target in targets], device=logits.device)
    return F.cross_entropy(logits.masked_fill(also, -1e4), wanted)


def _noisy_labels(probe: MatchProbe, reduced: torch.Tensor) -> torch.Tensor:
    noisy = reduced + LABEL_NOISE * torch.randn_like(reduced)
    mapped = F.dropout(probe.matcher.label(noisy), LABEL_DROPOUT)
    return F.normalize(mapped, dim=-1) * mapped.shape[-1] ** 0.5


def mention_vectors(
    probe: MatchProbe, corpus: Corpus, indices: Sequence[int], features: Sequence[WordFeatures]
) -> Iterator[torch.Tensor]:
    """YIELDS (Tensor): The span vector of each annotated entity, shape (head,)."""
    with torch.no_grad():
        spans, _ = probe.spans(batch_of(corpus, indices, features))
    for row, i in enumerate(indices):
        for start, end, _ in corpus.mentions[i]:
            if end - start <= probe.settings.max_words:
                yield spans[row, end - 1, end - start - 1]


def _store_mentions(probe: MatchProbe, data: TrainingData, read: Read, rng: random.Random) -> None:
    vectors: List[torch.Tensor] = []
    for k, corpus in enumerate(data.corpora):
        n = min(CALIBRATION_TEXTS, len(corpus.docs))
        for first in range(0, n, BATCH):
            indices = range(first, min(first + BATCH, n))
            vectors += mention_vectors(probe, corpus, indices, read(k, indices))
    rng.shuffle(vectors)
    # A small corpus has fewer mentions, so some are stored several times.
    chosen = [vectors[i % len(vectors)] for i in range(STORED_MENTIONS)]
    probe.matcher.mentions.copy_(torch.stack(chosen))
