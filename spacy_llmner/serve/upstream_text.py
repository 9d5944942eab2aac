"""One text that an upstream server writes, with the entities that were asked for."""

from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence

from ..ember_probe.streaming.redaction import Restorer
from .entities import MarkedReader, Part
from .protocol import EntityOptions
from .request_errors import unsupported

# Fields of a request whose results can't be redacted, and those whose results would keep the placeholders
# of a redacted prompt.
TOOLS = ("functions", "tools")
NOT_REDACTED = (*TOOLS, "audio", "logprobs", "modalities", "top_logprobs")


class Wanted(NamedTuple):
    """What to do with the texts of an answer.

    ember (EmberProbe): The component that finds entities.
    options (EntityOptions): What to do with entities.
    labels (Optional[Sequence[str]]): Labels to find, in words.
    kept (Optional[Sequence[str]]): Labels to keep.
    originals (Mapping[str, str]): Original texts of the placeholders in the prompt.
    """

    ember: Any
    options: EntityOptions
    labels: Optional[Sequence[str]]
    kept: Optional[Sequence[str]]
    originals: Mapping[str, str]

    @property
    def redacts(self) -> bool:
        """RETURNS (bool): Whether entities in the answer are redacted."""
        return self.options.mode == "redact"

    def restored(self, text: str) -> str:
        """RETURNS (str): A whole text with the originals of all placeholders."""
        restorer = Restorer(self.originals)
        return restorer.push(text) + restorer.close()


class UpstreamText:
    """Reads one text, in one piece or several.

    wanted (Wanted): What to do with it.
    """

    def __init__(self, wanted: Wanted) -> None:
        self._restorer = Restorer(wanted.originals)
        self._reader: Optional[MarkedReader] = None
        if wanted.options.mode is not None:
            reader = wanted.ember.reader(labels=wanted.labels)
            self._reader = MarkedReader(reader, wanted.options, wanted.kept)

    def push(self, text: Any) -> Part:
        """text (Any): The next piece, or something else if there is none.
        RETURNS (Part): What can be sent.
        """
        text = self._restorer.push(text if isinstance(text, str) else "")
        return Part(text, []) if self._reader is None else self._reader.push(text)

    def close(self) -> Part:
        """RETURNS (Part): The rest, after the end of the text. Call it once."""
        rest = self._restorer.close()
        if self._reader is None:
            return Part(rest, [])
        return joined(self._reader.push(rest), self._reader.close())


def joined(first: Part, second: Part) -> Part:
    """RETURNS (Part): Two parts as one."""
    entities: List[Dict[str, Any]] = first.entities + second.entities
    return Part(first.text + second.text, entities)


def check_can_redact(body: Dict[str, Any], options: EntityOptions) -> None:
    """RAISES (RequestError): If the answer would have parts that can't be redacted, or in which
    placeholders can't be replaced."""
    for field in NOT_REDACTED:
        if options.mode == "redact" and body.get(field):
            raise unsupported(field, body[field], "what it leads to can't be redacted")
    for field in TOOLS:
        if options.redact_prompt and body.get(field):
            reason = "its calls would have the placeholders of the redacted prompt"
            raise unsupported(field, body[field], reason)
