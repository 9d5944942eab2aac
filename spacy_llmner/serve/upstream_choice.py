"""The answer of an upstream server to POST /v1/chat/completions or /v1/completions, with the entities that
were asked for."""

from typing import Any, Dict, List, Optional

from .entities import Part, final_entities
from .sse import DONE, as_event
from .upstream_text import UpstreamText, Wanted, joined

# What a redacted answer can have next to its text. Other fields could contain entities.
SAFE = ("index", "finish_reason")


class UpstreamChoices:
    """Reads an answer with one or more choices, whole or in chunks.

    wanted (Optional[Wanted]): What to do with entities; None for nothing.
    """

    # What follows the last chunk.
    end: Optional[str] = DONE

    def __init__(self, wanted: Optional[Wanted]) -> None:
        self.wanted = wanted
        self._choices: Dict[int, UpstreamChoice] = {}

    def read_whole(self, data: Dict[str, Any]) -> Dict[str, Any]:
        """RETURNS (Dict[str, Any]): What to send instead of a whole answer."""
        for choice in data.get("choices", []) if self.wanted else []:
            self._choice(choice).read_whole(choice)
        return data

    def read(self, chunk: Dict[str, Any]) -> List[Dict[str, Any]]:
        """RETURNS (List[Dict[str, Any]]): The chunks to send instead of one."""
        choices = chunk.get("choices")
        if self.wanted is None or not choices:
            return [chunk]
        sent = [new for choice in choices for new in self._choice(choice).read(choice)]
        # Each choice has a chunk of its own. `usage`, if it is in this chunk, is in the last one.
        before = [{**chunk, "usage": None} if "usage" in chunk else chunk for _ in sent[1:]]
        if not sent:
            return [{**chunk, "choices": []}] if chunk.get("usage") else []
        return [{**one, "choices": [choice]} for one, choice in zip([*before, chunk], sent)]

    def missing(self) -> Optional[str]:
        """RETURNS (Optional[str]): What is missing if the stream ends now."""
        is_whole = all(choice.ended for choice in self._choices.values())
        return None if is_whole else "an answer has no finish_reason"

    def as_event(self, chunk: Dict[str, Any]) -> str:
        """RETURNS (str): A chunk, or an error, as an event."""
        return as_event(chunk)

    def _choice(self, choice: Dict[str, Any]) -> "UpstreamChoice":
        assert self.wanted is not None
        index = choice.get("index", 0)
        if index not in self._choices:
            self._choices[index] = UpstreamChoice(self.wanted)
        return self._choices[index]


class UpstreamChoice:
    """Reads one choice, in one piece or in chunks.

    wanted (Wanted): What to do with entities.
    """

    def __init__(self, wanted: Wanted) -> None:
        self.ended = False
        self._wanted = wanted
        self._redacts = wanted.redacts
        self._text = UpstreamText(wanted)

    def read(self, choice: Dict[str, Any]) -> List[Dict[str, Any]]:
        """Read the next chunk.

        choice (Dict[str, Any]): The choice in the chunk.
        RETURNS (List[Dict[str, Any]]): The choices to send instead of it: none if all of its text is held
            back, and the rest of the text in one of its own.
        """
        if self.ended:  # some servers add a note about the whole answer
            return [] if self._redacts else [choice]
        delta = choice.get("delta")
        part = self._text.push(choice.get("text") if delta is None else delta.get("content"))
        if choice.get("finish_reason") is None:
            is_held = not (part.text or part.entities or self._has_more(choice))
            return [] if is_held else [self._with(choice, part)]
        self.ended = True
        part = joined(part, self._text.close())
        before = [self._with(self._empty(choice), part)] if part.text or part.entities else []
        return [*before, self._with(choice, Part("", []))]

    def read_whole(self, choice: Dict[str, Any]) -> None:
        """Change a choice of an answer that came in one piece."""
        message = choice.get("message")
        holder, key = (choice, "text") if message is None else (message, "content")
        part = joined(self._text.push(holder.get(key)), self._text.close())
        if self._redacts:
            self._keep_safe(choice, message)
        # Some servers send a list of parts, which is not read.
        if isinstance(holder.get(key), str) or part.text:
            holder[key] = part.text
        if self._wanted.options.mode is not None:
            holder["entities"] = final_entities(part.entities)

    def _with(self, choice: Dict[str, Any], part: Part) -> Dict[str, Any]:
        """RETURNS (Dict[str, Any]): A choice with other text and entities."""
        choice = dict(choice)
        delta = dict(choice["delta"]) if choice.get("delta") is not None else None
        has_content = delta is not None and isinstance(delta.get("content"), str)
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
