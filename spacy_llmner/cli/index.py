"""`spacy llmner index`: build an index of examples for ra_it_ner and el4ner_ensemble."""

import json
import warnings
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, Iterator, List, Optional, Tuple

import spacy
import typer
from spacy.tokenizer import Tokenizer
from spacy.tokens import Doc, DocBin
from spacy.training.corpus import FILE_TYPE, walk_corpus
from spacy.util import compile_infix_regex
from tqdm import tqdm
from wasabi import Printer

from ..corpora.annotated_text import LeftOut
from ..corpora.prodigy import check_answer
from ..corpora.rows import check_not_spacy_v2
from ..errors import Errors, LLMNERError, Warnings
from ..llm.registry import make_llm
from ..pipeline.windows import cut_into_windows, may_start_sentence
from ..retrieval.bm25 import CJK
from ..retrieval.encoder import DEFAULT, Encoder, make_sentence_encoder
from ..retrieval.examples import LabelledText, PoolText, labelled_text, trim_entities
from ..retrieval.llm_encoder import make_llm_encoder
from ..util import is_blank, scratch_folder
from ._util import exit_on_error

# Maximum number of words in an example: about one window of the components, 256 tokens.
WORDS = 128

# The parts of a text. None for a part that can't be an example.
Parts = List[Optional[LabelledText]]


def index_cli(
    corpus: Path = typer.Argument(
        ..., help="Examples: a .spacy file, a folder of .spacy files, or a .jsonl file"
    ),
    output: Path = typer.Argument(..., metavar="OUT", help="Folder for the index"),
    encoder: Optional[str] = typer.Option(
        None,
        "--encoder",
        "-e",
        help=f"Sentence encoder: name, folder or hub id  [default: {DEFAULT}]",
    ),
    llm: Optional[str] = typer.Option(
        None, "--llm", help="Encode with an LLM instead: name, folder or hub id"
    ),
    layer: Optional[int] = typer.Option(
        None, "--layer", min=0, help="Layer of the LLM  [default: at five sixths of the depth]"
    ),
    spans_key: Optional[str] = typer.Option(
        None, "--spans-key", "-sk", help="Read entities from doc.spans[KEY] instead of doc.ents"
    ),
    kind: str = typer.Option(
        "exact", "--kind", "-k", help="exact; for more than 100,000 examples, hnsw or ivf"
    ),
    device: str = typer.Option("auto", "--device", "-d", help="auto, cpu, cuda or cuda:N"),
) -> None:
    """
    Encode the texts of an annotated corpus and save them as an index of examples. Each Doc, or
    each line of a .jsonl file, is an example. Long texts are split into several examples.
    Duplicates and Docs that are not annotated are left out.
    """
    msg = Printer()
    start = perf_counter()
    with exit_on_error():
        index, n_read = build_index(
            corpus,
            output,
            encoder,
            llm=llm,
            layer=layer,
            spans_key=spans_key,
            kind=kind,
            device=device,
            progress=True,
        )
    left_out = n_read - len(index)
    why = "duplicate, blank, rejected, unannotated or cut"
    more = f", {left_out} {why} texts left out" if left_out else ""
    seconds = perf_counter() - start
    msg.good(f"{len(index)} examples in {seconds:.0f} s{more}", str(output))
    labels = index.labels()
    if labels:
        msg.table([(label, n) for label, n in labels.most_common()], header=("Label", "Entities"))
    else:
        msg.warn(Warnings.W050.format(path=corpus, where=_where(spans_key)))


