"""The settings of `padellm_ner`: default values and validation."""

from typing import Any

from thinc.api import Config

from ..errors import check_values
from .postprocess import CONFIDENCE, DEDUPLICATION

default_config = """
[padellm_ner]
spans_key = "llmner"
overwrite = true
count = "calibrated"
count_threshold = 0.15
confidence = "product"
probability = "allowed"
deduplicate = "string"
threshold = 0.0
window = 256
max_mention_tokens = 64
max_batch_tokens = 1024
train_spans = null

[padellm_ner.llm]
@misc = "spacy_llmner.LLM.v1"
name = null

[padellm_ner.model]
@architectures = "spacy_llmner.PaDeLLM.v1"

[padellm_ner.scorer]
@scorers = "spacy_llmner.ner_scorer.v1"
"""

DEFAULT_CONFIG = Config().from_str(default_config)["padellm_ner"]


def check_settings(name: str, **settings: Any) -> None:
    """Validate the settings of a component.

    name (str): The component's name, for error messages.
    settings: The settings by name.
    RAISES (LLMNERError): If a value is not valid. The error names the first such setting.
    """
    choices = {
        "count": ("argmax", "calibrated"),
        "confidence": CONFIDENCE,
        "probability": ("allowed", "raw"),
        "deduplicate": DEDUPLICATION,
    }
    shares = ("count_threshold", "threshold")
    least = {"window": 1, "max_mention_tokens": 1, "max_batch_tokens": 1}
    check_values(name, settings, choices=choices, shares=shares, least=least)
