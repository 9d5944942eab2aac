"""Labelled texts, which are stored in an index. Queries to the index are labelled texts as well."""

from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import blake2b
from typing import FrozenSet, List, NamedTuple, Optional, Tuple

from spacy.tokens import Doc

from ..util import trimmed


@dataclass(frozen=True)
class LabelledText:
    """A text with its entities. A query has no entities.

    text (str): The text.
    entities (Tuple[Tuple[int, int, str], ...]): The entities, in the order of the text: the first
        character, one past the last, and the label. They can overlap.
    doc_id (str): Identifies the document that the text is from; "" if it is unknown. Texts of the same
        document are never examples for each other.
    """

    text: str
    entities: Tuple[Tuple[int, int, str], ...] = ()
    doc_id: str = ""

    @cached_property
    def hash(self) -> str:
        """RETURNS (str): A hash that ignores case and white space. Texts with the same hash are
        duplicates."""
        folded = " ".join(self.text.casefold().split())
        return blake2b(folded.encode("utf8", "surrogatepass"), digest_size=12).hexdigest()


class PoolText(NamedTuple):
    """A candidate for the pool of labelled texts.

    example (LabelledText): The text with its entities.
    words (List[Tuple[int, int]]): The words of the text: the first character, and one past the last.
    begins (FrozenSet[int]): The indices of the words that can begin a sentence.
    """

    example: LabelledText
    words: List[Tuple[int, int]]
    begins: FrozenSet[int] = frozenset()

    def part(self, start: int, end: int) -> Optional["PoolText"]:
        """Get a part of the text.

        start (int): The first word of the part.
        end (int): One past its last word.
        RETURNS (Optional[PoolText]): The part, or None if it would start or end inside an entity.
        """
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
    """Create a labelled text from a Doc.

    doc (Doc): The Doc.
    spans_key (Optional[str]): The doc.spans group with the entities. If the Doc doesn't have this group,
        the text has no entities. None for doc.ents.
    doc_id (str): Identifies the document that the text is from.
    RETURNS (LabelledText): The text with its entities, sorted and without duplicates.
    """
    spans = doc.ents if spans_key is None else doc.spans.get(spans_key, ())
    entities = {(span.start_char, span.end_char, span.label_) for span in spans}
    return LabelledText(doc.text, tuple(sorted(entities)), doc_id)


def trim_entities(example: LabelledText) -> LabelledText:
    """RETURNS (LabelledText): The text with its entities without white space at their borders. Entities
    that consist of white space are removed.
    """
    spans = [(trimmed(example.text, start, end), x) for start, end, x in example.entities]
    entities = {(start, end, x) for (start, end), x in spans if start < end}
    return replace(example, entities=tuple(sorted(entities)))
