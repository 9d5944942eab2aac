"""Labels that a user asks for."""

from typing import Iterable, List, Optional

from spacy.tokens import Doc

from ..errors import wrong

# Labels that are asked for in one Doc or, on a reference, those that its annotators looked for.
if not Doc.has_extension("llmner_labels"):
    Doc.set_extension("llmner_labels", default=None)


def check_labels(name: str, labels: Iterable[str]) -> List[str]:
    """Look at what the component `name` shall find.

    RETURNS (List[str]): The labels without space around them, each once.
    RAISES (LLMNERError): If they are no list of words, or one can't be encoded, such as one with half of a
        surrogate pair.
    """
    must = "a list of words, such as ['disease', 'chemical']"
    if isinstance(labels, str) or not isinstance(labels, Iterable):
        raise wrong("labels", name, labels, must)
    labels = list(labels)  # it may be a generator
    if any(not isinstance(label, str) or not label.strip() for label in labels):
        raise wrong("labels", name, labels, must)
    if not encodable(labels):
        raise wrong("labels", name, labels, "words that UTF-8 can encode")
    return list(dict.fromkeys(label.strip() for label in labels))


def encodable(words: Iterable[str]) -> bool:
    return not any("\ud800" <= c <= "\udfff" for word in words for c in word)


def doc_labels(name: str, doc: Doc) -> Optional[List[str]]:
    """RETURNS (Optional[List[str]]): What doc._.llmner_labels says, None if it says nothing.
    RAISES (LLMNERError): If they are no list of words; `name` is who wants to know."""
    own = doc._.llmner_labels
    return None if own is None else check_labels(name, own)
