"""Named entity recognition for spaCy with one local large language model.

Add the components to a pipeline as usual:
`nlp.add_pipe("ember_probe", config={"llm": "smollm2-135m-instruct"})`, and likewise `padellm_ner`,
`ra_it_ner`, `el4ner_ensemble` and `llmner_combine`. This module exports the other classes and functions
that programs need.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, List

from .errors import DocumentError, LLMMismatchError, LLMNERError, LLMNotFoundError

if TYPE_CHECKING:
    from .ember_probe.generated_data import generate_examples
    from .ember_probe.streaming.events import EntityEvent, TextPiece
    from .ember_probe.streaming.redaction import Redactor, Restorer
    from .llm.registry import LLM, make_llm
    from .models.catalogue import download
    from .retrieval.index import ExampleIndex

__version__ = version("spacy-llmner")

__all__ = [
    "DocumentError",
    "EntityEvent",
    "ExampleIndex",
    "LLM",
    "LLMMismatchError",
    "LLMNERError",
    "LLMNotFoundError",
    "Redactor",
    "Restorer",
    "TextPiece",
    "__version__",
    "download",
    "generate_examples",
    "make_llm",
]

# Imported on first use, because importing torch takes seconds.
_MODULES = {
    "EntityEvent": "ember_probe.streaming.events",
    "ExampleIndex": "retrieval.index",
    "LLM": "llm.registry",
    "Redactor": "ember_probe.streaming.redaction",
    "Restorer": "ember_probe.streaming.redaction",
    "TextPiece": "ember_probe.streaming.events",
    "download": "models.catalogue",
    "generate_examples": "ember_probe.generated_data",
    "make_llm": "llm.registry",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> List[str]:
    return __all__
