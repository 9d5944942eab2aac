"""`spacy llmner convert`: convert an annotated corpus to spaCy's binary format.

Nothing is dropped or repaired silently: what is left out or changed is counted, and a line that can't be
read stops the conversion. In that case, an existing output file is not changed.
"""

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import FrozenSet, Optional, Set

import spacy
import typer
from spacy.tokens import DocBin

from ..corpora.annotated_text import Unit
from ..corpora.doccano import WIDE
from ..corpora.docs import group_sentences, make_doc, read_sentences
from ..corpora.rows import Format
from ..errors import Errors, LLMNERError, Warnings
from ..util import scratch_folder
from ._util import exit_on_error


@dataclass
class ConversionCounts:
    """The numbers of converted items.

    docs (int): Docs.
    entity_free (int): Docs without entities.
    sentences (int): Sentences.
    tokens (int): Tokens.
    split (int): Tokens that were split because an entity begins or ends inside them.
    labels (Counter[str]): Entities by label.
    notes (Counter[str]): What was left out or changed.
    wide (int): Texts of doccano with characters that UTF-16 counts twice.
    """

    docs: int = 0
    entity_free: int = 0
    sentences: int = 0
    tokens: int = 0
    split: int = 0
    labels: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    wide: int = 0

    def __str__(self) -> str:
        lines = [
            f"{self.docs} docs, {self.entity_free} of them without entities",
            f"{self.sentences} sentences, {self.tokens} tokens",
            f"{sum(self.labels.values())} entities",
            *(f"  {label}: {n}" for label, n in sorted(self.labels.items())),
        ]
        if self.split:
            lines.append(f"{self.split} tokens split, because an entity begins or ends inside them")
        lines.extend(f"{n} {what}" for what, n in self.notes.items())
        return "\n".join(lines)


def convert_cli(
    input_path: Path = typer.Argument(
        ...,
        metavar="INPUT",
        help="Corpus: JSONL, an export of an annotation tool, or a column file in CoNLL format",
    ),
    output_path: Path = typer.Argument(..., metavar="OUTPUT", help="The .spacy file to write"),
    lang: str = typer.Option(..., "--lang", "-l", help="Language code, such as en or zh"),
    format: Format = typer.Option(Format.auto, "--format", "-f", help="Format of the corpus"),
    docs_of: int = typer.Option(
        1, "--docs-of", "-n", min=1, help="Maximum number of sentences in a Doc"
    ),
    nested: bool = typer.Option(
        False,
        "--nested",
        help="Allow overlapping spans. In a column file, each column after the token is a layer",
    ),
    spans_key: str = typer.Option(
        "sc", "--spans-key", help="With --nested: key of doc.spans for all spans"
    ),
    labels: Optional[str] = typer.Option(
        None, "--labels", help="Allowed labels, such as A,B,C. Others are an error"
    ),
    leave_out: str = typer.Option(
        "", "--leave-out", help="Labels to drop with their spans, such as A,B"
    ),
    text_field: Optional[str] = typer.Option(
        None, "--text-field", help="Key of the text in JSON  [default: text]"
    ),
    offsets: Unit = typer.Option(
        Unit.auto,
        "--offsets",
        help="Unit of offsets in doccano and Label Studio exports. auto: the tool's own unit",
    ),
) -> None:
    """
    Convert an annotated corpus to spaCy's binary format, for training and evaluation. Exports of Prodigy,
    doccano and Label Studio are recognized.
    """
    known = {label.strip() for label in labels.split(",")} if labels else None
    dropped = frozenset(label.strip() for label in leave_out.split(",") if label.strip())
    with exit_on_error():
        counts = convert(
            input_path, output_path, lang,
            format=format, docs_of=docs_of, nested=nested, spans_key=spans_key, labels=known,
            leave_out=dropped, text_field=text_field, offsets=offsets,
        )  # fmt: skip
    typer.echo(f"{output_path}\n{counts}")
    if counts.wide:
        typer.echo(f"⚠ {Warnings.W016.format(n=counts.wide)}", err=True)


def convert(
    input_path: Path,
    output_path: Path,
    lang: str,
    *,
    format: Format = Format.auto,
    docs_of: int = 1,
    nested: bool = False,
    spans_key: str = "sc",
    labels: Optional[Set[str]] = None,
    leave_out: FrozenSet[str] = frozenset(),
    text_field: Optional[str] = None,
    offsets: Unit = Unit.auto,
) -> ConversionCounts:
    """Convert a corpus to a .spacy file. For the arguments, see the command line.

    RETURNS (ConversionCounts): The numbers of converted items.
    RAISES (LLMNERError): If the corpus can't be read. In that case, the output file is not changed.
    """
    if not input_path.is_file():
        raise LLMNERError(Errors.E113.format(where=input_path, reason="the file does not exist"))
    if output_path.suffix != ".spacy":
        raise LLMNERError(Errors.E107.format(path=output_path))
    try:
        nlp = spacy.blank(lang)
    except ImportError as e:
        raise LLMNERError(Errors.E106.format(lang=lang, reason=e)) from None
    counts = ConversionCounts()
    sentences = read_sentences(
        input_path, nlp, format, counts.notes,
        labels=labels, nested=nested, text_field=text_field, unit=offsets,
    )  # fmt: skip
    sentences = (s._replace(spans=[x for x in s.spans if x[2] not in leave_out]) for s in sentences)
    doc_bin = DocBin()
    for members in group_sentences(sentences, docs_of):
        doc = make_doc(nlp, members, spans_key if nested else None)
        doc_bin.add(doc)
        found = [label for sentence in members for _, _, label in sentence.spans]
        counts.docs += 1
        counts.entity_free += not found
        counts.sentences += len(members)
        counts.split += sum(sentence.split for sentence in members)
        counts.tokens += len(doc)
        counts.labels.update(found)
    counts.wide = counts.notes.pop(WIDE, 0)
    counts.notes = +counts.notes
    if not counts.docs:
        notes = ", ".join(f"{n} {what}" for what, n in counts.notes.items())
        raise LLMNERError(Errors.E116.format(path=input_path, notes=notes or "it is empty"))
    output_path.parent.mkdir(parents=True, exist_ok=True)
    with scratch_folder(output_path.parent) as folder:
        doc_bin.to_disk(folder / output_path.name)
        os.replace(folder / output_path.name, output_path)
    return counts
