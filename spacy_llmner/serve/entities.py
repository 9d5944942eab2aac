"""Entities in an answer: as events beside its text, or redacted."""

from dataclasses import replace
from typing import Any, Dict, Iterable, List, NamedTuple, Optional, Sequence, Set, Tuple, Union

from ..ember_probe.streaming.events import EntityEvent, Event
from ..ember_probe.streaming.generation import EmberStream
from ..ember_probe.streaming.reader import EmberReader
from ..ember_probe.streaming.redaction import Redactor, Replacement
from ..errors import Errors
from .limits import check_size
from .protocol import EntityOptions
from .request_errors import RequestError

# Start and end in characters, and label.
Key = Tuple[int, int, str]


class Part(NamedTuple):
    """The next part of an answer.

    text (str): The next text.
    entities (List[Dict[str, Any]]): The next events, as they are sent.
    """

    text: str
    entities: List[Dict[str, Any]]


class MarkedStream:
    """The answer of a stream, with the entities that were asked for.

    stream (EmberStream): The stream. Pass its events to `push`.
    start (int): Where the answer begins in its text, after the prompt.
    options (Optional[EntityOptions]): What to do with entities; None for nothing.
    labels (Optional[Sequence[str]]): Labels to keep; None for all.
    stop (Sequence[str]): Strings at which the answer ends. They are cut off.
    """

    def __init__(
        self,
        stream: EmberStream,
        start: int,
        options: Optional[EntityOptions],
        labels: Optional[Sequence[str]],
        stop: Sequence[str] = (),
    ) -> None:
        self.start = start
        self.stop = stop
        self._marker = Marker(stream, start, options, labels)
        self._text = ""
        self._limit = 0

    def push(self, event: Event) -> Part:
        """RETURNS (Part): What can be sent after an event of the stream."""
        if isinstance(event, EntityEvent):
            return self._marker.advance("", [event], self.start + self._limit)
        self._text += event.text
        return self._marker.advance(*self._next(ended=False))

    def close(self) -> Part:
        """RETURNS (Part): The rest, after the end of the stream."""
        part = self._marker.advance(*self._next(ended=True))
        return Part(part.text, part.entities + self._marker.close())

    def _next(self, ended: bool) -> Tuple[str, List[EntityEvent], int]:
        answer, before = self._text[self.start :], self._limit
        self._limit = stop_limit(answer, self.stop, before, ended)
        return answer[before : self._limit], [], self.start + self._limit


class MarkedReader:
    """An answer that another LLM writes, with the entities that were asked for.

    reader (EmberReader): A new reader.
    options (EntityOptions): What to do with entities.
    labels (Optional[Sequence[str]]): Labels to keep; None for all.
    """

    def __init__(
        self, reader: EmberReader, options: EntityOptions, labels: Optional[Sequence[str]]
    ) -> None:
        self._reader = reader
        self._marker = Marker(reader, 0, options, labels)

    def push(self, text: str) -> Part:
        """RETURNS (Part): What can be sent after the next piece of the text."""
        events = self._reader.push(text) if text else []
        return self._marker.advance(text, events, len(self._reader.text))

    def close(self) -> Part:
        """RETURNS (Part): The rest, after the end of the text."""
        events = self._reader.close()
        part = self._marker.advance("", events, len(self._reader.text))
        return Part(part.text, part.entities + self._marker.close())


class Marker:
    """Turns the text and events of a source into what is sent.

    source (Union[EmberReader, EmberStream]): What reads or writes the text.
    start (int): Where the answer begins in its text.
    options (Optional[EntityOptions]): What to do with entities; None for nothing.
    labels (Optional[Sequence[str]]): Labels to keep; None for all.
    """

    def __init__(
        self,
        source: Union[EmberReader, EmberStream],
        start: int,
        options: Optional[EntityOptions],
        labels: Optional[Sequence[str]],
    ) -> None:
        self._redactor: Optional[Redactor] = None
        self._view: Optional[EntityView] = None
        self._n_sent = 0
        if options is not None and options.mode == "redact":
            self._redactor = Redactor(
                source,
                labels=labels,
                min_score=options.min_score,
                placeholder=options.placeholder,
                max_hold=options.max_hold,
                overlong=options.overlong,
                start=start,
            )
        elif options is not None and options.mode == "annotate":
            self._view = EntityView(start, labels, options.min_score)

    def advance(self, text: str, events: Sequence[EntityEvent], until: int) -> Part:
        """text (str): The next text of the answer.
        events (Sequence[EntityEvent]): The next events.
        until (int): Where the text that can be sent ends in the source's text.
        RETURNS (Part): What can be sent.
        """
        if self._redactor is None:
            return Part(text, self._view.push(events, until) if self._view else [])
        out = self._redactor.release(until)
        new = self._redactor.replacements[self._n_sent :]
        self._n_sent += len(new)
        return Part(out, [as_sent(r, "final") for r in new])

    def close(self) -> List[Dict[str, Any]]:
        """RETURNS (List[Dict[str, Any]]): Events that were kept because their text was not sent."""
        return self._view.close() if self._view else []


