"""Before training: the LLM reads the corpus once, and what can't be learnt is said."""

import warnings
from typing import Callable, List, Optional, Sequence

import torch
from spacy.tokens import Doc
from spacy.training import Example
from tqdm import tqdm

from ...errors import Errors, LLMNERError, Warnings
from ...pipeline.gold import aligned_entities
from .words import WordFeatures

# Docs that are read at once while features are cached.
BATCH = 64
# Words that the scale of the hidden states is taken from.
SAMPLE_WORDS = 20000


def read_corpus(
    read: Callable[[Sequence[Doc]], List[WordFeatures]], docs: Sequence[Doc]
) -> WordFeatures:
    """Let the LLM read a corpus, shortest texts first, so that its features are cached.

    read (Callable[[Sequence[Doc]], List[WordFeatures]]): Reads some Docs.
    docs (Sequence[Doc]): The corpus.
    RETURNS (WordFeatures): Of a sample of words, float32.
    """
    docs = sorted(docs, key=lambda doc: len(doc.text))
    step = max(sum(len(doc) for doc in docs) // SAMPLE_WORDS, 1)
    hidden: List[torch.Tensor] = []
    attention: List[torch.Tensor] = []
    for k in tqdm(range(0, len(docs), BATCH), desc="The LLM reads the corpus", disable=None):
        for features in read(docs[k : k + BATCH]):
            hidden.append(features.hidden[::step].float())
            if features.attention is not None:
                attention.append(features.attention[::step].float())
    return WordFeatures(torch.cat(hidden), torch.cat(attention) if attention else None)


def warn_about_lost(
    name: str, examples: List[Example], max_words: Optional[int], tokenizer: str
) -> None:
    """Warn about entities that no span of the component can be.

    max_words (Optional[int]): Longest mention that can be learnt, if there is a limit.
    tokenizer (str): What the pipeline's tokenizer is called.
    RAISES (LLMNERError): If tokens cut all of them.
    """
    total = lost = cut = 0
    for eg in examples:
        entities, _ = aligned_entities(eg)
        total += len(eg.reference.ents)
        cut += len(eg.reference.ents) - len(entities)
        lost += sum(1 for s, e, _ in entities if max_words and e - s > max_words)
    if lost:
        message = Warnings.W002.format(n=lost, total=total, max_words=max_words, name=name)
        warnings.warn(message, stacklevel=2)
    if cut:
        if cut == total:
            raise LLMNERError(Errors.E041.format(name=name, total=total, tokenizer=tokenizer))
        message = Warnings.W003.format(n=cut, total=total, name=name, tokenizer=tokenizer)
        warnings.warn(message, stacklevel=2)
