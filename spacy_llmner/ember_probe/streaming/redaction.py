"""Replace entities in a text while it is read or written, and put them back into an answer."""

import re
from itertools import islice
from string import Formatter
from typing import Dict, List, Mapping, NamedTuple, Optional, Sequence, Set, Tuple, Union

from ...errors import Errors, LLMNERError, check_values, wrong
from ...util import CharSpan
from .events import EntityEvent
from .generation import EmberStream
from .reader import EmberReader

# Label in the placeholder of words that were held back for too long.
TOO_LONG = "REDACTED"


class Found(NamedTuple):
    """An entity to replace, in characters."""

    start: int
    end: int
    label: str
    score: Optional[float] = None


class Replacement(NamedTuple):
    """A placeholder in the text that was released.

    start (int): Its first character.
    end (int): One past its last character.
    label (str): Label of the entity that it replaces.
    score (Optional[float]): Score of the entity; None for words that were held back for too long.
    text (str): The placeholder.
    """

    start: int
    end: int
    label: str
    score: Optional[float]
    text: str


class Placeholders:
    """The placeholders of one or more texts.

    template (str): A placeholder, with `{label}`. With `{n}`, the entities of each label are numbered, and
        the same text gets the same number.
    taken (str): A text. Numbered placeholders that occur in it are not used.

    originals (Dict[str, str]): The text that each placeholder replaces, if placeholders have numbers.
    """

    def __init__(self, template: str = "[{label}]", *, taken: str = "") -> None:
        """RAISES (LLMNERError): If the template is empty, or has other fields than `label` and `n`."""
        self._fields = _fields_of(template)
        self.template = template
        self.taken = taken
        self.originals: Dict[str, str] = {}
        self._known: Dict[Tuple[str, str], str] = {}
        self._numbers: Dict[str, int] = {}

    def replace(self, label: str, text: str) -> str:
        """RETURNS (str): The placeholder for an entity."""
        if "n" not in self._fields:
            return self.template.format(label=label)
        if (label, text) not in self._known:
            while True:
                n = self._numbers[label] = self._numbers.get(label, 0) + 1
                placeholder = self.template.format(label=label, n=n)
                # Without `{label}`, labels share the numbers.
                is_free = self.originals.get(placeholder, text) == text
                if is_free and placeholder not in self.taken:
                    break
            self.originals[placeholder] = text
            self._known[label, text] = placeholder
        return self._known[label, text]