def build_index(
    corpus: Path,
    output: Path,
    encoder: Optional[str] = None,
    *,
    llm: Optional[str] = None,
    layer: Optional[int] = None,
    spans_key: Optional[str] = None,
    kind: str = "exact",
    device: str = "auto",
    progress: bool = False,
) -> Tuple[Any, int]:
    """Build an index of a corpus and save it.

    corpus (Path): A .spacy file, a folder of .spacy files, or a .jsonl file.
    output (Path): Folder for the index.
    encoder (Optional[str]): The sentence encoder. Defaults to all-minilm-l6-v2 without `llm`.
    llm (Optional[str]): LLM to encode with instead.
    layer (Optional[int]): Layer of the LLM, see LLMEncoder.
    spans_key (Optional[str]): Key in doc.spans to read entities from, instead of doc.ents.
    kind (str): Kind of the index, see ExampleIndex.
    device (str): Device of the encoder: auto, cpu, cuda or cuda:N.
    progress (bool): Show a progress bar, if standard error is a terminal.
    RETURNS (Tuple[ExampleIndex, int]): The index, and the number of texts and parts that were read.
    RAISES (LLMNERError): If the corpus can't be read or contains no examples, the encoder doesn't exist, or
        the folder is not writable.
    """
    # Imported here, since no other command needs FAISS.
    from ..retrieval.index import ExampleIndex

    total = count_texts(corpus)
    with _explain_os_errors(output):
        _check_writable(output)
    index = ExampleIndex(_encoder(encoder, llm, layer, device), kind)
    index.encoder.encode([])  # so that an error is raised before the progress bar starts
    n_read = 0
    with tqdm(total=total, unit="text", disable=None if progress else True) as bar:

        def counted() -> Iterator[LabelledText]:
            nonlocal n_read
            for parts in read_labelled(corpus, spans_key):
                n_read += len(parts)
                yield from (part for part in parts if part is not None)
                bar.update()

        index.add(counted())
    if not len(index):
        raise LLMNERError(Errors.E057.format(path=corpus, where=_where(spans_key)))
    with _explain_os_errors(output):
        index.to_disk(output)
    return index, n_read


def _encoder(
    encoder: Optional[str], llm: Optional[str], layer: Optional[int], device: str
) -> Encoder:
    if (llm and encoder) or (layer is not None and not llm):
        raise LLMNERError(Errors.E058)
    if llm:
        return make_llm_encoder(make_llm(llm, device=device), layer)
    return make_sentence_encoder(encoder, device)


