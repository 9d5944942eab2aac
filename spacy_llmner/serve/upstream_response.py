"""The answer of an upstream server to POST /v1/responses, with the entities that were asked for."""

from typing import Any, Dict, List, Optional, Tuple

from .entities import Part, final_entities
from .sse import as_event
from .upstream_text import UpstreamText, Wanted, joined

# The last event of a stream.
LAST = ("response.completed", "response.incomplete", "response.failed", "error")
# What a redacted response and its items can have next to their texts. Other fields could contain entities.
SAFE_RESPONSE = (
    "background",
    "completed_at",
    "created_at",
    "error",
    "id",
    "incomplete_details",
    "max_output_tokens",
    "model",
    "object",
    "parallel_tool_calls",
    "status",
    "temperature",
    "tool_choice",
    "tools",
    "top_p",
    "usage",
)
SAFE_ITEM = ("id", "role", "status", "type")
SAFE_EVENT = ("content_index", "item_id", "output_index", "type")
# Position of an item in the output, and of a text in it.
Where = Tuple[int, int]


class UpstreamResponse:
    """Reads a response, whole or as a stream of events.

    wanted (Optional[Wanted]): What to do with entities; None for nothing.
    """

    # What follows the last event.
    end: Optional[str] = None

    def __init__(self, wanted: Optional[Wanted]) -> None:
        self.wanted = wanted
        self._redacts = wanted is not None and wanted.redacts
        self._texts: Dict[Where, ResponseText] = {}
        self._has_ended = False
        self._number = 0

    def read_whole(self, data: Dict[str, Any]) -> Dict[str, Any]:
        """RETURNS (Dict[str, Any]): What to send instead of a whole response."""
        return data if self.wanted is None else self._response(data)

    def read(self, event: Dict[str, Any]) -> List[Dict[str, Any]]:
        """RETURNS (List[Dict[str, Any]]): The events to send instead of one."""
        self._has_ended = self._has_ended or event.get("type") in LAST
        return [event] if self.wanted is None else self._read(event)

    def missing(self) -> Optional[str]:
        """RETURNS (Optional[str]): What is missing if the stream ends now."""
        return None if self._has_ended else "the response is not complete"

    def as_event(self, event: Dict[str, Any]) -> str:
        """RETURNS (str): An event, or an error, as it is sent, with the next number."""
        error = event.get("error")
        if "type" not in event and isinstance(error, dict):
            fields = {field: error.get(field) for field in ("code", "message", "param")}
            event = {"type": "error", **fields}
        number, self._number = self._number, self._number + 1
        return as_event({**event, "sequence_number": number}, str(event.get("type")))

    def _read(self, event: Dict[str, Any]) -> List[Dict[str, Any]]:
        kind = event.get("type")
        where = (event.get("output_index", 0), event.get("content_index", 0))
        if kind == "response.output_text.delta":
            return self._pieces(event, where, self._text(where).push(event.get("delta")))
        if kind == "response.output_text.done":
            rest = self._text(where).close(event.get("text"))
            done = {**self._kept(event), "text": self._text(where).text}
            return [*self._pieces(event, where, rest), self._without_logprobs(done)]
        if kind == "response.output_text.annotation.added" and not self._redacts:
            return [{**event, "annotation_index": self._text(where).next_annotation()}]
        if kind == "response.content_part.added":
            return [{**self._kept(event), "part": self._part(where, event.get("part"), False)}]
        if kind == "response.content_part.done":
            return [{**self._kept(event), "part": self._part(where, event.get("part"), True)}]
        if kind in ("response.output_item.added", "response.output_item.done"):
            is_done = kind.endswith("done")
            item = self._item(where[0], event.get("item"), is_done)
            return [{**self._kept(event), "item": item}]
        if isinstance(event.get("response"), dict):
            return [{**self._kept(event), "response": self._response(event["response"])}]
        return [event] if kind == "error" or not self._redacts else []

    def _pieces(self, event: Dict[str, Any], where: Where, part: Part) -> List[Dict[str, Any]]:
        """RETURNS (List[Dict[str, Any]]): Events for a part of a text, which came with an event."""
        kind, base, sent = "response.output_text.delta", _only(event, SAFE_EVENT), []
        if part.text:
            is_plain = event["type"] == kind and not self._redacts
            kept = event if is_plain else {**base, "type": kind, "logprobs": []}
            sent.append({**kept, "delta": part.text})
        for entity in part.entities:
            added = {
                "type": "response.output_text.annotation.added",
                "annotation_index": self._text(where).next_annotation(),
                "annotation": {"type": "entity", **entity},
            }
            sent.append({**base, **added})
        return sent

    def _response(self, response: Dict[str, Any]) -> Dict[str, Any]:
        """RETURNS (Dict[str, Any]): A response with changed texts."""
        assert self.wanted is not None
        output = response.get("output") or []
        is_done = response.get("status") not in ("in_progress", "queued")
        items = [self._item(i, item, is_done) for i, item in enumerate(output)]
        if self._redacts:
            return {**_only(response, SAFE_RESPONSE), "output": items}
        if isinstance(response.get("instructions"), str):
            response = {
                **response,
                "instructions": self.wanted.restored(response["instructions"]),
            }
        return {**response, "output": items}

    def _item(self, index: int, item: Any, is_done: bool) -> Any:
        """RETURNS (Any): A changed item of the output: a message, the call of a tool, reasoning."""
        if not isinstance(item, dict):
            return {} if self._redacts else item
        kept = _only(item, SAFE_ITEM) if self._redacts else item
        if item.get("type") == "reasoning" and self._redacts:
            return {**kept, "summary": []}
        if item.get("type") != "message":
            return kept
        content = enumerate(item.get("content") or [])
        return {**kept, "content": [self._part((index, i), part, is_done) for i, part in content]}

    def _part(self, where: Where, part: Any, is_done: bool) -> Any:
        """RETURNS (Any): A changed part of a message: a text, or a refusal."""
        if not isinstance(part, dict) or part.get("type") != "output_text":
            return _only(part, ("type",)) if self._redacts else part
        text = self._text(where)
        if is_done:
            text.close(part.get("text"))
        found = [{"type": "entity", **entity} for entity in final_entities(text.events)]
        others = [] if self._redacts else part.get("annotations") or []
        kept = _only(part, ("type",)) if self._redacts else part
        return self._without_logprobs({**kept, "text": text.text, "annotations": [*others, *found]})

    def _text(self, where: Where) -> "ResponseText":
        assert self.wanted is not None
        if where not in self._texts:
            self._texts[where] = ResponseText(self.wanted)
        return self._texts[where]

    def _kept(self, event: Dict[str, Any]) -> Dict[str, Any]:
        """RETURNS (Dict[str, Any]): What can be sent of an event, next to its text."""
        return _only(event, SAFE_EVENT) if self._redacts else event

    def _without_logprobs(self, holder: Dict[str, Any]) -> Dict[str, Any]:
        """RETURNS (Dict[str, Any]): Without the tokens of the text, if they could contain entities."""
        return {**holder, "logprobs": []} if self._redacts else holder