class Redactor:
    """Replaces the entities of a text with placeholders, while the text is read or written.

    After each piece or event, `release` returns the text that can go out. Text is held back until nothing
    that follows can make it part of an entity. So no character of an entity of `source.doc` is released,
    except with `overlong="release"`, or if its score or label is excluded.

    source (Union[EmberReader, EmberStream]): What reads or writes the text.
    labels (Optional[Sequence[str]]): Labels of the entities to replace; None for all.
    min_score (float): Entities with a lower score stay. The score is that of the final event.
    placeholder (Union[str, Placeholders]): Text that replaces an entity, with `{label}`. With `{n}`, the
        entities of each label are numbered, and the same text gets the same number. Redactors of several
        texts can share the same Placeholders.
    max_hold (Optional[int]): Maximum number of words to hold back, at least 1; None for no maximum.
    overlong (str): What happens to words before these: "redact" replaces them with a placeholder with the
        label "REDACTED". "release" releases them, without the entities that are known so far.
    start (int): Character of the text to begin at. The text before it, such as a prompt, isn't released.

    originals (Dict[str, str]): The text that each placeholder replaces, if placeholders have numbers.
    replacements (List[Replacement]): The placeholders in the text that was released.
    """

    def __init__(
        self,
        source: Union[EmberReader, EmberStream],
        *,
        labels: Optional[Sequence[str]] = None,
        min_score: float = 0.0,
        placeholder: Union[str, Placeholders] = "[{label}]",
        max_hold: Optional[int] = None,
        overlong: str = "redact",
        start: int = 0,
    ) -> None:
        """RAISES (LLMNERError): If a setting has an invalid value."""
        settings = {"min_score": min_score, "overlong": overlong, "max_hold": max_hold}
        least = {} if max_hold is None else {"max_hold": 1}
        choices = {"overlong": ("redact", "release")}
        check_values("redactor", settings, choices=choices, shares=["min_score"], least=least)
        known = source.predictor.labels
        unknown = [label for label in labels or () if label not in known]
        if unknown:
            raise wrong(
                "labels", "redactor", labels, f"labels of the component: {', '.join(known)}"
            )
        if not isinstance(placeholder, Placeholders):
            placeholder = Placeholders(placeholder)
        self.source = source
        self.labels = known if labels is None else tuple(labels)
        self.min_score = min_score
        self.placeholders = placeholder
        self.originals = placeholder.originals
        self.max_hold = max_hold
        self.overlong = overlong
        self.replacements: List[Replacement] = []
        # Number of characters that were released or replaced, and where they were released unchanged.
        self._done = start
        self._released: List[CharSpan] = []
        # Number of final events that were read, and the entities among them that the text has not reached.
        self._n_events = 0
        self._waiting: List[Found] = []
        self._n_out = 0

    def release(self, until: Optional[int] = None) -> str:
        """Get the next part of the redacted text.

        until (Optional[int]): Character of the text to stop at. An entity that begins before it is replaced
            as a whole. Must not be lower than in the last call.
        RETURNS (str): All that can go out now; after the end of the text, the rest of it.
        RAISES (LLMNERError): If the end of a stream changes entities that were final, and text of an entity
            was released already.
        """
        with self.source.lock:
            return self._release(until)

    def _release(self, until: Optional[int]) -> str:
        live, fixed = self.source._live, self.source.settled
        last = len(self.source.text) if until is None else until
        settled = min(fixed, last)
        if self.source.doc is not None:
            return self._emit(settled, self._last())
        new = list(islice(live.finals.values(), self._n_events, None))
        self._n_events += len(new)
        self._waiting += self._chosen(new)
        out = self._emit(settled, self._waiting)
        self._waiting = [found for found in self._waiting if found.end > self._done]
        words = [] if self.max_hold is None else self._held()
        too_long = words[: -self.max_hold] if self.max_hold else []
        if not too_long:
            return out
        end = min(too_long[-1][1], last)
        if self.overlong == "release":
            return out + self._emit(end, self._chosen(list(live.shown.values())))
        # White space between words that are held back can be part of an entity, too.
        start = max(too_long[0][0], self._done) if self._done <= fixed else self._done
        return out + self._emit(end, [Found(start, end, TOO_LONG)])

    def _chosen(self, events: Sequence[EntityEvent]) -> List[Found]:
        return [
            Found(e.start, e.end, e.label, e.score)
            for e in sorted(events, key=lambda e: e.start)
            if e.label in self.labels and e.score >= self.min_score
        ]

    def _last(self) -> List[Found]:
        """RETURNS (List[Found]): The entities of the Doc."""
        out = []
        assert self.source.doc is not None
        for ent in self.source.doc.ents:
            final = self.source._live.finals.get((ent.start_char, ent.end_char, ent.label_))
            score = ent._.llmner_score or 0.0 if final is None else final.score
            if ent.label_ in self.labels and score >= self.min_score:
                out.append(Found(ent.start_char, ent.end_char, ent.label_, score))
        if self.max_hold is None or self.overlong == "redact":
            for found in out:
                if any(start < found.end and found.start < end for start, end in self._released):
                    raise LLMNERError(Errors.E138.format(label=found.label))
        return out

    def _held(self) -> List[CharSpan]:
        """RETURNS (List[CharSpan]): The words that are held back. The last one can be incomplete."""
        live = self.source._live
        words = list(zip(live.words, live.blank))[live.fixed :]
        end = live.words[-1][1] if live.words else 0
        rest = self.source.predictor.tokenizer(self.source.text[end:])
        held = [word for word, is_blank in words if not is_blank]
        held += [(end + t.idx, end + t.idx + len(t)) for t in rest if not t.is_space]
        return [word for word in held if word[1] > self._done]

    def _emit(self, end: int, found: Sequence[Found]) -> str:
        """Release the text up to a character.

        found (Sequence[Found]): The entities to replace, in text order. One that crosses the end is
            replaced as a whole.
        """
        text, out = self.source.text, []
        for entity in found:
            start = max(entity.start, self._done)
            if start < min(entity.end, end):
                out.append(self._release_to(start))
                out.append(self._replace(entity, text[start : entity.end]))
                self._done = entity.end
        out.append(self._release_to(end))
        return "".join(out)

    def _release_to(self, end: int) -> str:
        start, self._done = self._done, max(self._done, end)
        if start == self._done:
            return ""
        if self._released and self._released[-1][1] == start:
            start_before, _ = self._released.pop()
            self._released.append((start_before, end))
        else:
            self._released.append((start, end))
        self._n_out += end - start
        return self.source.text[start:end]

    def _replace(self, entity: Found, text: str) -> str:
        placeholder = self.placeholders.replace(entity.label, text)
        start, self._n_out = self._n_out, self._n_out + len(placeholder)
        label, score = entity.label, entity.score
        self.replacements.append(Replacement(start, self._n_out, label, score, placeholder))
        return placeholder


