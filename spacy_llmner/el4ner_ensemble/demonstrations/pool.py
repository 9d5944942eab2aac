"""The pool of labelled texts for demonstrations, with the spans of each text and their vectors."""

from pathlib import Path
from typing import (
    Any,
    Dict,
    Iterable,
    Iterator,
    List,
    NamedTuple,
    Sequence,
    Set,
    Tuple,
)

import numpy as np
import srsly
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays
from spacy.tokens import Doc, Span

from ...pipeline.gold import trim_mentions
from ...pipeline.windows import may_start_sentence
from ...retrieval.encoder import SentenceEncoder
from ...retrieval.examples import LabelledText, PoolText
from ...retrieval.index import META, ExampleIndex, incomplete_pool
from ...util import CharSpan, is_blank, replaced
from ..interfaces import Demonstration

SPANS, VECTORS = "spans.json", "spans.safetensors"


class PoolSpans(NamedTuple):
    """The spans of a text in the pool.

    proposed (List[Tuple[int, int, List[str]]]): The spans found without demonstrations: the first
        character, one past the last, and the names of the voters that found the span. For annotated
        spans (`pre_extract = "gold"`) the only name is "".
    others (List[CharSpan]): Spans that are not entities.
    """

    proposed: List[Tuple[int, int, List[str]]]
    others: List[CharSpan]


class DemonstrationPool:
    """A pool of labelled texts. Everything is computed once, and saved.

    encoder (SentenceEncoder): Embeds texts and spans.
    index (ExampleIndex): The texts.
    spans (List[PoolSpans]): The spans of each text.
    vectors (ndarray): The vectors of all proposed spans, text by text. float32, shape (proposed spans,
        width).
    """

    def __init__(self, encoder: SentenceEncoder) -> None:
        self.encoder = encoder
        self.clear()

    def clear(self) -> None:
        """Delete all texts."""
        self.index = ExampleIndex(self.encoder)
        self.spans: List[PoolSpans] = []
        self.vectors = np.zeros((0, 0), dtype=np.float32)

    def __len__(self) -> int:
        return len(self.index)

    @property
    def sizes(self) -> List[int]:
        """RETURNS (List[int]): The number of proposed spans of each text."""
        return [len(spans.proposed) for spans in self.spans]

    def fill(
        self, texts: Sequence[PoolText], proposed: Sequence[Dict[str, List[CharSpan]]]
    ) -> None:
        """Replace the texts of the pool, and embed the new ones and their spans.

        texts (Sequence[PoolText]): The texts, from `choose_texts`.
        proposed (Sequence[Dict[str, List[CharSpan]]]): For each text, the spans found by each voter.
        """
        self.clear()
        self.index.add([text.example for text in texts])
        self.spans = [_spans(text, by_voter) for text, by_voter in zip(texts, proposed)]
        if texts:
            spans = [[(start, end) for start, end, _ in s.proposed] for s in self.spans]
            vectors = self.encoder.encode_spans([t.example.text for t in texts], spans)
            self.vectors = np.concatenate(vectors).astype(np.float32)

    def usable(self, labels: Iterable[str]) -> np.ndarray:
        """Find the texts that can be shown for some labels, see `is_about`.

        labels (Iterable[str]): The requested labels.
        RETURNS (ndarray): Whether each text can be shown. bool, shape (texts,).
        """
        requested = set(labels)
        return np.array(
            [is_about(example, requested) for example in self.index.examples], dtype=bool
        )

    def demonstration(self, number: int, labels: Iterable[str]) -> Demonstration:
        """Create a demonstration from a text.

        number (int): The index of the text.
        labels (Iterable[str]): The requested labels. Entities with other labels are left out.
        RETURNS (Demonstration): The text with its entities, and with at most as many spans that are not
            entities (at most one if the text has no entities).
        """
        example = self.index.examples[number]
        entities = tuple(entity for entity in example.entities if entity[2] in set(labels))
        others = self.spans[number].others[: max(len(entities), 1)]
        return Demonstration(example.text, entities, tuple(others))

    def to_bytes(self) -> bytes:
        return srsly.msgpack_dumps(
            {"index": self.index.to_bytes(), "spans": self._spans(), "vectors": self._vectors()}
        )

    def from_bytes(self, data: bytes) -> "DemonstrationPool":
        """RAISES (LLMNERError): If the bytes are not a serialized pool."""
        try:
            saved = srsly.msgpack_loads(data)
            index = ExampleIndex(self.encoder).from_bytes(saved["index"])
            return self._restore(index, saved["spans"], saved["vectors"])
        except Exception as e:
            raise incomplete_pool("the given bytes", e) from e

    def to_disk(self, path: Path) -> None:
        with replaced(path, last=META) as folder:
            srsly.write_json(folder / SPANS, self._spans())
            (folder / VECTORS).write_bytes(self._vectors())
            self.index.to_disk(folder)

    def from_disk(self, path: Path) -> "DemonstrationPool":
        """RAISES (LLMNERError): If the folder is incomplete or damaged."""
        try:
            index = ExampleIndex(self.encoder).from_disk(path)
            spans, vectors = srsly.read_json(path / SPANS), (path / VECTORS).read_bytes()
            return self._restore(index, spans, vectors)
        except Exception as e:
            raise incomplete_pool(path, e) from e

    def _spans(self) -> List[Dict[str, Any]]:
        return [{"proposed": s.proposed, "others": s.others} for s in self.spans]

    def _vectors(self) -> bytes:
        return save_arrays({"spans": self.vectors})

    def _restore(
        self, index: ExampleIndex, spans: List[Dict[str, Any]], vectors: bytes
    ) -> "DemonstrationPool":
        # Everything is read before anything is replaced.
        read = [
            PoolSpans(
                [(start, end, list(names)) for start, end, names in saved["proposed"]],
                [(start, end) for start, end in saved["others"]],
            )
            for saved in spans
        ]
        array = load_arrays(vectors)["spans"]
        n_spans = sum(len(of_text.proposed) for of_text in read)
        if not (len(read) == len(index) and len(array) == n_spans):
            there = (
                f"{len(index)} texts, spans of {len(read)}, and {len(array)} vectors of {n_spans}"
            )
            raise ValueError(f"there are {there}")
        self.index, self.spans, self.vectors = index, read, array
        return self


