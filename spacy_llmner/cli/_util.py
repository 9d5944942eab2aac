"""Shared code of the commands: loading pipelines and data, colors, errors."""

import re
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, List, Optional, Set, Union

import srsly
import typer
from spacy import blank
from spacy.cli._util import setup_gpu
from spacy.displacy.render import EntityRenderer
from spacy.language import Language
from spacy.training import Corpus, Example
from spacy.training.corpus import FILE_TYPE, walk_corpus
from spacy.util import is_package, load_model, split_requirement

from ..corpora.rows import check_not_spacy_v2
from ..errors import Errors, LLMNERError
from ..pipeline.loading import check_pipeline, llms_of

# Control characters, which a terminal could interpret as commands and which HTML doesn't allow.
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
# Colors of labels that displaCy has no color for.
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
    """Check the path of annotated Docs.

    path (Path): A .spacy file, or a folder of .spacy files.
    RAISES (LLMNERError): If the path doesn't exist or has no .spacy file.
    """
    if not path.exists():
        raise LLMNERError(Errors.E093.format(path=path))
    check_not_spacy_v2(path)
    if path.is_file() and path.suffix != FILE_TYPE:
        raise LLMNERError(Errors.E094.format(path=path))
    if path.is_dir() and not any(path.rglob(f"*{FILE_TYPE}")):
        raise LLMNERError(Errors.E095.format(path=path))


def load_pipeline(
    model: str, gpu_id: int = -1, config: Optional[Dict[str, Any]] = None
) -> Language:
    """Load a pipeline.

    model (str): A folder, or the name of an installed package.
    gpu_id (int): GPU of spaCy's own arrays, or -1 for the CPU.
    config (Optional[Dict[str, Any]]): Settings to override, e.g. {"paths.llm": NAME}.
    RETURNS (Language): The pipeline.
    RAISES (LLMNERError): If there is no such pipeline, spaCy can't use the GPU, or a component can't be
        created, for example because a package is missing.
    """
    check_pipeline(model)
    if gpu_id >= 0:
        try:
            setup_gpu(gpu_id, silent=True)
        except ValueError as e:
            raise LLMNERError(Errors.E102.format(gpu_id=gpu_id, reason=e)) from None
    try:
        return load_model(model, config=config or {})
    except LLMNERError:
        raise
    except (ValueError, ImportError) as e:
        # spaCy lists everything that it knows after an empty line.
        reason = str(e).partition("\n\n")[0]
        missing = _missing_packages(model)
        hint = f" These packages are missing: {', '.join(missing)}." if missing else ""
        message = Errors.E186.format(name=model, reason=reason, missing=hint)
        raise LLMNERError(message) from e


def _missing_packages(model: str) -> List[str]:
    """RETURNS (List[str]): The requirements of a pipeline that are not installed."""
    try:
        given = requires(model) if is_package(model) else _meta_requirements(Path(model))
    except (OSError, ValueError, PackageNotFoundError):
        return []
    return [r for r in given or [] if not _is_installed(split_requirement(r)[0])]


def _meta_requirements(folder: Path) -> List[str]:
    return srsly.read_json(folder / "meta.json").get("requirements", [])


def _is_installed(package: str) -> bool:
    try:
        return bool(version(package))
    except PackageNotFoundError:
        return False


def blank_pipeline(lang: str) -> Language:
    """RETURNS (Language): A blank pipeline.
    RAISES (LLMNERError): If spaCy doesn't support the language.
    """
    try:
        return blank(lang)
    except ImportError as e:
        raise LLMNERError(Errors.E106.format(lang=lang, reason=e)) from None


def read_examples(nlp: Language, path: Path, spans_key: Optional[str] = None) -> List[Example]:
    """Read annotated Docs.

    nlp (Language): The pipeline, whose tokenizer creates the predicted Docs.
    path (Path): A .spacy file, or a folder of .spacy files.
    spans_key (Optional[str]): Key in doc.spans that the Docs must have.
    RETURNS (List[Example]): The non-empty Docs, with unannotated Docs of the same texts.
    RAISES (LLMNERError): If the files can't be read, or have no Docs, annotation or spans to evaluate.
    """
    corpus = Corpus(path)
    try:
        references = list(corpus.read_docbin(nlp.vocab, walk_corpus(path, FILE_TYPE)))
    except Exception as e:  # unpacking arbitrary bytes can raise anything
        raise LLMNERError(Errors.E096.format(path=path, reason=e)) from e
    examples = list(corpus.make_examples(nlp, references))
    if not examples:
        raise LLMNERError(Errors.E097.format(path=path))
    if not any(eg.reference.has_annotation("ENT_IOB") for eg in examples):
        raise LLMNERError(Errors.E098.format(path=path))
    for eg in examples:  # the requested labels of a Doc, which spaCy's own commands don't copy
        eg.predicted._.llmner_labels = eg.reference._.llmner_labels
    keys: Set[str] = {key for eg in examples for key in eg.reference.spans}
    if spans_key is not None and spans_key not in keys:
        known = ", ".join(sorted(keys)) or "none"
        raise LLMNERError(Errors.E099.format(path=path, key=spans_key, known=known))
    return examples


def colors_of(labels: Iterable[str]) -> Dict[str, str]:
    """RETURNS (Dict[str, str]): The color of each label: displaCy's, or one from the palette."""
    labels = sorted(set(labels))
    known = EntityRenderer().colors
    new = [label for label in labels if label.upper() not in known]
    palette = {label: PALETTE[i % len(PALETTE)] for i, label in enumerate(new)}
    return {label: known.get(label.upper()) or palette[label] for label in labels}


def folder_name(path: Union[str, Path]) -> str:
    """RETURNS (str): The last part of a path, or the last two parts for the folders of `spacy train`,
    such as "ember_probe/model-best"."""
    parts = Path(path).absolute().parts
    return "/".join(parts[-2:] if parts[-1] in ("model-best", "model-last") else parts[-1:])


def llm_names(pipes: Iterable[Any]) -> List[str]:
    """RETURNS (List[str]): The names of the components' LLMs, each one once. A local folder is named by its
    last part."""
    names: Dict[str, None] = {}
    for llm in llms_of(pipes):
        local = Path(llm.spec.name).is_absolute() or Path(llm.spec.name).is_dir()
        names[folder_name(llm.spec.name) if local else llm.spec.name] = None
    return list(names)


def percent(value: Optional[float]) -> str:
    return "-" if value is None else f"{value * 100:.1f}"


def clean(text: str) -> str:
    """RETURNS (str): The text with a replacement character for each control character, except tabs and line
    feeds."""
    return CONTROL.sub("\ufffd", text)
