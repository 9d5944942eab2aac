"""Steps before training: read the corpus with the LLM, and warn about entities that can't be learned."""

import warnings
from typing import Callable, List, Optional, Sequence

import torch
from spacy.tokens import Doc
from spacy.training import Example
from tqdm import tqdm

from ...errors import Errors, LLMNERError, Warnings
from ...pipeline.gold import gold_mentions, trim_mentions
from .words import WordFeatures

# Docs per call of `read` while features are cached.
BATCH = 64
# Approximate size of the sample from which mean and standard deviation of the features are estimated.
SAMPLE_WORDS = 20000


def read_corpus(
    read: Callable[[Sequence[Doc]], List[WordFeatures]], docs: Sequence[Doc]
) -> WordFeatures:
    """Read a corpus with the LLM, shortest texts first, so that its features are cached.

    read (Callable[[Sequence[Doc]], List[WordFeatures]]): Returns the features of some Docs.
    docs (Sequence[Doc]): The corpus.
    RETURNS (WordFeatures): Features of a sample of words, float32.
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


def warn_about_unlearnable(
    name: str, examples: List[Example], max_words: Optional[int], tokenizer: str
) -> None:
    """Warn about entities that the component can't predict as spans.

    name (str): Name of the component.
    examples (List[Example]): The training examples.
    max_words (Optional[int]): Longest mention, in words, that can be learned; None for no limit.
    tokenizer (str): Class name of the pipeline's tokenizer.
    RAISES (LLMNERError): If none of the entities can be aligned with the tokens.
    """
    total = too_long = unaligned = 0
    for eg in examples:
        entities, _ = gold_mentions(eg)
        n = len(trim_mentions(eg.reference).ents)
        total += n
        unaligned += n - len(entities)
        too_long += sum(1 for s, e, _ in entities if max_words and e - s > max_words)
    if too_long:
        message = Warnings.W002.format(n=too_long, total=total, max_words=max_words, name=name)
        warnings.warn(message, stacklevel=2)
    if unaligned:
        if unaligned == total:
            raise LLMNERError(Errors.E041.format(name=name, total=total, tokenizer=tokenizer))
        message = Warnings.W003.format(n=unaligned, total=total, name=name, tokenizer=tokenizer)
        warnings.warn(message, stacklevel=2)
