"""Saved pipelines: are they there, and which LLMs do they use?"""

from pathlib import Path
from typing import Any, Iterable, List

from spacy.util import is_package

from ..errors import Errors, LLMNERError
from ..llm.registry import LLM


def check_pipeline(model: str) -> None:
    """Check that a pipeline exists.

    model (str): A folder, or the name of an installed package.
    RAISES (LLMNERError): If there is no such pipeline.
    """
    path = Path(model)
    if is_package(model):
        return
    if not path.exists():
        raise LLMNERError(Errors.E100.format(name=model))
    if not (path / "config.cfg").exists():
        best = path / "model-best"
        hint = f" Did you mean '{best}'?" if best.exists() else ""
        raise LLMNERError(Errors.E101.format(path=model, hint=hint))


def llms_of(pipes: Iterable[Any]) -> List[LLM]:
    """RETURNS (List[LLM]): The handles of the components' LLMs that have a name, in order."""
    parts = (part for pipe in pipes for part in (pipe, *getattr(pipe, "voters", {}).values()))
    llms = (getattr(part, "llm", None) for part in parts)
    return [llm for llm in llms if isinstance(llm, LLM) and llm.spec.name]
