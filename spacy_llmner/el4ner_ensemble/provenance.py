"""Where a span came from: who proposed it, how each LLM voted, what the verifier said; and which LLMs
failed on a text."""

from dataclasses import dataclass, field
from typing import Any, Dict, Iterable, List, Optional

from spacy.tokens import Doc, Span

from ..pipeline.predictions import Prediction
from .interfaces import Chars, Task
from .stages import Decision


@dataclass
class TracedPrediction(Prediction):
    """With what else there is to say.

    failed (Dict[str, str]): Voters that were left out for some of the Doc, and why.
    traces (Dict[Chars, Dict[str, Any]]): Where each span came from, by characters, if that is asked for.
    rejected (Optional[List[Dict[str, Any]]]): The same of those that were not kept, None if it is not
        asked for.
    """

    failed: Dict[str, str] = field(default_factory=dict)
    traces: Dict[Chars, Dict[str, Any]] = field(default_factory=dict)
    rejected: Optional[List[Dict[str, Any]]] = None

    def note(self, doc: Doc, spans_key: str) -> None:
        """Write it to the Doc's extensions. Nothing is written if there is nothing to say."""
        if self.failed or doc._.el4ner_failed is not None:  # of an earlier run
            doc._.el4ner_failed = self.failed or None
        if self.rejected is not None or doc._.el4ner_rejected is not None:
            doc._.el4ner_rejected = self.rejected
        if self.traces:
            for span in doc.spans[spans_key]:
                span._.el4ner = self.traces[span.start_char, span.end_char]


def failures(tasks: Iterable[Task]) -> Dict[str, str]:
    """RETURNS (Dict[str, str]): The voters that failed on any of some tasks, and why they first did."""
    out: Dict[str, str] = {}
    for task in tasks:
        out = {**task.failed, **out}
    return out


def trace(decision: Decision) -> Dict[str, Any]:
    """RETURNS (Dict[str, Any]): Plain values, for `span._.el4ner`."""
    return {
        "proposed": list(decision.proposed),
        "votes": {name: list(vote) for name, vote in decision.votes.items()},
        "voted": decision.voted,
        "verified": decision.verified,
        "failed": dict(decision.failed),
    }


def rejected(decision: Decision) -> Dict[str, Any]:
    """RETURNS (Dict[str, Any]): Plain values, for `doc._.el4ner_rejected`. No label: it was voted to be
    no entity."""
    where = {"start": decision.start, "end": decision.end, "label": decision.label}
    return {**where, **trace(decision)}


# Whether or not it is asked for now: it may be later, or by a pipeline that is unpickled.
if not Span.has_extension("el4ner"):
    Span.set_extension("el4ner", default=None)
if not Doc.has_extension("el4ner_failed"):
    Doc.set_extension("el4ner_failed", default=None)
if not Doc.has_extension("el4ner_rejected"):
    Doc.set_extension("el4ner_rejected", default=None)
