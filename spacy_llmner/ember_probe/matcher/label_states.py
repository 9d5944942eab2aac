"""The hidden states of labels' words."""

import re
from typing import List, Mapping, Sequence

import numpy as np
import torch

from ...errors import wrong
from ...llm.hidden_states import FeatureSpec, read_texts
from ...llm.loading import LoadedLLM
from ..probes.match import Words

# The LLM reads a label's words after this text.
BEFORE = "An entity of the type"
# Words for labels that corpora abbreviate.
ABBREVIATIONS = {
    "PER": "person",
    "PERS": "person",
    "ORG": "organization",
    "LOC": "location",
    "GPE": "country, city or state",
    "MISC": "miscellaneous name",
    "FAC": "building",
    "NORP": "nationality or religious or political group",
    "EVE": "event",
    "PROD": "product",
    "WORK": "work of art",
    "CARDINAL": "number",
    "ORDINAL": "ordinal number",
    "LANG": "language",
}


def phrases_of(
    name: str, label: str, words: Mapping[str, Words], descriptions: Mapping[str, str]
) -> List[str]:
    """Get the phrases that the LLM reads for a label.

    name (str): Name of the component, for error messages.
    label (str): The label.
    words (Mapping[str, Words]): See make_ember_match.
    descriptions (Mapping[str, str]): See make_ember_match.
    RETURNS (List[str]): The phrases.
    RAISES (LLMNERError): If the words or the description of the label are not text.
    """
    given = words.get(label)
    if given is None:
        given = ABBREVIATIONS.get(label, _readable(label))
    phrases = [given] if isinstance(given, str) else list(given)
    if not phrases or any(not isinstance(phrase, str) or not phrase.strip() for phrase in phrases):
        raise wrong("model.label_words", name, given, "words, or a list of synonyms")
    description = descriptions.get(label)
    if description is None:
        return [phrase.strip() for phrase in phrases]
    if not isinstance(description, str) or not description.strip():
        raise wrong("model.label_descriptions", name, description, "a description in words")
    return [f"{phrase.strip()}: {description.strip()}" for phrase in phrases]


def _readable(label: str) -> str:
    """RETURNS (str): The label in words: "WORK_OF_ART" and "WorkOfArt" become "work of art"."""
    text = re.sub(r"[_\-/.]+", " ", label).strip() or label
    if " " not in text and not text.isupper():
        text = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", text)
        return text.lower() if " " in text else text
    return text.lower() if text.isupper() and len(text) > 3 else text


def read_phrases(llm: LoadedLLM, layers: Sequence[int], phrases: Sequence[str]) -> torch.Tensor:
    """Read phrases with the LLM.

    llm (LoadedLLM): The LLM.
    layers (Sequence[int]): The layers to read.
    phrases (Sequence[str]): The phrases.
    RETURNS (Tensor): For each phrase, the mean of the hidden states of its tokens. float32, shape (phrases,
        layers * width), on the CPU.
    """
    before = llm.tokenizer.bos + llm.tokenizer.encode(BEFORE).ids
    tokens = [llm.tokenizer.encode(f" {phrase}").ids for phrase in phrases]
    rows = [np.arange(len(before), len(before) + len(ids)) for ids in tokens]
    texts = [before + ids for ids in tokens]
    read = read_texts(llm, texts, FeatureSpec(tuple(layers), 0), rows=rows)
    return torch.stack([features.hidden.float().mean(0).flatten().cpu() for features in read])
