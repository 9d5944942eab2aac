"""Labels that a user asks for."""

from typing import Iterable, List

from .errors import wrong


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