class ResponseText:
    """One text of a response. `text` is what can be sent of it, `events` its entities.

    wanted (Wanted): What to do with entities.
    """

    def __init__(self, wanted: Wanted) -> None:
        self.text = ""
        self.events: List[Dict[str, Any]] = []
        self._reader = UpstreamText(wanted)
        self._n_read = 0
        self._n_annotations = 0
        self._is_open = True

    def push(self, piece: Any) -> Part:
        """RETURNS (Part): What can be sent after the next piece."""
        self._n_read += len(piece) if isinstance(piece, str) else 0
        return self._add(self._reader.push(piece))

    def close(self, whole: Any) -> Part:
        """whole (Any): The whole text. What did not come in pieces is read now.
        RETURNS (Part): The rest. Nothing if it was closed before.
        """
        if not self._is_open:
            return Part("", [])
        self._is_open = False
        rest = self.push(whole[self._n_read :] if isinstance(whole, str) else "")
        return joined(rest, self._add(self._reader.close()))

    def next_annotation(self) -> int:
        """RETURNS (int): The number of the next annotation."""
        number, self._n_annotations = self._n_annotations, self._n_annotations + 1
        return number

    def _add(self, part: Part) -> Part:
        self.text += part.text
        self.events += part.entities
        return part


def _only(value: Any, fields: Tuple[str, ...]) -> Dict[str, Any]:
    return {field: value[field] for field in fields if isinstance(value, dict) and field in value}