def is_about(example: LabelledText, labels: Set[str]) -> bool:
    """RETURNS (bool): Whether a text has an entity with one of the labels, or no entities."""
    return not example.entities or any(label in labels for _, _, label in example.entities)


def pool_texts(docs: Iterable[Doc]) -> Iterator[PoolText]:
    """Split annotated Docs into texts. These are the sentences of a Doc if it has sentence boundaries, or
    else the whole Doc.

    docs (Iterable[Doc]): The Docs.
    YIELDS (PoolText): The texts, without duplicates, blank texts, texts in which a token is not annotated,
        and texts that start or end inside an entity.
    """
    seen: Set[Any] = set()
    for doc in docs:
        if not doc.has_annotation("ENT_IOB"):
            continue
        doc = trim_mentions(doc)
        doc_id = LabelledText(doc.text).hash
        for part in doc.sents if doc.has_annotation("SENT_START") else [doc[:]]:
            text = _pool_text(part, doc_id)
            key = (text.example.hash, text.example.entities)
            known = all(token.ent_iob for token in part) and not _cuts_entity(part)
            if text.words and key not in seen and known:
                seen.add(key)
                yield text


def _cuts_entity(part: Span) -> bool:
    """RETURNS (bool): Whether an entity continues at the first token, or at the token after the text."""
    following = part.doc[part.end : part.end + 1]
    return any(token.ent_iob == 1 for token in (*part[:1], *following))


def choose_texts(texts: Sequence[PoolText], size: int) -> List[PoolText]:
    """Choose texts so that all labels occur in about the same number of texts. The next text is always one
    with the label that has the fewest texts so far. Texts without entities count as a label of their own.

    texts (Sequence[PoolText]): The texts to choose from.
    size (int): Maximum number of texts.
    RETURNS (List[PoolText]): The chosen texts, in the same order.
    """
    labels = [sorted({x for _, _, x in t.example.entities}) or [""] for t in texts]
    by_label: Dict[str, List[int]] = {}
    for number, of_text in enumerate(labels):
        for label in of_text:
            by_label.setdefault(label, []).append(number)
    queues = {label: iter(numbers) for label, numbers in sorted(by_label.items())}
    counts = dict.fromkeys(queues, 0)
    chosen: Set[int] = set()
    while queues and len(chosen) < size:
        label = min(queues, key=lambda label: counts[label])
        number = next((n for n in queues[label] if n not in chosen), -1)
        if number < 0:
            del queues[label]
            continue
        chosen.add(number)
        for other in labels[number]:
            counts[other] += 1
    return [texts[number] for number in sorted(chosen)]


def _pool_text(part: Span, doc_id: str) -> PoolText:
    tokens = [token for token in part if not is_blank(token.text)]
    words = [(t.idx, t.idx + len(t)) for t in tokens]
    first, last = (words[0][0], words[-1][1]) if words else (0, 0)
    entities = tuple(
        (ent.start_char - first, ent.end_char - first, ent.label_)
        for ent in part.ents
        if first <= ent.start_char and ent.end_char <= last
    )
    example = LabelledText(part.doc.text[first:last], entities, doc_id)
    # Guessed even if the Doc has sentence boundaries, since then the text is a single sentence.
    begins = frozenset(
        k for k in range(1, len(tokens)) if may_start_sentence(tokens, k, known=False)
    )
    return PoolText(example, [(start - first, end - first) for start, end in words], begins)


def _spans(text: PoolText, by_voter: Dict[str, List[CharSpan]]) -> PoolSpans:
    names: Dict[CharSpan, List[str]] = {}
    for name, spans in by_voter.items():
        for span in spans:
            names.setdefault(span, []).append(name)
    proposed = [(start, end, names[start, end]) for start, end in sorted(names)]
    entities = text.example.entities
    others = [span for span in sorted(names) if not _touches(span, entities)]
    if not others:
        # No voter was wrong, so the longest word outside the entities serves as an example of a span that
        # is not an entity.
        free = [word for word in text.words if not _touches(word, entities)]
        others = sorted(free, key=lambda word: word[0] - word[1])[:1]
    return PoolSpans(proposed, others)


def _touches(span: CharSpan, entities: Iterable[Tuple[int, int, str]]) -> bool:
    return any(span[0] < end and start < span[1] for start, end, _ in entities)
