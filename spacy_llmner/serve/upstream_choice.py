"""One answer of an upstream server, with the entities that were asked for."""

from typing import Any, Dict, List, Mapping, Optional, Sequence

from ..ember_probe.streaming.redaction import Restorer
from .entities import MarkedReader, Part, final_entities
from .protocol import EntityOptions
from .request_errors import unsupported

# What a redacted answer can have next to its text. Other fields could contain entities.
SAFE = ("index", "finish_reason")
# Fields of a request whose results can't be redacted.
NOT_REDACTED = ("audio", "functions", "logprobs", "modalities", "tools", "top_logprobs")


class UpstreamChoice:
    """Reads one choice, in one piece or in chunks.

    ember (EmberProbe): The component that finds entities.
    options (EntityOptions): What to do with entities.
    labels (Optional[Sequence[str]]): Labels to find, in words.
    kept (Optional[Sequence[str]]): Labels to keep.
    originals (Mapping[str, str]): Original texts of the placeholders in the prompt.
    """

    def __init__(
        self,
        ember: Any,
        options: EntityOptions,
        labels: Optional[Sequence[str]],
        kept: Optional[Sequence[str]],
        originals: Mapping[str, str],
    ) -> None:
        self.ended = False
        self._redacts = options.mode == "redact"
        self._restorer = Restorer(originals)
        self._reader: Optional[MarkedReader] = None
        if options.mode is not None:
            self._reader = MarkedReader(ember.reader(labels=labels), options, kept)

    def read(self, choice: Dict[str, Any]) -> List[Dict[str, Any]]:
        """Read the next chunk.

        choice (Dict[str, Any]): The choice in the chunk.
        RETURNS (List[Dict[str, Any]]): The choices to send instead of it: none if all of its text is held
            back, and the rest of the text in one of its own.
        """
        if self.ended:  # some servers add a note about the whole answer
            return [] if self._redacts else [choice]
        delta = choice.get("delta")
        part = self._push(choice.get("text") if delta is None else delta.get("content"))
        if choice.get("finish_reason") is None:
            is_held = not (part.text or part.entities or self._has_more(choice))
            return [] if is_held else [self._with(choice, part)]
        self.ended = True
        rest = self._close()
        part = Part(part.text + rest.text, part.entities + rest.entities)
        before = [self._with(self._empty(choice), part)] if part.text or part.entities else []
        return [*before, self._with(choice, Part("", []))]

    def read_whole(self, choice: Dict[str, Any]) -> None:
        """Change a choice of an answer that came in one piece."""
        message = choice.get("message")
        holder, key = (choice, "text") if message is None else (message, "content")
        part = self._push(holder.get(key))
        rest = self._close()
        entities = final_entities(part.entities + rest.entities)
        if self._redacts:
            self._keep_safe(choice, message)
        if holder.get(key) is not None or part.text or rest.text:
            holder[key] = part.text + rest.text
        if self._reader is not None:
            holder["entities"] = entities

    def _push(self, text: Any) -> Part:
        text = self._restorer.push(text if isinstance(text, str) else "")
        return Part(text, []) if self._reader is None else self._reader.push(text)

    def _close(self) -> Part:
        rest = self._restorer.close()
        if self._reader is None:
            return Part(rest, [])
        part, last = self._reader.push(rest), self._reader.close()
        return Part(part.text + last.text, part.entities + last.entities)

    def _with(self, choice: Dict[str, Any], part: Part) -> Dict[str, Any]:
        """RETURNS (Dict[str, Any]): A choice with other text and entities."""
        choice = dict(choice)
        delta = dict(choice["delta"]) if choice.get("delta") is not None else None
        has_content = delta is not None and delta.get("content") is not None
        if self._redacts:
            self._keep_safe(choice, delta)
        if delta is None:
            choice["text"] = part.text
        else:
            if part.text or has_content:
                delta["content"] = part.text
            choice["delta"] = delta
        if part.entities:
            choice["entities"] = part.entities
        return choice

    @staticmethod
    def _empty(choice: Dict[str, Any]) -> Dict[str, Any]:
        """RETURNS (Dict[str, Any]): A choice that has nothing yet."""
        holder: Dict[str, Any] = {"text": ""} if choice.get("delta") is None else {"delta": {}}
        return {"index": choice.get("index", 0), **holder, "finish_reason": None}

    @staticmethod
    def _has_more(choice: Dict[str, Any]) -> bool:
        """RETURNS (bool): Whether a choice has more than text: a role, or the call of a tool."""
        delta = choice.get("delta") or {}
        return any(value for key, value in delta.items() if key != "content")

    @staticmethod
    def _keep_safe(choice: Dict[str, Any], message: Optional[Dict[str, Any]]) -> None:
        """Remove all fields that could contain entities. The text is set afterwards."""
        for key in set(choice) - {*SAFE, "delta", "message"}:
            del choice[key]
        if message is not None:
            for key in set(message) - {"role"}:
                del message[key]


def check_can_redact(body: Dict[str, Any], options: EntityOptions) -> None:
    """RAISES (RequestError): If the answer would have parts that can't be redacted."""
    for field in NOT_REDACTED:
        if options.mode == "redact" and body.get(field):
            raise unsupported(field, body[field], "what it leads to can't be redacted")
