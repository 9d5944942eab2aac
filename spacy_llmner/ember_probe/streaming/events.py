"""The events of a stream."""

from dataclasses import dataclass
from typing import Optional, Tuple, Union


@dataclass(frozen=True)
class TextPiece:
    """Some more text.

    text (str): The piece; all pieces together are the text.
    """

    text: str


@dataclass(frozen=True)
class EntityEvent:
    """News about an entity.

    start (int): First character in the text so far.
    end (int): One past its last character.
    label (str): Its type.
    score (float): Probability given the text so far.
    text (str): The entity.
    status (str): "found": new, and may still change. "revised": takes the place of `replaces`.
        "dropped": taken back. "final": will not change, whatever follows.
    replaces (Optional[Tuple[int, int, str]]): Start, end and label that a revision takes back.
    """

    start: int
    end: int
    label: str
    score: float
    text: str
    status: str
    replaces: Optional[Tuple[int, int, str]] = None


Event = Union[TextPiece, EntityEvent]
