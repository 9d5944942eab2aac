"""Validate the labels that a user requests."""

from typing import Iterable, List, Optional

from spacy.tokens import Doc

from ..errors import wrong

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
