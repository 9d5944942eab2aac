"""Validate the labels that a user requests."""

import warnings
from difflib import get_close_matches
from typing import Iterable, List, Mapping, Optional, Sequence

from spacy.tokens import Doc

from ..errors import Warnings, wrong

# The labels requested for one Doc or, on a reference, the labels that its annotators looked for.
if not Doc.has_extension("llmner_labels"):
    Doc.set_extension("llmner_labels", default=None)


def check_labels(name: str, labels: Iterable[str]) -> List[str]:
    """Validate the labels of a component.

    name (str): The component's name, for error messages.
    labels (Iterable[str]): The labels.
    RETURNS (List[str]): The labels without surrounding white space and without duplicates.
    RAISES (LLMNERError): If they are not a list of words, or if one of them contains half of a
        surrogate pair, which UTF-8 can't encode.
    """
    must = "a list of words, such as ['disease', 'chemical']"
    if isinstance(labels, str) or not isinstance(labels, Iterable):
        raise wrong("labels", name, labels, must)
    labels = list(labels)  # because it can be a generator
    if any(not isinstance(label, str) or not label.strip() for label in labels):
        raise wrong("labels", name, labels, must)
    if not encodable(labels):
        raise wrong("labels", name, labels, "words that UTF-8 can encode")
    return list(dict.fromkeys(label.strip() for label in labels))


def warn_about_unused(
    name: str, setting: str, entries: Mapping[str, object], labels: Sequence[str]
) -> None:
    """Warn about entries for labels that the component doesn't have.

    name (str): The component's name.
    setting (str): The setting with the entries.
    entries (Mapping[str, object]): The words or descriptions, by label.
    labels (Sequence[str]): The labels that are asked for.
    """
    unused = [entry for entry in entries if entry not in labels]
    if unused:
        message = Warnings.W021.format(
            name=name, setting=setting, unused=", ".join(unused), labels=", ".join(labels)
        )
        warnings.warn(message, stacklevel=3)


def warn_about_misspelled(name: str, entries: Mapping[str, str], labels: Sequence[str]) -> None:
    """Warn about words for labels that the component doesn't have, if they are probably meant for one that
    has no words. Words for further labels are no mistake: `spacy llmner init config` writes words for all
    common labels.

    name (str): The component's name.
    entries (Mapping[str, str]): The words, by label.
    labels (Sequence[str]): The labels that are asked for.
    """
    without = {label.casefold(): label for label in labels if label not in entries}
    meant = {}
    for entry, words in entries.items():
        similar = get_close_matches(entry.casefold(), without, n=1, cutoff=0.8)
        # "person" for PERSON changes nothing if the label is "person".
        if entry not in labels and similar and without[similar[0]] != words:
            meant[entry] = words
    warn_about_unused(name, "label_words", meant, labels)


def encodable(words: Iterable[str]) -> bool:
    """RETURNS (bool): Whether UTF-8 can encode all words."""
    return not any("\ud800" <= c <= "\udfff" for word in words for c in word)


def doc_labels(name: str, doc: Doc) -> Optional[List[str]]:
    """Get the labels in `doc._.llmner_labels`.

    name (str): The name of the component that needs them, for error messages.
    doc (Doc): The Doc.
    RETURNS (Optional[List[str]]): The labels; None if they are not set.
    RAISES (LLMNERError): If they are not a list of words.
    """
    own = doc._.llmner_labels
    return None if own is None else check_labels(name, own)
