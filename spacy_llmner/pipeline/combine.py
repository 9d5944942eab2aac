"""`llmner_combine`: one doc.ents from what several components found.

Put it behind components that write span groups of their own (`spans_key`). A span with its label gets
the mean of its scores over all groups, 0 where a group does not have it. What fewer than `min_votes`
groups have is dropped; of what overlaps the highest mean is kept, then the longest.
"""

import warnings
from typing import Any, Dict, Iterable, Iterator, List, Optional, Sequence, Tuple
from weakref import ref

from spacy.language import Language
from spacy.tokens import Doc, Span, SpanGroup

from ..errors import Errors, LLMNERError, Warnings, wrong
from .base import LLMNERPipe
from .predictions import blocked_tokens, without_overlaps, write_group
from .scorers import chars, places_of
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
    """Build an `llmner_combine`. Its first call warns if two components write the same of its groups.

    keys (List[str]): The span groups to combine.
    min_votes (int): How many of them must have a span.
    spans_key (str): Where all that was kept goes, with `attrs["scores"]`.
    overwrite (bool): Replace entities that none of the groups' components has set, such as those of an
        entity ruler. To keep them, set it to false in these components too.
    RAISES (LLMNERError): If a setting makes no sense.
    """
    return Combine(name, keys, min_votes, spans_key, overwrite, nlp)


class Combine:
    """See make_llmner_combine."""

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
        # Until it was looked at once: when the component is made, those in front may not be loaded yet.
        self._pipeline = None if nlp is None else ref(nlp)

    def __getstate__(self) -> Dict[str, Any]:
        return {**vars(self), "_pipeline": None}

    def __call__(self, doc: Doc) -> Doc:
        """Set doc.ents and doc.spans[spans_key].

        RAISES (LLMNERError): If a component has not written its span group.
        """
        self._warn_about_shared_groups()
        missing = [key for key in self.keys if key not in doc.spans]
        if missing:
            there = ", ".join(doc.spans) or "none"
            message = Errors.E038.format(name=self.name, missing=", ".join(missing), there=there)
            raise LLMNERError(message)
        scores: Dict[Tuple[int, int, str], List[float]] = {}
        for key in self.keys:
            for place, score in _scored(doc.spans[key]).items():
                scores.setdefault(place, []).append(score)
        kept = [
            Mention(start, end, label, sum(each) / len(self.keys))
            for (start, end, label), each in sorted(scores.items())
            if len(each) >= self.min_votes
        ]
        others, blocked = (
            ([], []) if self.overwrite else (self._of_others(doc), blocked_tokens(doc))
        )
        ents = without_overlaps(_spans(doc, filter_overlapping(kept)), [*others, *blocked])
        spans = {(s.start_char, s.end_char, s.label_): s for s in _spans(doc, kept)}
        found = [(spans.get((m.start, m.end, m.label)), m.score) for m in kept]
        scored = [(span, score) for span, score in found if span is not None]
        write_group(doc, self.spans_key, scored, ents, self.name)
        doc.set_ents([*others, *ents], blocked=blocked, default="outside")
        return doc

    def pipe(self, stream: Iterable[Doc], *, batch_size: int = 1) -> Iterator[Doc]:
        """Annotate a stream of Docs. YIELDS (Doc): The Docs in order.
        RAISES (LLMNERError): As a call does, whatever the error handler is."""
        return map(self, stream)

    def _of_others(self, doc: Doc) -> List[Span]:
        """RETURNS (List[Span]): Entities that neither the components nor an earlier call have set."""
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
    """RETURNS (Dict[Tuple[int, int, str], float]): Score by start (in characters), end and label; 1.0 where
    there is none, as in the groups of a `span_ruler`."""
    places = places_of(group)
    scores = group.attrs.get("scores", ())
    known = len(scores) == len(places)
    return {
        (start, end, label): float(scores[k]) if known else 1.0
        for k, (start, end, label) in enumerate(places)
    }


def _spans(doc: Doc, mentions: Sequence[Mention]) -> List[Span]:
    """RETURNS (List[Span]): Without what tokens that were merged or split since do not fit."""
    spans = (doc.char_span(m.start, m.end, label=m.label) for m in mentions)
    return [span for span in spans if span is not None]