class Restorer:
    """Replaces placeholders with the original texts, in a text that arrives in pieces. A placeholder can be
    split over several pieces.

    originals (Mapping[str, str]): The original text of each placeholder, as from `Redactor.originals`.
    """

    def __init__(self, originals: Mapping[str, str]) -> None:
        self.originals = {key: text for key, text in originals.items() if key}
        # Longer placeholders first, since a placeholder can begin with another one.
        keys = sorted(self.originals, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, keys)) or r"(?!)")
        self._longest = max(map(len, keys), default=0)
        self._rest = ""

    def push(self, piece: str) -> str:
        """Add the next piece.

        RETURNS (str): The text that can't be part of a placeholder anymore, with the original texts.
        """
        text, out, done = self._rest + piece, [], 0
        while True:
            end = self._first_incomplete(text, done)
            match = self._pattern.search(text, done)
            if match is None or match.start() >= end:
                break
            out += [text[done : match.start()], self.originals[match.group()]]
            done = match.end()
        self._rest = text[end:]
        return "".join(out) + text[done:end]

    def close(self) -> str:
        """RETURNS (str): The rest of the text."""
        rest, self._rest = self._rest, ""
        return self._pattern.sub(lambda match: self.originals[match.group()], rest)

    def _first_incomplete(self, text: str, start: int) -> int:
        """RETURNS (int): Where the rest of the text can be the beginning of a placeholder."""
        for i in range(max(start, len(text) - self._longest + 1), len(text)):
            rest = text[i:]
            if any(len(key) > len(rest) and key.startswith(rest) for key in self.originals):
                return i
        return len(text)


def _fields_of(placeholder: str) -> Set[str]:
    """RETURNS (Set[str]): The fields that a placeholder has: `label` and `n`, without formats. Formats of
    Python can take any amount of memory, and clients of a server choose placeholders.
    RAISES (LLMNERError): If the placeholder is empty, or has anything else.
    """
    try:
        parts = list(Formatter().parse(placeholder))
    except (TypeError, ValueError):
        parts = []
    plain = all(not spec and conversion is None for _, _, spec, conversion in parts)
    fields = {name for _, name, _, _ in parts if name is not None}
    if not (parts and plain and fields <= {"label", "n"}):
        raise wrong(
            "placeholder", "redactor", placeholder, "a text such as '[{label}]' or '[{label}_{n}]'"
        )
    return fields
