"""Labelled texts: what an index holds and what it is asked with."""

from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from typing import FrozenSet, List, NamedTuple, Optional, Tuple

from spacy.tokens import Doc


@dataclass(frozen=True)
class LabelledText:
    """A text with its entities. As a query it may have none.

    text (str): The text.
    entities (Tuple[Tuple[int, int, str], ...]): First character, one past the last, and label, in the
        order of the text. They may overlap.
    doc_id (str): Where the text is from; "" if unknown. Texts of one document are never shown to
        each other as examples.
    """

    text: str
    entities: Tuple[Tuple[int, int, str], ...] = ()
    doc_id: str = ""

    @cached_property
    def hash(self) -> str:
        """Of the text with case and white space folded: texts of the same hash are duplicates."""
        folded = " ".join(self.text.casefold().split())
        return blake2b(folded.encode("utf8", "surrogatepass"), digest_size=12).hexdigest()


class PoolText(NamedTuple):
    """A text that may get into the pool.

    example (LabelledText): Text and entities.
    words (List[Tuple[int, int]]): Its words.
    begins (FrozenSet[int]): Numbers of those that a sentence may begin with.
    """

    example: LabelledText
    words: List[Tuple[int, int]]
    begins: FrozenSet[int] = frozenset()

    def part(self, start: int, end: int) -> Optional["PoolText"]:
        """RETURNS (Optional[PoolText]): Some of its words; None if that cuts an entity."""
        first, last = self.words[start][0], self.words[end - 1][1]
        inside = [(a, b, x) for a, b, x in self.example.entities if a < last and first < b]
        if any(a < first or last < b for a, b, _ in inside):
            return None
        example = LabelledText(
            self.example.text[first:last],
            tuple((a - first, b - first, x) for a, b, x in inside),
            self.example.doc_id,
        )
        return PoolText(example, [(a - first, b - first) for a, b in self.words[start:end]])


def labelled_text(doc: Doc, spans_key: Optional[str] = None, doc_id: str = "") -> LabelledText:
    """Take text and entities out of a Doc.

    doc (Doc): Any Doc.
    spans_key (Optional[str]): Take the spans in doc.spans[spans_key], none if it isn't there. None for
        doc.ents.
    doc_id (str): Where the text is from.
    RETURNS (LabelledText): Its entities are sorted, each of them once.
    """
    spans = doc.ents if spans_key is None else doc.spans.get(spans_key, ())
    entities = {(span.start_char, span.end_char, span.label_) for span in spans}
    return LabelledText(doc.text, tuple(sorted(entities)), doc_id)
