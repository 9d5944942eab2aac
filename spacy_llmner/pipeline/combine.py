"""`llmner_combine`: combine the spans of several components into one doc.ents.

Add it to the pipeline after components that write to different span groups (`spans_key`). The score
of a span with its label is the mean of its scores over all groups, with 0 for groups that don't
contain it. Spans that are in fewer than `min_votes` groups are dropped. Of overlapping spans, the one
with the highest mean score is kept; if the scores are equal, the longest.
"""

import warnings
from typing import Any, Dict, Iterable, Iterator, List, Optional, Sequence, Tuple
from weakref import ref

from spacy.language import Language
from spacy.tokens import Doc, Span, SpanGroup

from ..errors import Errors, LLMNERError, Warnings, wrong
from .base import LLMNERPipe
from .predictions import blocked_tokens, without_overlaps, write_group
from .scorers import chars, span_offsets
from .spans import Mention, filter_overlapping


@Language.factory(
    "llmner_combine",
    requires=["doc.spans"],
    assigns=["doc.ents", "doc.spans"],
    default_config={"keys": [], "min_votes": 2, "spans_key": "combined", "overwrite": True},
)
def make_llmner_combine(
    nlp: Language, name: str, keys: List[str], min_votes: int, spans_key: str, overwrite: bool
) -> "Combine":
    """Create an `llmner_combine`. Its first call warns if several components write to the same span
    group.

    keys (List[str]): The keys of the span groups to combine.
    min_votes (int): The minimum number of groups that must contain a span. Default 2.
    spans_key (str): The key of the span group for all spans that are kept, with their scores in
        `attrs["scores"]`. Default "combined".
    overwrite (bool): Replace entities that are already set on the Doc and don't come from the combined
        components, such as those of an entity ruler. To keep them, set it to False here and in the
        combined components. Default True.
    RETURNS (Combine): The component.
    RAISES (LLMNERError): If a setting is not valid.
    """
    return Combine(name, keys, min_votes, spans_key, overwrite, nlp)


class Combine:
    """The component `llmner_combine`. See `make_llmner_combine`."""

    def __init__(
        self,
        name: str,
        keys: List[str],
        min_votes: int,
        spans_key: str,
        overwrite: bool = True,
        nlp: Optional[Language] = None,
    ) -> None:
        if not keys or len(set(keys)) < len(keys):
            must = "the spans_key of each component to combine, all of them different"
            raise wrong("keys", name, keys, must)
        if not 1 <= min_votes <= len(keys):
            raise wrong("min_votes", name, min_votes, f"from 1 to {len(keys)}, the number of keys")
        self.name = name
        self.keys = keys
        self.min_votes = min_votes
        self.spans_key = spans_key
        self.overwrite = overwrite
        # Needed for the check in the first call: not all components are loaded when this one is created.
        self._pipeline = None if nlp is None else ref(nlp)

    def __getstate__(self) -> Dict[str, Any]:
        return {**vars(self), "_pipeline": None}

    def __call__(self, doc: Doc) -> Doc:
        """Set doc.ents and doc.spans[spans_key].

        doc (Doc): The Doc, modified in place.
        RETURNS (Doc): The Doc.
        RAISES (LLMNERError): If one of the span groups is missing.
        """
        self._warn_about_shared_groups()
        missing = [key for key in self.keys if key not in doc.spans]
        if missing:
            there = ", ".join(doc.spans) or "none"
            message = Errors.E038.format(name=self.name, missing=", ".join(missing), there=there)
            raise LLMNERError(message)
        scores: Dict[Tuple[int, int, str], List[float]] = {}
        for key in self.keys:
            for span_key, score in _scored(doc.spans[key]).items():
                scores.setdefault(span_key, []).append(score)
        kept = [
            Mention(start, end, label, sum(each) / len(self.keys))
            for (start, end, label), each in sorted(scores.items())
            if len(each) >= self.min_votes
        ]
        others, blocked = (
            ([], []) if self.overwrite else (self._other_ents(doc), blocked_tokens(doc))
        )
        ents = without_overlaps(_spans(doc, filter_overlapping(kept)), [*others, *blocked])
        spans = {(s.start_char, s.end_char, s.label_): s for s in _spans(doc, kept)}
        found = [(spans.get((m.start, m.end, m.label)), m.score) for m in kept]
        scored = [(span, score) for span, score in found if span is not None]
        write_group(doc, self.spans_key, scored, ents, self.name)
        doc.set_ents([*others, *ents], blocked=blocked, default="outside")
        return doc

    def pipe(self, stream: Iterable[Doc], *, batch_size: int = 1) -> Iterator[Doc]:
        """Annotate a stream of Docs.

        YIELDS (Doc): The Docs in order.
        RAISES (LLMNERError): See `__call__`. The error handler is not called.
        """
        return map(self, stream)

    def _other_ents(self, doc: Doc) -> List[Span]:
        """RETURNS (List[Span]): The entities that were set neither by the combined components nor by an
        earlier call.
        """
        groups = [doc.spans[key] for key in (*self.keys, self.spans_key) if key in doc.spans]
        own = [ent for group in groups for ent in group.attrs.get("ents", [])]
        return [ent for ent in doc.ents if chars(ent) not in own]

    def _warn_about_shared_groups(self) -> None:
        nlp = self._pipeline and self._pipeline()
        self._pipeline = None
        pipes = [(name, p) for name, p in nlp.pipeline if isinstance(p, LLMNERPipe)] if nlp else []
        for key in self.keys:
            writers = [name for name, pipe in pipes if pipe.cfg["spans_key"] == key]
            if len(writers) > 1:
                listed = ", ".join(writers)
                message = Warnings.W012.format(name=self.name, key=key, writers=listed)
                warnings.warn(message, stacklevel=3)


def _scored(group: SpanGroup) -> Dict[Tuple[int, int, str], float]:
    """RETURNS (Dict[Tuple[int, int, str], float]): The score of each span, by start and end (in
    characters) and label. 1.0 in groups without scores, such as those of a `span_ruler`.
    """
    offsets = span_offsets(group)
    scores = group.attrs.get("scores", ())
    known = len(scores) == len(offsets)
    return {
        (start, end, label): float(scores[k]) if known else 1.0
        for k, (start, end, label) in enumerate(offsets)
    }


def _spans(doc: Doc, mentions: Sequence[Mention]) -> List[Span]:
    """RETURNS (List[Span]): The mentions as spans. Mentions that no longer match the Doc's tokens,
    because tokens were merged or split, are left out.
    """
    spans = (doc.char_span(m.start, m.end, label=m.label) for m in mentions)
    return [span for span in spans if span is not None]
