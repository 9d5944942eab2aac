"""What `spacy llmner compare` compares: whole pipelines, or this package's components in them."""

from collections import Counter
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import chain, count
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

from spacy.language import Language
from spacy.tokens import Doc
from spacy.util import is_package

from ..errors import Errors, LLMNERError
from ..pipeline.base import LLMNERPipe
from ..pipeline.combine import Combine
from ..pipeline.scorers import chars, span_offsets
from ._util import folder_name, llm_names, load_pipeline

COMBINED = "combined"


@dataclass
class Way:
    """A way to find entities: a pipeline, or a component of this package in it.

    name (List[str]): What the user knows it by: the folder or package, the components, and the LLMs if any.
    source (str): Where the pipeline is from.
    nlp (Language): The pipeline.
    pipes (List[str]): The components that are run.
    llms (List[str]): The names of their LLMs.
    component (Optional[LLMNERPipe]): The component that is compared, of which all spans are known; None
        for the whole pipeline, of which doc.ents are known.
    """

    name: List[str]
    source: str
    nlp: Language
    pipes: List[str]
    llms: List[str]
    component: Optional[LLMNERPipe] = None

    @property
    def facts(self) -> Dict[str, Any]:
        """RETURNS (Dict[str, Any]): What the way is, as values that JSON supports."""
        return {
            "name": self.name,
            "source": self.source,
            "components": self.pipes,
            "llms": self.llms,
        }

    def found(self, doc: Doc) -> Tuple[List[List[Any]], List[float]]:
        """RETURNS (Tuple[List[List[Any]], List[float]]): The start, end and label of what was found in a
        Doc, and the scores. 1.0 for entities without scores.
        """
        if self.component is None:
            return [chars(ent) for ent in doc.ents], [1.0] * len(doc.ents)
        key = self.component.cfg["spans_key"]
        if key not in doc.spans:  # the Doc failed
            return [], []
        return span_offsets(doc.spans[key]), list(doc.spans[key].attrs["scores"])


def load_ways(models: List[str], gpu_id: int = -1) -> Dict[str, Way]:
    """Load pipelines. A pipeline with components of this package is compared component by component, each
    with the other components that it has, such as a tagger. Its `llmner_combine` is left out. Another
    pipeline is compared as a whole.

    models (List[str]): Folders or names of packages.
    gpu_id (int): GPU of spaCy's own arrays, or -1 for the CPU.
    RETURNS (Dict[str, Way]): The ways, by the name of the component or of the whole pipeline, with a number
        if it is not unique. LLMs that several ways use are loaded once.
    RAISES (LLMNERError): If a pipeline can't be loaded or has no components.
    """
    ways: Dict[str, Way] = {}
    for model in models:
        nlp = load_pipeline(model, gpu_id)
        if not nlp.pipe_names:
            raise LLMNERError(Errors.E103.format(name=model))
        for key, way in _ways_of(model, nlp).items():
            free = chain([key], (f"{key}_{n}" for n in count(len(ways))))
            ways[next(name for name in free if name not in (*ways, COMBINED))] = way
    _number([way.name for way in ways.values()])
    return ways


def _ways_of(model: str, nlp: Language) -> Dict[str, Way]:
    folder, source = _origin(model)
    mine = {name: pipe for name, pipe in nlp.pipeline if isinstance(pipe, LLMNERPipe)}
    if not mine:
        llms = llm_names(pipe for _, pipe in nlp.pipeline)
        name = [folder, ", ".join(nlp.pipe_names), *([", ".join(llms)] if llms else [])]
        return {folder: Way(name, source, nlp, list(nlp.pipe_names), llms)}
    ways = {}
    for component, pipe in mine.items():
        pipes = [
            name
            for name, other in nlp.pipeline
            if name == component or not isinstance(other, (LLMNERPipe, Combine))
        ]
        llms = llm_names([pipe])
        name = [folder, component, ", ".join(llms)]
        ways[component] = Way(name, source, nlp, pipes, llms, pipe)
    return ways


def _origin(model: str) -> Tuple[str, str]:
    """RETURNS (Tuple[str, str]): The short name of a pipeline, and where it is from."""
    if not is_package(model):
        return folder_name(model), f"folder {Path(model)}"
    try:
        return model, f"package {model} {version(model)}"
    except PackageNotFoundError:
        return model, f"package {model}"


def _number(names: List[List[str]]) -> None:
    """Add a number to the folder of names that are equal."""
    totals = Counter(map(tuple, names))
    seen: Counter = Counter()
    for name in names:
        whole = tuple(name)
        seen[whole] += 1
        if totals[whole] > 1:
            name[0] += f" ({seen[whole]})"
