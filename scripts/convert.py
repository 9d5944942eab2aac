"""Convert an annotated corpus (JSONL with character offsets, or CoNLL columns) to a .spacy file.

Nothing is dropped or repaired silently. A line that can't be read stops the conversion with the error
`FILE:LINE: reason`, and an existing output file is not changed.
"""

import hashlib
import os
import re
from collections import Counter
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import FrozenSet, List, Optional, Set, Union

import spacy
import srsly
import typer
from corpora import (
    NO_SPACES,
    ConvertError,
    Format,
    Offsets,
    Sentence,
    read_sentences,
)
from spacy.language import Language
from spacy.tokens import Doc, DocBin, Span
from spacy.util import filter_spans


@dataclass
class Counts:
    """The numbers of converted items.

    docs (int): Docs.
    entity_free (int): Docs without entities.
    sentences (int): Sentences.
    tokens (int): Tokens.
    split (int): Tokens that were split because an entity begins or ends inside them.
    labels (Counter[str]): Entities by label.
    """

    docs: int = 0
    entity_free: int = 0
    sentences: int = 0
    tokens: int = 0
    split: int = 0
    labels: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        lines = [
            f"{self.docs} docs, {self.entity_free} of them without entities",
            f"{self.sentences} sentences, {self.tokens} tokens",
            f"{sum(self.labels.values())} entities",
            *(f"  {label}: {n}" for label, n in sorted(self.labels.items())),
        ]
        if self.split:
            lines.append(f"{self.split} tokens split, because an entity begins or ends inside them")
        return "\n".join(lines)


def make_doc(nlp: Language, sentences: List[Sentence], spans_key: Optional[str]) -> Doc:
    """Join sentences into one Doc with sentence boundaries.

    nlp (Language): The pipeline whose vocab is used.
    sentences (List[Sentence]): The sentences, at least one.
    spans_key (Optional[str]): For a nested corpus: the key of the doc.spans group for all spans. doc.ents
        gets the longest spans that don't overlap.
    RETURNS (Doc): The Doc. Tokens without an entity are annotated as outside. Otherwise spaCy's scorer
        would skip Docs without entities, and all false positives in them.
    """
    words: List[str] = []
    spaces: List[bool] = []
    sent_starts: List[Union[bool, int, None]] = []
    spans: Offsets = []
    for words_, spaces_, spans_, *_ in sentences:
        if words and nlp.lang not in NO_SPACES:
            spaces[-1] = True
        spans.extend((start + len(words), end + len(words), label) for start, end, label in spans_)
        words.extend(words_)
        spaces.extend(spaces_)
        sent_starts.extend([True] + [False] * (len(words_) - 1))
    doc = Doc(nlp.vocab, words=words, spaces=spaces, sent_starts=sent_starts)
    ents = [Span(doc, start, end, label=label) for start, end, label in spans]
    if spans_key is not None:
        doc.spans[spans_key] = ents
        ents = filter_spans(ents)
    doc.set_ents(ents, default="outside")
    return doc


def verify_checksum(path: Path, project: Path) -> None:
    """Compare a file with its checksum in project.yml, if it is listed there. (`spacy project assets` exits
    with 0 even if a checksum is wrong.)

    path (Path): The file.
    project (Path): The project.yml.
    RAISES (ConvertError): If the checksum is wrong, or if the project.yml can't be read.
    """
    try:
        config = srsly.read_yaml(project)
        assets = [(str(asset["dest"]), asset.get("checksum")) for asset in config.get("assets", [])]
        variables = config.get("vars", {})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise ConvertError(project, f"can't read the assets of the project ({e})") from None
    for dest, checksum in assets:
        dest = re.sub(r"\$\{vars\.(\w+)\}", lambda match: str(variables.get(match[1])), dest)
        if checksum and (project.parent / dest).resolve() == path.resolve():
            md5 = hashlib.md5(path.read_bytes()).hexdigest()
            if md5 != checksum:
                reason = f"the md5 checksum is {md5}, but must be {checksum} according to {project}"
                raise ConvertError(path, f"{reason}. Get the file again, or correct the checksum")


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
) -> Counts:
    """Convert a corpus to a .spacy file. For the arguments, see the command line.

    RETURNS (Counts): The numbers of converted items.
    RAISES (ConvertError): If the corpus can't be read. The output file is not changed then.
    """
    if not input_path.is_file():
        raise ConvertError(input_path, "the file does not exist")
    if output_path.suffix != ".spacy":
        # spaCy's corpus reader only finds files with this ending.
        raise ConvertError(output_path, "the name of the output must end in .spacy")
    try:
        nlp = spacy.blank(lang)
    except ImportError as e:
        raise ConvertError(input_path, f"no tokenizer for the language '{lang}': {e}") from None
    counts = Counts()
    sentences = read_sentences(input_path, nlp, format, labels, nested)
    sentences = (s._replace(spans=[x for x in s.spans if x[2] not in leave_out]) for s in sentences)
    doc_bin = DocBin()
    for _, group in groupby(sentences, key=lambda sentence: sentence.group):
        members = list(group)
        for i in range(0, len(members), docs_of):
            part = members[i : i + docs_of]
            doc = make_doc(nlp, part, spans_key if nested else None)
            doc_bin.add(doc)
            found = [label for sentence in part for _, _, label in sentence.spans]
            counts.docs += 1
            counts.entity_free += not found
            counts.sentences += len(part)
            counts.split += sum(sentence.split for sentence in part)
            counts.tokens += len(doc)
            counts.labels.update(found)
    if not counts.docs:
        raise ConvertError(input_path, "the file is empty", 1)
    output_path.parent.mkdir(parents=True, exist_ok=True)
    temporary = output_path.with_name(f".{output_path.name}.{os.getpid()}")
    try:
        doc_bin.to_disk(temporary)
        os.replace(temporary, output_path)
    finally:
        temporary.unlink(missing_ok=True)
    return counts


def main(
    input_path: Path = typer.Argument(
        ..., metavar="INPUT", help="Corpus: a JSONL file, or a column file in CoNLL format"
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
        help="Allow overlapping spans. In a column file, all columns after the token are layers",
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
    project: Optional[Path] = typer.Option(
        None,
        "--project",
        help="project.yml with checksums of corpora. By default, the one in this folder, if any",
    ),
) -> None:
    """Convert an annotated corpus to spaCy's binary format, for training and evaluation."""
    known = {label.strip() for label in labels.split(",")} if labels else None
    dropped = frozenset(label.strip() for label in leave_out.split(",") if label.strip())
    try:
        if project is None and Path("project.yml").exists():
            project = Path("project.yml")
        if project is not None and input_path.is_file():
            verify_checksum(input_path, project)
        counts = convert(
            input_path, output_path, lang,
            format=format, docs_of=docs_of, nested=nested, spans_key=spans_key, labels=known,
            leave_out=dropped,
        )  # fmt: skip
    except (ConvertError, OSError) as e:
        typer.echo(str(e), err=True)
        raise typer.Exit(1) from None
    typer.echo(f"{output_path}\n{counts}")


if __name__ == "__main__":
    typer.run(main)
