"""Convert annotated corpora to Docs."""

from collections import Counter
from itertools import groupby
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Set, Union

from spacy.language import Language
from spacy.tokens import Doc, Span
from spacy.util import filter_spans

from .annotated_text import AnnotatedText, Offsets, Unit
from .conll import read_tagged, spans_of_layers
from .rows import Format, is_json, read_annotated

# Languages that are written without spaces: tokens and sentences are joined without them.
NO_SPACES = {"bo", "ja", "km", "lo", "my", "th", "zh"}


class Sentence(NamedTuple):
    """A sentence of a corpus, or a text of an annotation tool.

    words (List[str]): The tokens.
    spaces (List[bool]): Whether a space follows each token.
    spans (Offsets): The entities, in tokens.
    group (Any): The document or topic. All sentences of a Doc are from the same group.
    split (int): The number of tokens that were split because an entity begins or ends inside them.
    """

    words: List[str]
    spaces: List[bool]
    spans: Offsets
    group: Any
    split: int = 0


def read_sentences(
    path: Path,
    nlp: Language,
    format: Format,
    notes: Counter[str],
    *,
    labels: Optional[Set[str]] = None,
    nested: bool = False,
    text_field: Optional[str] = None,
    unit: Unit = Unit.auto,
) -> Iterator[Sentence]:
    """Read a corpus.

    path (Path): The file.
    nlp (Language): The pipeline whose tokenizer is used, except for column files.
    format (Format): The format. `Format.auto` detects it.
    notes (Counter[str]): The counts of what was left out or changed, modified in place.
    labels (Optional[Set[str]]): The allowed labels. None for any.
    nested (bool): Allow overlapping spans. In a column file, all columns after the token then contain tags,
        one for each layer.
    text_field (Optional[str]): The key of the text in JSON.
    unit (Unit): What the offsets in JSON count.
    YIELDS (Sentence): The sentences.
    RAISES (LLMNERError): If the file can't be read.
    """
    if format is Format.conll or (format is Format.auto and not is_json(path)):
        for document, rows in read_tagged(path, labels, layers=nested):
            spaces = [nlp.lang not in NO_SPACES] * (len(rows) - 1) + [False]
            yield Sentence([row[0] for row in rows], spaces, spans_of_layers(rows), document)
        return
    for _, annotated in read_annotated(
        path, notes, format, labels=labels, nested=nested, text_field=text_field, unit=unit
    ):
        yield tokenize(nlp, annotated)


def tokenize(nlp: Language, annotated: AnnotatedText) -> Sentence:
    """RETURNS (Sentence): A text with its tokens. A token is split where an entity begins or ends inside
    it.
    """
    text, spans = annotated.text, annotated.spans
    borders = {border for start, end, _ in spans for border in (start, end)}
    words: List[str] = []
    spaces: List[bool] = []
    starts: Dict[int, int] = {}
    ends: Dict[int, int] = {}
    split = 0
    for token in nlp.make_doc(text):
        begin, stop = token.idx, token.idx + len(token)
        cuts = [begin, *sorted(b for b in borders if begin < b < stop), stop]
        split += len(cuts) > 2
        for a, b in zip(cuts, cuts[1:]):
            starts[a] = len(words)
            words.append(text[a:b])
            ends[b] = len(words)
            spaces.append(bool(token.whitespace_) and b == stop)
    mentions = [(starts[start], ends[end], label) for start, end, label in spans]
    return Sentence(words, spaces, mentions, annotated.group, split)


def group_sentences(sentences: Iterator[Sentence], docs_of: int) -> Iterator[List[Sentence]]:
    """YIELDS (List[Sentence]): The sentences of each Doc: at most `docs_of`, all of the same group."""
    for _, group in groupby(sentences, key=lambda sentence: sentence.group):
        members = list(group)
        for i in range(0, len(members), docs_of):
            yield members[i : i + docs_of]


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
