"""The settings of `ember_probe`: defaults and validation."""

from typing import Any

from thinc.api import Config

from ..errors import check_values

# EmberProbe.threshold is clipped to this distance from 0 and 1.
MIN_THRESHOLD = 0.001

default_config = """
[ember_probe]
labels = []
mode = "labels"
ask_llm = false
spans_key = "llmner"
overwrite = true
threshold = 0.5
max_batch_tokens = 2048
feature_cache = "auto"

[ember_probe.llm]
@misc = "spacy_llmner.LLM.v1"
name = null

[ember_probe.model]
@architectures = "spacy_llmner.EmberProbe.v1"

[ember_probe.scorer]
@scorers = "spacy_llmner.ner_scorer.v1"
"""

MODES = ("labels", "mentions")
# The label of mentions if no labels are given.
ANY_LABEL = "ENTITY"
DEFAULT_CONFIG = Config().from_str(default_config)["ember_probe"]


def check_settings(name: str, **settings: Any) -> None:
    """Validate settings of the component `name`.

    RAISES (LLMNERError): For the first invalid value.
    """
    check_values(name, settings, shares=("threshold",), least={"max_batch_tokens": 1})
