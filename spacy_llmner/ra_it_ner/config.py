"""Settings of `ra_it_ner` that make no sense are said when they are set."""

from numbers import Real
from typing import Any

from ..errors import check_values, wrong
from ..pipeline.labels import check_labels
from .example_selection import POLICIES


def check_settings(name: str, **settings: Any) -> None:
    """RAISES (LLMNERError): About the first setting with a value that makes no sense."""
    check_values(
        name,
        settings,
        choices={"use_examples": POLICIES},
        shares=("list_threshold", "threshold", "negative_rate"),
        least={
            "context": 1,
            "window": 1,
            "max_answer_tokens": 1,
            "max_batch_tokens": 1,
            "least_negatives": 0,
        },
        flags=("constrained", "random_k", "overwrite"),
    )
    check_labels(name, settings.get("labels", ()))
    similar = settings["example_threshold"]
    if similar is not None and not (isinstance(similar, Real) and -1.0 <= float(similar) <= 1.0):
        raise wrong("example_threshold", name, similar, "a cosine, from -1 to 1")
