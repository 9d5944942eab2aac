"""Settings of `padellm_ner` that make no sense are said when it is built."""

from typing import Any

from ..errors import check_values
from .postprocess import CONFIDENCE, DEDUPLICATION


def check_settings(name: str, **settings: Any) -> None:
    """RAISES (LLMNERError): About the first setting with a value that makes no sense."""
    choices = {
        "count": ("argmax", "calibrated"),
        "confidence": CONFIDENCE,
        "probability": ("allowed", "raw"),
        "deduplicate": DEDUPLICATION,
    }
    shares = ("count_threshold", "threshold")
    least = {"window": 1, "max_mention_tokens": 1, "max_batch_tokens": 1}
    check_values(name, settings, choices=choices, shares=shares, least=least)
