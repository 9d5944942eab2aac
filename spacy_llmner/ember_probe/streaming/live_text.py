"""Entities of a text that is still being written."""

import bisect
from dataclasses import replace
from typing import Dict, List, NamedTuple, Optional, Set, Tuple

import numpy as np
import torch
from spacy.tokenizer import Tokenizer
from spacy.tokens import Doc

from ...llm.hidden_states import Features
from ...llm.tokenization import Encoding, PieceDecoder
from ..features.batch import surface
from ..features.words import WordFeatures, word_bounds
from ..predictor import Predictor
from ..probes.segmentation import ScoredSpan
from .events import EntityEvent

Key = Tuple[int, int, int]


class Word(NamedTuple):
    """A token of spaCy's in a piece of text.

    start (int): First character.
    end (int): One past the last character.
    is_space (bool): As a Token says.
    is_punct (bool): As a Token says.
    surface (ndarray): Its row of `batch.surface`.
    """

    start: int
    end: int
    is_space: bool
    is_punct: bool
    surface: np.ndarray


class LiveText:
    """Follows a text token by token: pieces to words, words to scores, scores to events.

    predictor (Predictor): A trained probe that does not look to the right.
    """

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor
        self.llm = predictor.llm
        self.reader = predictor.reader
        self.text = ""
        self.pieces = PieceDecoder(self.llm.tokenizer.hf)
        # Tokens whose character is not complete yet.
        self.pending: List[Tuple[int, Features]] = []
        # Tokens that carry text: ids, characters, features (each with a first dimension of 1).
        self.ids: List[int] = []
        self.starts: List[int] = []
        self.ends: List[int] = []
        self.hidden: List[torch.Tensor] = []
        self.attention: List[torch.Tensor] = []
        # Words that can't change any more, and where the rest of the text starts.
        self.words: List[Tuple[int, int]] = []
        self.spaces: Set[int] = set()
        self.released = 0
        # Most words of a text come again: what was between two spaces, and the words in it.
        self.known: Dict[str, List[Word]] = {}
        self.probe = predictor.probe.stream()
        self.decoder = predictor.probe.decoder(predictor.threshold)
        self.rows: List[np.ndarray] = []
        self.fixed = 0
        self.shown: Dict[Key, EntityEvent] = {}
        self.finals: Dict[Tuple[int, int, str], EntityEvent] = {}

    def add_text(self, text: str) -> None:
        """Add text that no token carries, such as what stands between question and answer."""
        self.text += text

    def add_prompt(self, encoding: Encoding, text: str, features: Features) -> List[EntityEvent]:
        """Add a text that the LLM has read at once.

        features (Features): Of the tokens of the encoding.
        RETURNS (List[EntityEvent]): The entities in it.
        """
        offset = len(self.text)
        self.text += text
        self.ids += encoding.ids
        self.starts += [offset + int(i) for i in encoding.starts]
        self.ends += [offset + int(i) for i in encoding.ends]
        self.hidden += list(features.hidden[:, None])
        self.attention += [] if features.attention is None else list(features.attention[:, None])
        self.pieces.follow(encoding.ids)
        return self._update()

    def add_token(
        self, token: int, features: Features, piece: Optional[str] = None
    ) -> List[EntityEvent]:
        """Add a token that the LLM has read.

        features (Features): Of that token.
        piece (Optional[str]): What `pieces` said of it, if it was asked before the LLM read it.
        RETURNS (List[EntityEvent]): What is new.
        """
        self.pending.append((token, features))
        if piece is None:
            piece = self.pieces.push(token)
        if not self.pieces.complete:
            return []
        self._add_piece(piece)
        return self._update()

    def finish(self, end: Optional[Features] = None) -> Tuple[Doc, List[EntityEvent]]:
        """End the text.

        end (Optional[Features]): Of the token behind the text, if the LLM has read one.
        RETURNS (Tuple[Doc, List[EntityEvent]]): The annotated Doc, and what is new.
        """
        self._add_piece("")  # a character that was cut
        if end is not None and end.attention is not None:
            self.attention.append(end.attention)
        events = self._update(ended=True)
        doc = self.predictor.tokenizer(self.text)
        encoding = self.llm.tokenizer.encode(self.text)
        if encoding.ids != self.ids:
            encoding = self._encoding()
        same = encoding.starts.tolist() == self.starts
        if same and [(t.idx, t.idx + len(t)) for t in doc] == self.words:
            rows = np.array(self.rows)
        else:
            # The whole text is cut into other words or tokens than its parts were.
            rows = self._rows_of(doc, encoding)
        if len(doc):
            self.predictor.annotate(doc, rows)
        return doc, events + self._last_events(doc)

    def _add_piece(self, piece: str) -> None:
        start = len(self.text)
        self.text += piece
        inner = len(piece) - len(piece.lstrip())
        for token, features in self.pending:
            self.ids.append(token)
            self.starts.append(start + (inner if inner < len(piece) else 0))
            self.ends.append(len(self.text))
            self.hidden.append(features.hidden)
            if features.attention is not None:
                self.attention.append(features.attention)
        self.pending = []

    def _update(self, ended: bool = False) -> List[EntityEvent]:
        words = self._new_words(ended)
        if not (words or ended):
            return []
        n_before = len(self.rows)
        offset = self.released
        for word in words:
            if word.is_space:
                self.spaces.add(len(self.words))
            self.words.append((offset + word.start, offset + word.end))
            self._add_row(self.probe.push(self._last_word(), word.surface))
        if words:
            self.released = self.words[-1][1]
            # A single space belongs to the word before it.
            if self.text[self.released : self.released + 1] == " ":
                self.released += 1
        if ended:
            self._add_row(self.probe.end())
        return self._events(ended) if ended or len(self.rows) > n_before else []

    def _new_words(self, ended: bool) -> List[Word]:
        """RETURNS (List[Word]): Words of the text behind what is released that can't change any more."""
        tail = self.text[self.released :]
        if ended:
            return self._words_in(tail)
        tokenizer = self.predictor.tokenizer
        if isinstance(tokenizer, Tokenizer):
            # spaCy's rules look at what stands between two spaces. The last piece may still grow.
            closed = len(tail)
            while closed and not tail[closed - 1].isspace():
                closed -= 1
            head = tail[:closed].rstrip()
            if head not in self.known:
                self.known[head] = self._words_in(head)
            return self.known[head]
        words = self._words_in(tail)
        if getattr(tokenizer, "segmenter", None) == "char":
            return words[:-1]
        # Other segmenters may change their mind until a clause ends.
        closed = max((i + 1 for i, word in enumerate(words[:-1]) if word.is_punct), default=0)
        return words[:closed]

    def _words_in(self, text: str) -> List[Word]:
        doc = self.predictor.tokenizer(text)
        return [
            Word(t.idx, t.idx + len(t), t.is_space, t.is_punct, row)
            for t, row in zip(doc, surface(doc))
        ]

    def _encoding(self) -> Encoding:
        return Encoding(self.ids, np.array(self.starts, dtype=int), np.array(self.ends, dtype=int))

    def _last_word(self) -> WordFeatures:
        """RETURNS (WordFeatures): One row, from no more tokens than it needs."""
        if self.hidden and not self.attention:
            # That of the last token which begins in front of the word's end, as `gather` has it.
            last = bisect.bisect_left(self.starts, self.words[-1][1]) - 1
            return WordFeatures(self.hidden[max(last, 0)])
        words = self.words[-self.reader.max_words :] if self.attention else self.words[-1:]
        first = max(bisect.bisect_right(self.ends, words[0][0]), 0)
        last = bisect.bisect_left(self.starts, words[-1][1])
        # One token more on both sides: a word of white space may be part of the token behind it.
        first = max(min(first, last) - 1, 0)
        last = min(last + 1, len(self.starts))
        part = slice(first, last)
        tokens = Features(torch.cat(self.hidden[part])) if last else Features(self._no_state())
        if self.attention:
            # One more row: the token behind the word looks back at it.
            tokens.attention = torch.cat(self.attention[first : last + 1])
        encoding = Encoding(self.ids[part], np.array(self.starts[part]), np.array(self.ends[part]))
        bounds = np.array(words)
        features = self.reader.gather(bounds[:, 0], bounds[:, 1], encoding, tokens)
        attention = None if features.attention is None else features.attention[-1:]
        return WordFeatures(features.hidden[-1:], attention)

    def _no_state(self) -> torch.Tensor:
        return torch.zeros((0, len(self.reader.layers), self.llm.width), device=self.llm.device)

    def _rows_of(self, doc: Doc, encoding: Encoding) -> np.ndarray:
        """Score the words of a whole text, from what the LLM said when it read its tokens."""
        tokens = Features(torch.cat(self.hidden) if self.hidden else self._no_state())
        if self.attention:
            tokens.attention = torch.cat(self.attention)
        starts, ends = word_bounds(doc)
        return self.predictor.rows(doc, self.reader.gather(starts, ends, encoding, tokens))

    def _add_row(self, row: Optional[np.ndarray]) -> None:
        if row is not None:
            self.rows.append(row)
            self.decoder.push(row)

    def _events(self, ended: bool) -> List[EntityEvent]:
        """Compare the best segmentation with what was shown."""
        chain = self.decoder.chain
        fixed = len(chain) if ended else chain.fixed(since=self.fixed)
        now = [m for m in chain.trace(until=self.fixed) if not self._in_space(m)]
        gone = [key for key in self.shown if key not in now]
        events = []
        for key in now:
            is_final = key[1] <= fixed
            if key in self.shown and not is_final:
                continue
            taken = [old for old in gone if old[0] < key[1] and key[0] < old[1]]
            replaces = self._characters(taken[0]) if taken else None
            status = "final" if is_final else "revised" if taken else "found"
            gone = [old for old in gone if old not in taken]
            for old in taken:
                self.shown.pop(old)
            for old in taken[1:]:
                events.append(self._event(old, "dropped"))
            event = self._event(key, status, replaces)
            events.append(event)
            if is_final:
                self.shown.pop(key, None)
            else:
                self.shown[key] = event
        for old in gone:
            self.shown.pop(old)
            events.append(self._event(old, "dropped"))
        self.fixed = fixed
        return events

    def _last_events(self, doc: Doc) -> List[EntityEvent]:
        """Say what the whole text changed after all (tokens that were cut otherwise)."""
        final = {(e.start_char, e.end_char, e.label_): e for e in doc.ents}
        events = []
        for key in set(self.finals) - set(final):
            old = self.finals.pop(key)
            events.append(replace(old, status="dropped"))
        for key in set(final) - set(self.finals):
            ent = final[key]
            score = ent._.score or 0.0
            events.append(EntityEvent(*key, score, ent.text, "final"))
        return sorted(events, key=lambda e: (e.start, e.status != "dropped"))

    def _event(
        self, key: Key, status: str, replaces: Optional[Tuple[int, int, str]] = None
    ) -> EntityEvent:
        start, end, label = self._characters(key)
        score = self.decoder.score(*key)
        found = self.predictor.span(ScoredSpan(*key, score))
        event = EntityEvent(start, end, label, found.score, self.text[start:end], status, replaces)
        if status == "final":
            self.finals[(start, end, label)] = event
        return event

    def _characters(self, key: Key) -> Tuple[int, int, str]:
        start, end, label = key
        return self.words[start][0], self.words[end - 1][1], self.predictor.labels[label]

    def _in_space(self, key: Key) -> bool:
        return key[0] in self.spaces or key[1] - 1 in self.spaces
