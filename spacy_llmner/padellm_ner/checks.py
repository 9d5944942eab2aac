"""Settings of `padellm_ner` that make no sense are said when it is built."""

from typing import Any

from ..errors import check_values
from .mentions import CONFIDENCE, DEDUPLICATION


def check_settings(name: str, **settings: Any) -> None:
    """RAISES (LLMNERError): About the first setting with a value that makes no sense."""
    choices = {
        "count": ("argmax", "calibrated"),
        "confidence": CONFIDENCE,
        "probability": ("allowed", "raw"),
        "deduplicate": DEDUPLICATION,
    }
    shares = ("count_threshold", "threshold")
    sizes = ("window", "max_mention_tokens", "max_batch_tokens")
    check_values(name, settings, choices=choices, shares=shares, sizes=sizes)
