"""The events of a stream."""

from dataclasses import dataclass
from typing import Optional, Tuple, Union


@dataclass(frozen=True)
class TextPiece:
    """The next piece of the text.

    text (str): The piece. The concatenation of all pieces is the whole text.
    """

    text: str


@dataclass(frozen=True)
class EntityEvent:
    """A new, changed or final entity.

    start (int): First character in the text so far.
    end (int): One past its last character.
    label (str): Its label.
    score (float): Probability, given the text so far.
    text (str): Text of the entity.
    status (str): "found": a new entity, which can still change. "revised": replaces the entity in
        `replaces`. "dropped": withdrawn. "final": can't change anymore, however the text goes on.
    replaces (Optional[Tuple[int, int, str]]): Start, end and label of the entity that this one replaces.
    """

    start: int
    end: int
    label: str
    score: float
    text: str
    status: str
    replaces: Optional[Tuple[int, int, str]] = None


Event = Union[TextPiece, EntityEvent]
