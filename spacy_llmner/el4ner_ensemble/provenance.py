"""Where a span came from: who proposed it, how each LLM voted, what the verifier said."""

from typing import Any, Dict, List

from spacy.tokens import Span

from ..pipe import Found
from .ensemble import Decision
from .tasks import Chars


class Traced(Found):
    """With where each span came from.

    traces (Dict[Chars, Dict[str, Any]]): By characters.
    """

    def __init__(self, ents: List, spans: List, traces: Dict[Chars, Dict[str, Any]]) -> None:
        super().__init__(ents, spans)
        self.traces = traces


def trace(decision: Decision) -> Dict[str, Any]:
    """RETURNS (Dict[str, Any]): Plain values, for `span._.el4ner`."""
    return {
        "proposed": list(decision.proposed),
        "votes": {name: list(vote) for name, vote in decision.votes.items()},
        "voted": decision.voted,
        "verified": decision.verified,
        "failed": dict(decision.failed),
    }


# Whether or not it is asked for now: it may be later, or by a pipeline that is unpickled.
if not Span.has_extension("el4ner"):
    Span.set_extension("el4ner", default=None)
