"""Redact a prompt before it leaves for an upstream server."""

from typing import Any, Callable, Dict, List, Optional, Sequence, Set

from ..ember_probe.streaming.redaction import Placeholders, Redactor
from .protocol import EntityOptions
from .request_errors import unsupported

PLACEHOLDER = "[{label}_{n}]"
# What messages and their parts can have. Other fields could contain entities.
MESSAGE_FIELDS, PART_FIELDS = {"role", "content"}, {"type", "text"}


def redact_prompt(
    body: Dict[str, Any],
    ember: Any,
    options: EntityOptions,
    labels: Optional[Sequence[str]],
    kept: Optional[Sequence[str]],
) -> Placeholders:
    """Replace the entities in all messages with placeholders, which are numbered over all of them.

    body (Dict[str, Any]): The body of the request. Its prompt or messages are replaced.
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
    if "messages" in body:
        messages = body["messages"] if isinstance(body["messages"], list) else [body["messages"]]
        body["messages"] = [_changed(message, change) for message in messages]


def _changed(message: Any, change: Callable[[str], str]) -> Dict[str, Any]:
    """RETURNS (Dict[str, Any]): A message with changed texts."""
    _check_fields(message, MESSAGE_FIELDS, "messages")
    content = message.get("content")
    if isinstance(content, list):
        for part in content:
            _check_fields(part, PART_FIELDS, "messages.content")
        changed: Any = [{**part, "text": change(_text(part.get("text")))} for part in content]
    else:
        changed = change(_text(content))
    return {**message, "content": changed}


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise unsupported("messages.content", value, "only a text can be redacted")
    return value


def _check_fields(value: Any, known: Set[str], field: str) -> None:
    if not isinstance(value, dict) or set(value) - known:
        raise unsupported(field, value, f"only {' and '.join(sorted(known))} can be redacted")
