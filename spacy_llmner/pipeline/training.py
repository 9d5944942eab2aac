"""Prepare training data: annotated windows, batches of packed texts, and the loss."""

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
from ..util import is_blank
from .gold import GoldMentions
from .windows import Window

logger = logging.getLogger("spacy_llmner")

# The (first word, one past the last word) of each mention, by label.
MentionsByLabel = Dict[str, List[Tuple[int, int]]]


@dataclass
class TrainingWindow:
    """A window of a training text.

    words (WordTokens): Its words.
    mentions (MentionsByLabel): The mentions in the window.
    known (bool): Whether all tokens are annotated, and no entity begins or ends inside a token.
    cut (bool): Whether the end of the window cuts a mention.
    """

    words: WordTokens
    mentions: MentionsByLabel
    known: bool
    cut: bool


def known_windows(
    doc: Doc, windows: Iterable[Window], gold: GoldMentions
) -> Iterator[Tuple[WordTokens, MentionsByLabel]]:
    """Select the windows of a Doc that can be used for training, with their mentions.

    Windows that are not completely annotated, and windows whose end cuts a mention, are left out, since
    it is not known how many mentions they contain.

    doc (Doc): The Doc.
    windows (Iterable[Window]): Its windows.
    gold (GoldMentions): Its gold annotation.
    YIELDS (Tuple[WordTokens, MentionsByLabel]): The words of a window, and its mentions.
    """
    for part in training_windows(doc, windows, gold):
        if part.known and not part.cut:
            yield part.words, part.mentions


def training_windows(
    doc: Doc, windows: Iterable[Window], gold: GoldMentions
) -> Iterator[TrainingWindow]:
    """Assign the mentions of a Doc to its windows. See `known_windows` for the arguments.

    YIELDS (TrainingWindow): Each window with its mentions.
    """
    mentions, unknown = gold
    for window in windows:
        word = {i: k for k, i in enumerate(window.tokens)}
        known = not any(i in word for start, end in unknown for i in range(start, end))
        part = TrainingWindow(window.words, {}, known, cut=False)
        for start, end, label in mentions:
            positions = [word.get(i, -1) for i in range(start, end) if not is_blank(doc[i].text)]
            if max(positions, default=-1) < 0:
                continue
            if -1 in positions:
                logger.debug("'%s' is cut by the end of a window", doc[start:end])
                part.cut = True
            part.mentions.setdefault(label, []).append((positions[0], positions[-1] + 1))
        yield part


def warn_about_skipped(name: str, parts: Iterable[TrainingWindow]) -> None:
    """Warn about windows of the training data that are not used for training.

    name (str): The component's name.
    parts (Iterable[TrainingWindow]): All windows of the training data.
    RAISES (LLMNERError): If none of them can be used.
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
    """Split packed texts into batches, in order.

    texts (Iterable[Packed]): The packed texts.
    max_tokens (int): Maximum number of tokens in a batch. A longer text is a batch of its own.
    RETURNS (List[List[Packed]]): The batches.
    """
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
    """Compute the cross-entropy loss, summed over all targets with their weights.

    batch (Iterable[Packed]): The packed texts.
    logits (Tensor): The logits, shape (targets, vocabulary).
    RETURNS (Tuple[float, Tensor]): The loss, and its gradient with the shape of `logits`.
    """
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
