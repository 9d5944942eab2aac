"""Provenance: who proposed a span, how each voter voted, and what the verifier decided. Also, which voters
failed on a text."""

from dataclasses import dataclass, field
from typing import Any, Dict, Iterable, List, Optional

from spacy.tokens import Doc, Span

from ..pipeline.predictions import Prediction
from ..util import CharSpan
from .interfaces import Task
from .stages import Decision


@dataclass
class TracedPrediction(Prediction):
    """A prediction with its provenance.

    failed (Dict[str, str]): The voters that were left out for a part of the Doc, with the reason.
    traces (Dict[CharSpan, Dict[str, Any]]): The provenance of each span, by its characters. Empty if
        `provenance` is off.
    rejected (Optional[List[Dict[str, Any]]]): The rejected spans with their provenance. None if
        `provenance` is off.
    """

    failed: Dict[str, str] = field(default_factory=dict)
    traces: Dict[CharSpan, Dict[str, Any]] = field(default_factory=dict)
    rejected: Optional[List[Dict[str, Any]]] = None

    def write_extensions(self, doc: Doc, spans_key: str) -> None:
        """Write the provenance to the extension attributes of a Doc and its spans. An attribute is only set
        to None if it has a value from an earlier run.

        doc (Doc): The Doc, with its predicted spans.
        spans_key (str): Key of the predicted spans in doc.spans.
        """
        if self.failed or doc._.el4ner_failed is not None:
            doc._.el4ner_failed = self.failed or None
        if self.rejected is not None or doc._.el4ner_rejected is not None:
            doc._.el4ner_rejected = self.rejected
        if self.traces:
            for span in doc.spans[spans_key]:
                span._.el4ner = self.traces[span.start_char, span.end_char]


def failures(tasks: Iterable[Task]) -> Dict[str, str]:
    """RETURNS (Dict[str, str]): The voters that failed on any of the tasks, with their first reason."""
    out: Dict[str, str] = {}
    for task in tasks:
        out = {**task.failed, **out}
    return out


def trace(decision: Decision) -> Dict[str, Any]:
    """RETURNS (Dict[str, Any]): The value of `span._.el4ner` for a decision. It can be serialized."""
    return {
        "proposed": list(decision.proposed),
        "votes": {name: list(vote) for name, vote in decision.votes.items()},
        "voted": decision.voted,
        "verified": decision.verified,
        "failed": dict(decision.failed),
    }


def rejected(decision: Decision) -> Dict[str, Any]:
    """RETURNS (Dict[str, Any]): An item of `doc._.el4ner_rejected`. It can be serialized. The label is ""
    if the vote was that the span is not an entity."""
    span = {"start": decision.start, "end": decision.end, "label": decision.label}
    return {**span, **trace(decision)}


# Register them even if `provenance` is off: it can be set later, and an unpickled pipeline needs them.
if not Span.has_extension("el4ner"):
    Span.set_extension("el4ner", default=None)
if not Doc.has_extension("el4ner_failed"):
    Doc.set_extension("el4ner_failed", default=None)
if not Doc.has_extension("el4ner_rejected"):
    Doc.set_extension("el4ner_rejected", default=None)
