"""The settings of `ra_it_ner`: default values and validation."""

from numbers import Real
from typing import Any

from thinc.api import Config

from ..errors import check_values, wrong
from ..pipeline.labels import check_labels
from .example_selection import POLICIES

default_config = """
[ra_it_ner]
labels = []
spans_key = "llmner"
overwrite = true
use_examples = "auto"
example_threshold = null
list_threshold = 0.5
constrained = true
threshold = 0.0
context = 2048
window = 256
max_answer_tokens = 256
max_batch_tokens = 2048
random_k = true
negative_rate = 0.5
least_negatives = 1
train_spans = null

[ra_it_ner.llm]
@misc = "spacy_llmner.LLM.v1"
name = null

[ra_it_ner.encoder]
@misc = "spacy_llmner.SentenceEncoder.v1"

[ra_it_ner.retrieval]
@misc = "spacy_llmner.Retrieval.v1"

[ra_it_ner.model]
@architectures = "spacy_llmner.RAIT.v1"

[ra_it_ner.scorer]
@scorers = "spacy_llmner.ner_scorer.v1"
"""

DEFAULT_CONFIG = Config().from_str(default_config)["ra_it_ner"]


def check_settings(name: str, **settings: Any) -> None:
    """Validate the settings of a component.

    name (str): The component's name, for error messages.
    settings: The settings by name.
    RAISES (LLMNERError): If a value is not valid. The error names the first such setting.
    """
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
