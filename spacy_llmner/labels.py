"""Labels that a user asks for."""

from typing import Iterable, List, Optional

from spacy.tokens import Doc

from .errors import wrong

# Labels that are asked for in one Doc or, on a reference, those that its annotators looked for.
if not Doc.has_extension("llmner_labels"):
    Doc.set_extension("llmner_labels", default=None)


def check_labels(name: str, labels: Iterable[str]) -> List[str]:
    """Look at what the component `name` shall find.

    RETURNS (List[str]): The labels without space around them, each once.
    RAISES (LLMNERError): If they are no list of words.
    """
    must = "a list of words, such as ['disease', 'chemical']"
    if isinstance(labels, str) or not isinstance(labels, Iterable):
        raise wrong("labels", name, labels, must)
    labels = list(labels)  # it may be a generator
    if any(not isinstance(label, str) or not label.strip() for label in labels):
        raise wrong("labels", name, labels, must)
    return list(dict.fromkeys(label.strip() for label in labels))


def own_labels(name: str, doc: Doc) -> Optional[List[str]]:
    """RETURNS (Optional[List[str]]): What doc._.llmner_labels says, None if it says nothing.
    RAISES (LLMNERError): If they are no list of words; `name` is who wants to know."""
    own = doc._.llmner_labels
    return None if own is None else check_labels(name, own)