def _check_writable(folder: Path) -> None:
    """RAISES (OSError): If the folder is not writable, or can't be created."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    with scratch_folder(there):
        pass


@contextmanager
def _explain_os_errors(output: Path) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        raise LLMNERError(Errors.E059.format(path=output, reason=e.strerror or e)) from e


def count_texts(corpus: Path) -> int:
    """RETURNS (int): The number of texts in a corpus, including blank texts."""
    if _is_jsonl(corpus):
        with corpus.open("rb") as file_:
            return sum(1 for line in file_ if line.strip())
    return sum(len(_open_docs(path)) for path in _doc_files(corpus))


def read_labelled(corpus: Path, spans_key: Optional[str] = None) -> Iterator[Parts]:
    """Read a corpus: a .jsonl file line by line, a folder file by file. White space at the borders of
    entities is removed, with one warning.

    corpus (Path): A .spacy file, a folder of .spacy files, or a .jsonl file.
    spans_key (Optional[str]): Key in doc.spans to read entities from, instead of doc.ents.
    YIELDS (List[Optional[LabelledText]]): The parts of each text. A short text is one part, whose doc_id is
        the name of the file and the number of the text, from 1. The parts of a long text have the hash of
        the text as their doc_id, as in the components. None for a part that is not annotated, or that
        starts or ends inside an entity.
    RAISES (LLMNERError): If the corpus doesn't exist or can't be read.
    """
    n = total = empty = 0
    for text, doc in _read_texts(corpus, spans_key):
        if text is None:
            yield [None]
            continue
        example = trim_entities(text)
        total += len(text.entities)
        n += len(set(text.entities) - set(example.entities))
        empty += len(text.entities) - len(example.entities)
        yield [example] if doc is None else _parts(example, doc)
    if n:
        message = Warnings.W017.format(name="spacy llmner index", n=n, total=total, empty=empty)
        warnings.warn(message, stacklevel=2)


def _read_texts(
    corpus: Path, spans_key: Optional[str]
) -> Iterator[Tuple[Optional[LabelledText], Optional[Doc]]]:
    """YIELDS (Tuple[Optional[LabelledText], Optional[Doc]]): Each text, None if it is not annotated, and
    its words, None if it is short.
    """
    if _is_jsonl(corpus):
        tokenizer = _tokenizer()
        for example in _read_jsonl(corpus):
            # A text has at most as many words as characters.
            long = example is not None and len(example.text) > WORDS
            yield example, tokenizer(example.text) if example and long else None
        return
    vocab = spacy.blank("xx").vocab
    for path in _doc_files(corpus):
        for number, doc in enumerate(_open_docs(path).get_docs(vocab), 1):
            known = all(t.ent_iob for t in doc) if spans_key is None else spans_key in doc.spans
            # An unannotated Doc would be shown as a text without entities.
            example = labelled_text(doc, spans_key, f"{path.name}:{number}")
            yield example if known else None, doc


def _parts(example: LabelledText, doc: Doc) -> Parts:
    """Split a text into parts that fit into a prompt, between sentences as in the components."""
    tokens = [token for token in doc if not is_blank(token.text)]
    begins = partial(may_start_sentence, tokens, known=doc.has_annotation("SENT_START"))
    windows = cut_into_windows([1 / WORDS] * len(tokens), begins)
    if len(windows) < 2:
        return [example]
    words = [(token.idx, token.idx + len(token)) for token in tokens]
    text = PoolText(replace(example, doc_id=example.hash), words)
    parts = [text.part(start, end) for start, end in windows]
    return [part and part.example for part in parts]


def _tokenizer() -> Tokenizer:
    """RETURNS (Tokenizer): A tokenizer for any language. Each Chinese character is a word, as in BM25."""
    nlp = spacy.blank("xx")
    tokenizer: Any = nlp.tokenizer
    infixes = compile_infix_regex([*(nlp.Defaults.infixes or ()), f"[{CJK}]"])
    tokenizer.infix_finditer = infixes.finditer
    return tokenizer


def _is_jsonl(corpus: Path) -> bool:
    if not corpus.exists():
        raise LLMNERError(Errors.E055.format(path=corpus))
    return corpus.is_file() and corpus.suffix == ".jsonl"


def _doc_files(corpus: Path) -> Any:
    check_not_spacy_v2(corpus)
    if corpus.is_file() and corpus.suffix != FILE_TYPE:
        raise LLMNERError(Errors.E056.format(path=corpus, reason=f"it is not a {FILE_TYPE} file"))
    # spaCy's own warning about an empty folder is less specific than this error.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        files = sorted(walk_corpus(corpus, FILE_TYPE))
    if not files:
        raise LLMNERError(
            Errors.E056.format(path=corpus, reason=f"it contains no {FILE_TYPE} files")
        )
    return files


def _open_docs(path: Path) -> DocBin:
    try:
        return DocBin().from_disk(path)
    except Exception as e:
        raise LLMNERError(Errors.E056.format(path=path, reason=f"{type(e).__name__}: {e}")) from e


def _read_jsonl(path: Path) -> Iterator[Optional[LabelledText]]:
    """YIELDS (Optional[LabelledText]): Each text, None if an annotator has not accepted it in Prodigy."""
    with path.open("rb") as file_:
        for number, line in enumerate(file_, 1):
            if not line.strip():
                continue
            try:
                entry = json.loads(line.decode("utf-8-sig"))
                check_answer(entry)
                text = entry["text"]
                if not isinstance(text, str):
                    raise ValueError("the text is not a string")
                spans = {(s["start"], s["end"], s["label"]) for s in entry.get("spans", ())}
                for start, end, label in spans:
                    if not 0 <= start < end <= len(text) or not isinstance(label, str):
                        raise ValueError(
                            f"the span {start} to {end}, '{label}', is not in the text"
                        )
            except LeftOut:
                yield None
                continue
            except (ValueError, KeyError, TypeError, AttributeError) as e:
                reason = f"line {number}: {type(e).__name__}: {e}"
                raise LLMNERError(Errors.E056.format(path=path, reason=reason)) from None
            yield LabelledText(text, tuple(sorted(spans)), f"{path.name}:{number}")


def _where(spans_key: Optional[str]) -> str:
    return "doc.ents" if spans_key is None else f"doc.spans['{spans_key}']"
