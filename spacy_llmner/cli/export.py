"""`spacy llmner export`: let a pipeline annotate texts, and write its entities for an annotation tool."""

import json
import os
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

import typer
from spacy.cli._util import import_code
from spacy.language import Language
from spacy.tokens import Doc, DocBin, Span
from spacy.training.corpus import FILE_TYPE
from tqdm import tqdm

from ..corpora import doccano, label_studio, prodigy
from ..corpora.rows import check_not_spacy_v2, read_lines, read_rows
from ..errors import Errors, LLMNERError
from ..pipeline.extensions import get_score
from ..util import scratch_folder
from ._util import exit_on_error, load_pipeline

Scored = List[Tuple[Span, Optional[float]]]


class Tool(StrEnum):
    """The annotation tools."""

    prodigy = "prodigy"
    doccano = "doccano"
    label_studio = "label-studio"


def export_cli(
    model: str = typer.Argument(..., help="Pipeline: a folder or the name of a package"),
    texts: Path = typer.Argument(
        ..., help="Texts: a .spacy, .jsonl or text file (one text per line)"
    ),
    output: Path = typer.Argument(
        ..., metavar="OUT", help="Output: a .jsonl file; for Label Studio a .json file"
    ),
    tool: Tool = typer.Option(..., "--format", "-f", help="Annotation tool"),
    spans_key: Optional[str] = typer.Option(
        None, "--spans-key", "-sk", help="Write doc.spans[KEY] instead of doc.ents"
    ),
    gpu_id: int = typer.Option(
        -1,
        "--gpu-id",
        "-g",
        help="GPU for spaCy's own arrays, or -1 for none. The LLM uses its own `device` setting",
    ),
    code_path: Optional[Path] = typer.Option(None, "--code", "-c", help="Python file to import"),
) -> None:
    """Find the entities of texts, and write them as pre-annotations for an annotation tool."""
    import_code(code_path)
    with exit_on_error():
        n_texts, n_spans = export(model, texts, output, tool, spans_key, gpu_id)
    typer.echo(f"✔ {n_texts} texts with {n_spans} entities: {output}")


def export(
    model: str,
    texts: Path,
    output: Path,
    tool: Tool,
    spans_key: Optional[str] = None,
    gpu_id: int = -1,
) -> Tuple[int, int]:
    """Annotate texts with a pipeline, and write a file for an annotation tool.

    model (str): Folder or package of the pipeline.
    texts (Path): A .spacy file, a .jsonl file with a "text" in each line, or a text file with one text per
        line.
    output (Path): The file to write.
    tool (Tool): The annotation tool.
    spans_key (Optional[str]): Key in doc.spans to write, instead of doc.ents.
    gpu_id (int): GPU of spaCy's own arrays, or -1 for the CPU.
    RETURNS (Tuple[int, int]): The number of texts, and of entities.
    RAISES (LLMNERError): If the texts or the pipeline can't be read, or there are no texts.
    """
    nlp = load_pipeline(model, gpu_id)
    # Read the whole file first, so that an invalid line is found before the LLM starts.
    read = list(read_texts(texts, nlp))
    if not read:
        raise LLMNERError(Errors.E116.format(path=texts, notes="it is empty"))
    make_row = _row_maker(tool, nlp)
    # Label Studio reads a JSON list, the other tools JSONL.
    begin, between, end = ("[\n", ",\n", "\n]\n") if tool is Tool.label_studio else ("", "\n", "\n")
    n_texts = n_spans = 0
    output.parent.mkdir(parents=True, exist_ok=True)
    with scratch_folder(output.parent) as folder:
        path = folder / output.name
        with path.open("w", encoding="utf8") as file_:
            file_.write(begin)
            for doc in nlp.pipe(tqdm(read, unit="text", leave=False, disable=None)):
                scored = _scored(doc, spans_key, texts)
                file_.write(between if n_texts else "")
                file_.write(json.dumps(make_row(doc, scored), ensure_ascii=False))
                n_texts += 1
                n_spans += len(scored)
            file_.write(end)
        os.replace(path, output)
    return n_texts, n_spans


def _row_maker(tool: Tool, nlp: Language) -> Callable[[Doc, Scored], Dict[str, Any]]:
    if tool is Tool.prodigy:
        return prodigy.make_row
    if tool is Tool.doccano:
        return doccano.make_row
    version = "{lang}_{name}-{version}".format(**nlp.meta)
    return partial(label_studio.make_row, model_version=version)


def _scored(doc: Doc, spans_key: Optional[str], path: Path) -> Scored:
    """RETURNS (Scored): The entities of a Doc, and their scores. None if their component has no scores."""
    if spans_key is None:
        return [(ent, get_score(ent)) for ent in doc.ents]
    if spans_key not in doc.spans:
        known = ", ".join(doc.spans) or "none"
        raise LLMNERError(Errors.E099.format(path=path, key=spans_key, known=known))
    return [(span, get_score(span)) for span in doc.spans[spans_key]]


def read_texts(path: Path, nlp: Language) -> Iterator[str]:
    """Read texts that aren't blank.

    path (Path): A .spacy file, a .jsonl file, or a text file with one text per line.
    nlp (Language): The pipeline, whose vocab is used.
    YIELDS (str): The texts.
    RAISES (LLMNERError): If the file can't be read.
    """
    if not path.is_file():
        raise LLMNERError(Errors.E113.format(where=path, reason="the file does not exist"))
    check_not_spacy_v2(path)
    if path.suffix == FILE_TYPE:
        try:
            texts = [doc.text for doc in DocBin().from_disk(path).get_docs(nlp.vocab)]
        except Exception as e:  # unpacking arbitrary bytes can raise anything
            raise LLMNERError(Errors.E096.format(path=path, reason=e)) from e
        yield from (text for text in texts if text.strip())
    elif path.suffix in (".json", ".jsonl"):
        for where, row in read_rows(path):
            text = row.get("text") if isinstance(row, dict) else None
            if not isinstance(text, str):
                reason = 'not a JSON object with a string under the key "text"'
                raise LLMNERError(Errors.E113.format(where=where, reason=reason))
            if text.strip():
                yield text
    else:
        yield from (line.strip() for _, line in read_lines(path) if line.strip())
