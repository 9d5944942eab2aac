"""What is learnt from a batch: its windows, batches of packed texts, the loss."""

import logging
import warnings
from dataclasses import dataclass
from typing import Dict, Iterable, Iterator, List, Tuple

import numpy as np
import torch
from spacy.tokens import Doc

from ..errors import Errors, LLMNERError, Warnings
from ..llm.packing import Packed, target_columns
from ..llm.word_tokens import WordTokens
from .gold import GoldMentions
from .windows import Window

logger = logging.getLogger("spacy_llmner")

# (first word, one past the last) of each mention, by label.
MentionsByLabel = Dict[str, List[Tuple[int, int]]]


@dataclass
class TrainingWindow:
    """A window of a training text.

    words (WordTokens): Its words.
    mentions (MentionsByLabel): The mentions in them.
    known (bool): Whether all of it is annotated, and no token's border cuts an entity.
    cut (bool): Whether its end cuts a mention.
    """

    words: WordTokens
    mentions: MentionsByLabel
    known: bool
    cut: bool


def known_windows(
    doc: Doc, windows: Iterable[Window], gold: GoldMentions
) -> Iterator[Tuple[WordTokens, MentionsByLabel]]:
    """Hand the mentions of a Doc out to its windows.

    Windows in which something is unknown, or a mention is cut by their end, are left out, since nothing
    can be counted there.
    YIELDS (Tuple[WordTokens, MentionsByLabel]): The words of a window, and the mentions in them.
    """
    for part in training_windows(doc, windows, gold):
        if part.known and not part.cut:
            yield part.words, part.mentions


def training_windows(
    doc: Doc, windows: Iterable[Window], gold: GoldMentions
) -> Iterator[TrainingWindow]:
    """YIELDS (TrainingWindow): For each window, what is known about it."""
    mentions, unknown = gold
    for window in windows:
        word = {i: k for k, i in enumerate(window.tokens)}
        known = not any(i in word for start, end in unknown for i in range(start, end))
        part = TrainingWindow(window.words, {}, known, cut=False)
        for start, end, label in mentions:
            there = [word.get(i, -1) for i in range(start, end) if not doc[i].is_space]
            if max(there, default=-1) < 0:
                continue
            if -1 in there:
                logger.debug("'%s' is cut by the end of a window", doc[start:end])
                part.cut = True
            part.mentions.setdefault(label, []).append((there[0], there[-1] + 1))
        yield part


def warn_about_skipped(name: str, parts: Iterable[TrainingWindow]) -> None:
    """Say what the component `name` can't learn of its training data.

    RAISES (LLMNERError): If it is all of them.
    """
    parts = list(parts)
    unknown = sum(1 for part in parts if not part.known)
    cut = sum(1 for part in parts if part.known and part.cut)
    if not unknown + cut:
        return
    if unknown + cut == len(parts):
        message = Errors.E040.format(name=name, total=len(parts), unknown=unknown, cut=cut)
        raise LLMNERError(message)
    warnings.warn(
        Warnings.W004.format(
            name=name, n=unknown + cut, total=len(parts), unknown=unknown, cut=cut
        ),
        stacklevel=2,
    )


def batches_by_tokens(texts: Iterable[Packed], max_tokens: int) -> List[List[Packed]]:
    """RETURNS (List[List[Packed]]): Batches with at most so many tokens each, if no text has more."""
    out: List[List[Packed]] = []
    size = 0
    for packed in texts:
        size += len(packed)
        if not out or size > max_tokens:
            out.append([])
            size = len(packed)
        out[-1].append(packed)
    return out


def cross_entropy(batch: Iterable[Packed], logits: torch.Tensor) -> Tuple[float, torch.Tensor]:
    """RETURNS (Tuple[float, Tensor]): Summed over all targets, each as often as the sequences have it,
    and the gradient."""
    batch = list(batch)
    device = logits.device
    targets = torch.from_numpy(target_columns(batch)).to(device)
    weights = torch.from_numpy(np.concatenate([p.weights for p in batch])).to(device)
    log_probs = torch.log_softmax(logits.detach(), dim=-1)
    rows = torch.arange(len(targets), device=device)
    loss = -(log_probs[rows, targets] * weights).sum()
    d_logits = log_probs.exp_()
    d_logits[rows, targets] -= 1.0
    return float(loss), d_logits * weights[:, None]
