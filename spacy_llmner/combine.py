"""`llmner_combine`: one doc.ents from what several components found.

Put it behind components that write span groups of their own (`spans_key`). A span with its label gets
the mean of its scores over all groups, 0 where a group does not have it. What fewer than `min_votes`
groups have is dropped; of what overlaps the highest mean is kept, then the longest.
"""

import warnings
from typing import Dict, List, Tuple

from spacy.language import Language
from spacy.tokens import Doc, Span, SpanGroup

from .align import Mention, flat
from .errors import Errors, LLMNERError, Warnings, wrong
from .pipe import LLMNERPipe, beside
from .scorers import span_scores


@Language.factory(
    "llmner_combine",
    requires=["doc.spans"],
    assigns=["doc.ents", "doc.spans"],
    default_config={"keys": [], "min_votes": 2, "spans_key": "combined", "overwrite": True},
)
def make_llmner_combine(
    nlp: Language, name: str, keys: List[str], min_votes: int, spans_key: str, overwrite: bool
) -> "Combine":
    """Build an `llmner_combine`. It warns if two components write the same of its span groups.

    keys (List[str]): The span groups to combine.
    min_votes (int): How many of them must have a span.
    spans_key (str): Where all that was kept goes, with `attrs["scores"]`.
    overwrite (bool): Replace entities on the Doc that are in none of the groups, such as those of an
        entity ruler, whose components must have `overwrite = false` too.
    RAISES (LLMNERError): If a setting makes no sense.
    """
    for key in keys:
        pipes = [(other, pipe) for other, pipe in nlp.pipeline if isinstance(pipe, LLMNERPipe)]
        writers = [other for other, pipe in pipes if pipe.cfg["spans_key"] == key]
        if len(writers) > 1:
            listed = ", ".join(writers)
            warnings.warn(Warnings.W012.format(name=name, key=key, writers=listed), stacklevel=2)
    return Combine(name, keys, min_votes, spans_key, overwrite)


class Combine:
    """See make_llmner_combine."""

    def __init__(
        self, name: str, keys: List[str], min_votes: int, spans_key: str, overwrite: bool = True
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

    def __call__(self, doc: Doc) -> Doc:
        """Set doc.ents and doc.spans[spans_key].

        RAISES (LLMNERError): If a component has not written its span group.
        """
        missing = [key for key in self.keys if key not in doc.spans]
        if missing:
            there = ", ".join(doc.spans) or "none"
            message = Errors.E038.format(name=self.name, missing=", ".join(missing), there=there)
            raise LLMNERError(message)
        scores: Dict[Tuple[int, int, str], List[float]] = {}
        for key in self.keys:
            for span, score in span_scores(doc, key).items():
                scores.setdefault(span, []).append(score)
        kept = [
            Mention(start, end, label, sum(found) / len(self.keys))
            for (start, end, label), found in sorted(scores.items())
            if len(found) >= self.min_votes
        ]
        spans = [Span(doc, m.start, m.end, label=m.label) for m in kept]
        attrs = {"scores": [m.score for m in kept], "method": self.name}
        doc.spans[self.spans_key] = SpanGroup(doc, name=self.spans_key, spans=spans, attrs=attrs)
        ents = [Span(doc, m.start, m.end, label=m.label) for m in flat(kept)]
        if not self.overwrite:
            others = [e for e in doc.ents if (e.start, e.end, e.label_) not in scores]
            ents = others + beside(ents, others)
        doc.set_ents(ents, default="outside")
        return doc
