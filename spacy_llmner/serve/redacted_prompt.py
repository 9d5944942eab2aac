"""Redact a prompt before it leaves for an upstream server."""

from typing import Any, Callable, Dict, List, Optional, Sequence, Set

from ..ember_probe.streaming.redaction import Placeholders, Redactor
from .protocol import EntityOptions
from .request_errors import unsupported

PLACEHOLDER = "[{label}_{n}]"
# What messages and their parts can have. Other fields could contain entities.
MESSAGE_FIELDS, PART_FIELDS = {"role", "content"}, {"type", "text"}
# The same for the input of /v1/responses, where a message can be one of an earlier answer. What is in NOTES
# is emptied.
INPUT_FIELDS, NOTES = {*MESSAGE_FIELDS, "type", "id", "status"}, ("annotations", "logprobs")
EARLIER = ("previous_response_id", "conversation")


def redact_prompt(
    body: Dict[str, Any],
    ember: Any,
    options: EntityOptions,
    labels: Optional[Sequence[str]],
    kept: Optional[Sequence[str]],
) -> Placeholders:
    """Replace the entities in all messages with placeholders, which are numbered over all of them.

    body (Dict[str, Any]): The body of the request. Its prompt, messages, instructions and input change.
    ember (EmberProbe): The component that finds entities.
    options (EntityOptions): What to replace.
    labels (Optional[Sequence[str]]): Labels to find, in words.
    kept (Optional[Sequence[str]]): Labels to keep.
    RETURNS (Placeholders): The placeholders, with the original texts.
    RAISES (RequestError): If the messages have parts that can't be redacted.
    """
    texts: List[str] = []

    def collect(text: str) -> str:
        texts.append(text)
        return text

    _change_texts(body, collect)
    placeholders = Placeholders(PLACEHOLDER, taken="\n".join(texts))

    def redact(text: str) -> str:
        reader = ember.reader(labels=labels)
        redactor = Redactor(
            reader, labels=kept, min_score=options.min_score, placeholder=placeholders
        )
        reader.push(text)
        reader.close()
        return redactor.release()

    _change_texts(body, redact)
    return placeholders


def _change_texts(body: Dict[str, Any], change: Callable[[str], str]) -> None:
    """Change all texts of a prompt.

    body (Dict[str, Any]): The body of the request.
    change (Callable[[str], str]): Called with each text.
    RAISES (RequestError): If something else than a text is found.
    """
    prompt = body.get("prompt")
    if isinstance(prompt, str):
        body["prompt"] = change(prompt)
    elif prompt is not None:
        raise unsupported("prompt", prompt, "only a text can be redacted")
    if body.get("instructions") is not None:
        body["instructions"] = change(_text(body["instructions"], "instructions"))
    for field, known in (("messages", MESSAGE_FIELDS), ("input", INPUT_FIELDS)):
        value = body.get(field)
        if field == "input" and isinstance(value, str):
            body[field] = change(value)
        elif field in body:
            messages = value if isinstance(value, list) else [value]
            body[field] = [_changed(message, change, known, field) for message in messages]
    for field in EARLIER:
        if body.get(field):
            reason = "its placeholders are not known here; send the whole conversation"
            raise unsupported(field, body[field], reason)


def _changed(
    message: Any, change: Callable[[str], str], known: Set[str], field: str
) -> Dict[str, Any]:
    """RETURNS (Dict[str, Any]): A message with changed texts."""
    _check_fields(message, known, field)
    content, where = message.get("content"), f"{field}.content"
    if isinstance(content, list):
        changed: Any = [_changed_part(part, change, where) for part in content]
    else:
        changed = change(_text(content, where))
    return {**message, "content": changed}


def _changed_part(part: Any, change: Callable[[str], str], field: str) -> Dict[str, Any]:
    """RETURNS (Dict[str, Any]): A part of a message, with a changed text."""
    _check_fields(part, {*PART_FIELDS, *NOTES}, field)
    notes: Dict[str, Any] = {note: [] for note in NOTES if note in part}
    return {**part, **notes, "text": change(_text(part.get("text"), field))}


def _text(value: Any, field: str) -> str:
    if not isinstance(value, str):
        raise unsupported(field, value, "only a text can be redacted")
    return value


def _check_fields(value: Any, known: Set[str], field: str) -> None:
    if not isinstance(value, dict) or set(value) - known:
        raise unsupported(field, value, f"only {' and '.join(sorted(known))} can be redacted")
