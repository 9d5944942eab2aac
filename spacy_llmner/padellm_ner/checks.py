"""Settings of `padellm_ner` that make no sense are said when it is built."""

from typing import Any

from ..errors import wrong
from .mentions import CONFIDENCE, DEDUPLICATION

CHOICES = {
    "count": ("argmax", "calibrated"),
    "confidence": CONFIDENCE,
    "probability": ("allowed", "raw"),
    "deduplicate": DEDUPLICATION,
}
SHARES = ("count_threshold", "threshold")
SIZES = ("window", "max_mention_tokens", "max_batch_tokens")


def check_settings(name: str, **settings: Any) -> None:
    """RAISES (LLMNERError): About the first setting with a value that makes no sense."""
    for setting, known in CHOICES.items():
        if settings[setting] not in known:
            raise wrong(setting, name, settings[setting], f"one of {', '.join(known)}")
    for setting in SHARES:
        if not 0.0 <= settings[setting] <= 1.0:
            raise wrong(setting, name, settings[setting], "between 0 and 1")
    for setting in SIZES:
        if settings[setting] < 1:
            raise wrong(setting, name, settings[setting], "positive")
