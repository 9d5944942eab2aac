"""What the commands share: loading pipelines and data, colours, errors."""

from contextlib import contextmanager
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, List, Optional, Set

import typer
from spacy.cli._util import setup_gpu
from spacy.displacy.render import EntityRenderer
from spacy.language import Language
from spacy.training import Corpus, Example
from spacy.training.corpus import FILE_TYPE, walk_corpus
from spacy.util import is_package, load_model

from ..errors import LLMNERError

# For labels that displaCy has no colour for.
PALETTE = ("#f0d0ff", "#bfe1d9", "#ffc4d6", "#c5d8f7", "#e6dcb1", "#cfe8a9", "#ffd8b5", "#d4d4e8")


@contextmanager
def exit_on_error() -> Iterator[None]:
    """Print an expected error without a traceback, and exit with code 1."""
    try:
        yield
    except (LLMNERError, OSError) as e:
        typer.echo(f"✘ {e}", err=True)
        raise typer.Exit(1) from None


def check_data_path(path: Path) -> None:
    """Say what is wrong with the path of annotated Docs, if anything is."""
    convert = "Make it with `python -m spacy convert`, or scripts/convert.py of the repository."
    if not path.exists():
        raise LLMNERError(f"Can't find the data '{path}'. {convert}")
    if path.is_file() and path.suffix != FILE_TYPE:
        raise LLMNERError(f"The data '{path}' is no {FILE_TYPE} file. {convert}")
    if path.is_dir() and not any(path.rglob(f"*{FILE_TYPE}")):
        raise LLMNERError(f"The folder '{path}' holds no {FILE_TYPE} file. {convert}")


def load_pipeline(
    model: str, gpu_id: int = -1, config: Optional[Dict[str, Any]] = None
) -> Language:
    """Load a pipeline, or say what is wrong with the name.

    config (Optional[Dict[str, Any]]): Settings to override, e.g. {"paths.llm": NAME}.
    """
    path = Path(model)
    if not is_package(model):
        if not path.exists():
            raise LLMNERError(
                f"Can't find the pipeline '{model}': it is neither a folder nor an installed "
                "package. Train one with: python -m spacy train CONFIG --output FOLDER"
            )
        if not (path / "config.cfg").exists():
            best = path / "model-best"
            hint = f" Did you mean '{best}'?" if best.exists() else ""
            raise LLMNERError(f"'{model}' holds no pipeline: there is no config.cfg in it.{hint}")
    if gpu_id >= 0:
        try:
            setup_gpu(gpu_id, silent=True)
        except ValueError as e:
            raise LLMNERError(
                f"spaCy can't use the GPU {gpu_id} ({e}). Leave --gpu-id out: the LLM itself runs "
                "where `device` of its block says, also without CuPy."
            ) from None
    return load_model(model, config=config or {})


def read_examples(nlp: Language, path: Path, spans_key: Optional[str] = None) -> List[Example]:
    """Read annotated Docs, or say what is wrong with them."""
    corpus = Corpus(path)
    try:
        references = list(corpus.read_docbin(nlp.vocab, walk_corpus(path, FILE_TYPE)))
    except Exception as e:  # whatever unpacking foreign bytes may raise
        raise LLMNERError(
            f"Can't read the data '{path}': it is broken or no {FILE_TYPE} file ({e})."
        ) from e
    examples = list(corpus.make_examples(nlp, references))
    if not examples:
        raise LLMNERError(f"The data '{path}' hold no document with a token.")
    if not any(eg.reference.has_annotation("ENT_IOB") for eg in examples):
        raise LLMNERError(
            f"The data '{path}' hold no entity annotation. Mark documents without entities as "
            'outside: doc.set_ents([], default="outside"). scripts/convert.py of the repository does.'
        )
    for eg in examples:  # which labels a Doc is asked for; spaCy's own commands don't carry it over
        eg.predicted._.llmner_labels = eg.reference._.llmner_labels
    keys: Set[str] = {key for eg in examples for key in eg.reference.spans}
    if spans_key is not None and spans_key not in keys:
        known = ", ".join(sorted(keys)) or "none"
        raise LLMNERError(
            f"The data '{path}' have no spans under the key '{spans_key}' (keys: {known}). "
            "Choose another --spans-key, or convert the corpus with --nested."
        )
    return examples


def colors_of(labels: Iterable[str]) -> Dict[str, str]:
    """RETURNS (Dict[str, str]): displaCy's colour for each label, others from a palette."""
    labels = sorted(set(labels))
    known = EntityRenderer().colors
    new = [label for label in labels if label.upper() not in known]
    palette = {label: PALETTE[i % len(PALETTE)] for i, label in enumerate(new)}
    return {label: known.get(label.upper()) or palette[label] for label in labels}


def percent(value: Optional[float]) -> str:
    return "-" if value is None else f"{value * 100:.1f}"
