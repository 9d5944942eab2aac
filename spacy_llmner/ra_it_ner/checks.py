"""Settings and labels of `ra_it_ner` that make no sense are said when they are set."""

from typing import Any, List, Sequence

from ..errors import wrong
from .context import POLICIES

SHARES = ("list_threshold", "threshold", "negative_rate")
SIZES = ("context", "window", "max_answer_tokens", "max_batch_tokens")


def check_settings(name: str, **settings: Any) -> None:
    """RAISES (LLMNERError): About the first setting with a value that makes no sense."""
    if settings["use_examples"] not in POLICIES:
        raise wrong("use_examples", name, settings["use_examples"], f"one of {', '.join(POLICIES)}")
    for setting in SHARES:
        if not 0.0 <= settings[setting] <= 1.0:
            raise wrong(setting, name, settings[setting], "between 0 and 1")
    for setting in SIZES:
        if settings[setting] < 1:
            raise wrong(setting, name, settings[setting], "positive")
    if settings["least_negatives"] < 0:
        raise wrong("least_negatives", name, settings["least_negatives"], "0 or more")


def check_labels(name: str, labels: Sequence[str]) -> List[str]:
    """RETURNS (List[str]): The labels, each once.
    RAISES (LLMNERError): If they are no list of words."""
    must = "a list of words, such as ['disease', 'chemical']"
    if isinstance(labels, str) or any(not isinstance(label, str) for label in labels):
        raise wrong("labels", name, labels, must)
    if any(not label.strip() for label in labels):
        raise wrong("labels", name, list(labels), must)
    return list(dict.fromkeys(labels))