class EntityView:
    """What a client knows about the entities of an answer.

    It gets only events about text that it has, and about entities with a chosen label and score. Other
    entities don't exist for it.

    start (int): Where the answer begins in the text.
    labels (Optional[Sequence[str]]): The labels to keep; None for all.
    min_score (float): The lowest score to keep.
    """

    def __init__(self, start: int, labels: Optional[Sequence[str]], min_score: float) -> None:
        self.start = start
        self.labels = None if labels is None else frozenset(labels)
        self.min_score = min_score
        self._end = start
        self._waiting: List[EntityEvent] = []
        # What the client knows, by the offsets of the whole text.
        self._shown: Dict[Key, EntityEvent] = {}

    def push(self, events: Iterable[EntityEvent], until: int) -> List[Dict[str, Any]]:
        """events (Iterable[EntityEvent]): The next events.
        until (int): Where the text that the client has ends.
        RETURNS (List[Dict[str, Any]]): The events to send.
        """
        self._end = until
        self._waiting += events
        out = []
        while self._waiting and self._waiting[0].end <= until:
            out += self._see(self._waiting.pop(0))
        return out

    def close(self) -> List[Dict[str, Any]]:
        """RETURNS (List[Dict[str, Any]]): The last events. Entities that go beyond the text end with it."""
        waiting, self._waiting = self._waiting, []
        return [sent for event in waiting for sent in self._see(event)]

    def _see(self, event: EntityEvent) -> List[Dict[str, Any]]:
        key = (event.start, event.end, event.label)
        shown = None if event.status == "dropped" else self._clipped(event)
        if shown is None:
            gone = [k for k in dict.fromkeys((event.replaces, key)) if k in self._shown]
            return [as_sent(self._shown.pop(k), "dropped") for k in gone if k is not None]
        replaces: Optional[Key] = None
        if event.replaces in self._shown and event.replaces != key:
            old = self._shown.pop(event.replaces)
            replaces = (old.start, old.end, old.label)
        self._shown[key] = shown
        status = "final" if event.status == "final" else "revised" if replaces else "found"
        return [as_sent(shown, status, replaces)]

    def _clipped(self, event: EntityEvent) -> Optional[EntityEvent]:
        """RETURNS (Optional[EntityEvent]): The part of an entity that is in the answer, if it is kept."""
        is_kept = self.labels is None or event.label in self.labels
        if not is_kept or event.score < self.min_score:
            return None
        start, end = max(event.start, self.start), min(event.end, self._end)
        text = event.text[start - event.start : max(end - event.start, 0)]
        if not text.strip():
            return None
        start += len(text) - len(text.lstrip()) - self.start
        text = text.strip()
        return replace(event, start=start, end=start + len(text), text=text)


def as_sent(
    entity: Union[EntityEvent, Replacement], status: str, replaces: Optional[Key] = None
) -> Dict[str, Any]:
    """RETURNS (Dict[str, Any]): An event as it is sent."""
    return {
        "start": entity.start,
        "end": entity.end,
        "label": entity.label,
        "score": None if entity.score is None else round(entity.score, 4),
        "text": entity.text,
        "status": status,
        "replaces": None if replaces is None else list(replaces),
    }


def final_entities(events: Iterable[Dict[str, Any]]) -> List[Dict[str, Any]]:
    """RETURNS (List[Dict[str, Any]]): The entities that all events of an answer lead to, in text order."""
    found: Dict[Key, Dict[str, Any]] = {}
    for event in events:
        key = (event["start"], event["end"], event["label"])
        if event["replaces"]:
            found.pop(tuple(event["replaces"]), None)
        if event["status"] == "dropped":
            found.pop(key, None)
        else:
            found[key] = event
    return [{**found[key], "status": "final", "replaces": None} for key in sorted(found)]


def stop_limit(text: str, stop: Sequence[str], start: int, ended: bool) -> int:
    """Find where a text must be cut because of stop strings.

    text (str): The text so far.
    stop (Sequence[str]): The stop strings.
    start (int): Number of characters that can't be part of a stop string.
    ended (bool): Whether the text ends here.
    RETURNS (int): Where the first stop string begins, or could begin if the text goes on, or else the end.
    """
    found = [i for s in stop if (i := text.find(s, start)) >= 0]
    if found or ended:
        return min(found, default=len(text))
    longest = max(map(len, stop), default=0)
    for i in range(max(start, len(text) - longest + 1), len(text)):
        if any(s.startswith(text[i:]) for s in stop):
            return i
    return len(text)


def choose_labels(
    ember: Any, labels: Optional[List[str]], max_labels: int
) -> Tuple[Optional[List[str]], Optional[List[str]]]:
    """Choose how to find only some labels.

    ember (EmberProbe): The component.
    labels (Optional[List[str]]): The requested labels.
    max_labels (int): Maximum number of labels.
    RETURNS (Tuple[Optional[List[str]], Optional[List[str]]]): Labels to find, if the component finds labels
        in words; labels to keep otherwise.
    RAISES (RequestError): If there are too many, or if the component doesn't have one of them.
    """
    if labels is None:
        return None, None
    check_size(len(labels), "labels", max_labels, "entities.labels")
    if ember.label_reader is not None:
        return labels, None
    check_known(labels, ember.labels, "entities.labels")
    return None, labels


def check_known(labels: Sequence[str], known: Iterable[str], field: str) -> None:
    """RAISES (RequestError): If a label is not known."""
    known_labels: Set[str] = set(known)
    unknown = sorted(set(labels) - known_labels)
    if unknown:
        shown = ", ".join(sorted(known_labels)) or "none"
        message = Errors.E164.format(unknown=", ".join(unknown), known=shown)
        raise RequestError(message, 400, "unknown_label", field)
