"""Entities of a text that is still being written."""

import bisect
from dataclasses import replace
from typing import Dict, List, NamedTuple, Optional, Tuple

import numpy as np
import torch
from spacy.tokenizer import Tokenizer
from spacy.tokens import Doc

from ...llm.hidden_states import Features
from ...llm.tokenization import Encoding, PieceDecoder
from ...util import is_blank
from ..features.batch import surface
from ..features.words import WordFeatures, word_bounds
from ..predictor import Predictor
from ..probes.segmentation import ScoredSpan
from .events import EntityEvent

# Start, end and label index of a mention, in words.
Key = Tuple[int, int, int]
# Most strings between spaces occur again. Longer strings, such as prompts, are not cached.
MAX_CACHED = 40
FREED = torch.empty(0)


class Word(NamedTuple):
    """A spaCy token in a part of the text.

    start (int): First character.
    end (int): One past the last character.
    is_blank (bool): See `is_blank`.
    is_punct (bool): As in Token.
    surface (ndarray): Its row of `batch.surface`.
    """

    start: int
    end: int
    is_blank: bool
    is_punct: bool
    surface: np.ndarray


class LiveText:
    """Follows a text token by token. Tokens become words, words become scores, and scores become events.

    predictor (Predictor): A trained probe that can stream.
    """

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor
        self.llm = predictor.llm
        self.reader = predictor.reader
        self.text = ""
        self.pieces = PieceDecoder(self.llm.tokenizer.hf)
        # Tokens that are part of an incomplete character.
        self.pending: List[Tuple[int, Features]] = []
        # Tokens with text: ids, character offsets, and features (each with a first dimension of 1).
        self.ids: List[int] = []
        self.starts: List[int] = []
        self.ends: List[int] = []
        self.hidden: List[torch.Tensor] = []
        self.attention: List[torch.Tensor] = []
        self.n_freed = 0
        # Words that can't change anymore (start and end characters), whether each is blank, and where the
        # text after them starts.
        self.words: List[Tuple[int, int]] = []
        self.blank: List[bool] = []
        self.consumed = 0
        # Cache of the words of each tokenized string.
        self.word_cache: Dict[str, List[Word]] = {}
        self.probe = predictor.probe.stream()
        self.decoder = predictor.probe.decoder(predictor.threshold)
        self.rows: List[np.ndarray] = []
        # The last boundary that stays part of the best path, however the text continues.
        self.fixed = 0
        # Events of entities that are not final, and of those that are (by characters).
        self.shown: Dict[Key, EntityEvent] = {}
        self.finals: Dict[Tuple[int, int, str], EntityEvent] = {}

    def add_text(self, text: str) -> None:
        """Add text without tokens, such as the separator between question and answer."""
        self.text += text

    @property
    def settled(self) -> int:
        """RETURNS (int): Number of characters at the beginning of the text whose entities are final."""
        return self.words[self.fixed - 1][1] if self.fixed else 0

    def add_prompt(self, encoding: Encoding, text: str, features: Features) -> List[EntityEvent]:
        """Add a text that the LLM has read in one pass.

        encoding (Encoding): The text's tokens.
        text (str): The text.
        features (Features): Features of these tokens.
        RETURNS (List[EntityEvent]): Events of the entities in it.
        """
        offset = len(self.text)
        self.text += text
        self.add_tokens(encoding, features, offset)
        self.pieces.follow(encoding.ids)
        return self.update()

    def add_tokens(self, encoding: Encoding, features: Features, offset: int = 0) -> None:
        """Add tokens of a text that has been added.

        encoding (Encoding): The tokens.
        features (Features): Their features.
        offset (int): The character that the offsets of the encoding begin at.
        """
        self.ids += encoding.ids
        self.starts += [offset + int(i) for i in encoding.starts]
        self.ends += [offset + int(i) for i in encoding.ends]
        self.hidden += list(features.hidden[:, None])
        self.attention += [] if features.attention is None else list(features.attention[:, None])

    def add_token(
        self, token: int, features: Features, piece: Optional[str] = None
    ) -> List[EntityEvent]:
        """Add a token that the LLM has read.

        token (int): The token's id.
        features (Features): Features of this token.
        piece (Optional[str]): The result of `pieces.push`, if that has been called for the token.
        RETURNS (List[EntityEvent]): New events.
        """
        self.pending.append((token, features))
        if piece is None:
            piece = self.pieces.push(token)
        if not self.pieces.complete:
            return []
        self._add_piece(piece)
        return self.update()

    def finish(self, end: Optional[Features] = None) -> Tuple[Doc, List[EntityEvent]]:
        """End the text.

        end (Optional[Features]): Features of the end token after the text, if the LLM has read one.
        RETURNS (Tuple[Doc, List[EntityEvent]]): The annotated Doc, and new events.
        """
        self._add_piece("")  # the tokens of an incomplete character
        events = self.end(end)
        doc = self.predictor.tokenizer(self.text)
        encoding = self.llm.tokenizer.encode(self.text)
        if encoding.ids != self.ids:
            encoding = self._encoding()
        same = encoding.starts.tolist() == self.starts
        if same and [(t.idx, t.idx + len(t)) for t in doc] == self.words:
            rows = np.array(self.rows)
        else:
            # The words or tokens of the whole text differ from those of its parts.
            rows = self._rescore(doc, encoding)
        if len(doc):
            self.predictor.annotate(doc, rows)
        return doc, events + self._last_events(doc)

    def end(self, end: Optional[Features] = None) -> List[EntityEvent]:
        """End the text, without a Doc.

        end (Optional[Features]): See `finish`.
        RETURNS (List[EntityEvent]): New events. The entities of all events together are final.
        """
        if end is not None and end.attention is not None:
            self.attention.append(end.attention)
        return self.update(ended=True)

    def doc_of_words(self) -> Doc:
        """RETURNS (Doc): The annotated Doc of an ended text, with the words that were scored. The tokenizer
        can split the whole text into other words if a word depends on the text after it.
        """
        doc = self.predictor.tokenizer(self.text)
        words = [(t.idx, t.idx + len(t)) for t in doc]
        if words != self.words or doc.has_annotation("SENT_START"):
            spaces = [self.text[end : end + 1] == " " for _, end in self.words]
            starts = [start for start, _ in self.words[1:]] + [len(self.text)]
            spaces = [s and end < start for s, (_, end), start in zip(spaces, self.words, starts)]
            doc = Doc(doc.vocab, [self.text[i:j] for i, j in self.words], spaces)
        self.predictor.annotate(doc, np.array(self.rows) if len(doc) else np.zeros((0, 1, 1)))
        return doc

    def free(self) -> None:
        """Free the features of tokens that no later word needs."""
        if not self.words:
            return
        words = self.words[-self.reader.max_words :] if self.attention else self.words[-1:]
        first = bisect.bisect_left(self.starts, words[-1][1])
        if self.attention:
            first = min(first, bisect.bisect_right(self.ends, words[0][0]))
        for i in range(self.n_freed, first - 1):
            self.hidden[i] = FREED
            if self.attention:
                self.attention[i] = FREED
        self.n_freed = max(self.n_freed, first - 1)

    def _add_piece(self, piece: str) -> None:
        start = len(self.text)
        self.text += piece
        n_leading = len(piece) - len(piece.lstrip())
        for token, features in self.pending:
            self.ids.append(token)
            self.starts.append(start + (n_leading if n_leading < len(piece) else 0))
            self.ends.append(len(self.text))
            self.hidden.append(features.hidden)
            if features.attention is not None:
                self.attention.append(features.attention)
        self.pending = []

    def update(self, ended: bool = False) -> List[EntityEvent]:
        """Score the words that are complete.

        ended (bool): Whether the text ends here.
        RETURNS (List[EntityEvent]): New events.
        """
        words = self._new_words(ended)
        if not (words or ended):
            return []
        n_before = len(self.rows)
        offset = self.consumed
        for word in words:
            self.blank.append(word.is_blank)
            self.words.append((offset + word.start, offset + word.end))
            self._add_row(self.probe.push(self._last_word_features(), word.surface))
        if words:
            self.consumed = self.words[-1][1]
            # A single space belongs to the word before it.
            if self.text[self.consumed : self.consumed + 1] == " ":
                self.consumed += 1
        if ended:
            self._add_row(self.probe.end())
        return self._events(ended) if ended or len(self.rows) > n_before else []

    def _new_words(self, ended: bool) -> List[Word]:
        """RETURNS (List[Word]): The words after the consumed text that can't change anymore."""
        tail = self.text[self.consumed :]
        if ended:
            return self._words_in(tail)
        tokenizer = self.predictor.tokenizer
        if isinstance(tokenizer, Tokenizer):
            # spaCy's rules apply to the strings between spaces. Only the last string can still grow.
            closed = len(tail)
            while closed and not tail[closed - 1].isspace():
                closed -= 1
            head = tail[:closed].rstrip()
            if len(head) > MAX_CACHED:
                return self._words_in(head)
            if head not in self.word_cache:
                self.word_cache[head] = self._words_in(head)
            return self.word_cache[head]
        words = self._words_in(tail)
        if getattr(tokenizer, "segmenter", None) == "char":
            return words[:-1]
        # Other segmenters can change their words until a clause ends.
        closed = max((i + 1 for i, word in enumerate(words[:-1]) if word.is_punct), default=0)
        return words[:closed]

    def _words_in(self, text: str) -> List[Word]:
        doc = self.predictor.tokenizer(text)
        return [
            Word(t.idx, t.idx + len(t), is_blank(t.text), t.is_punct, row)
            for t, row in zip(doc, surface(doc))
        ]

    def _encoding(self) -> Encoding:
        return Encoding(self.ids, np.array(self.starts, dtype=int), np.array(self.ends, dtype=int))

    def _last_word_features(self) -> WordFeatures:
        """RETURNS (WordFeatures): Features of the last word, gathered from as few tokens as possible."""
        if self.hidden and not self.attention:
            # The last token that starts before the word's end, as in WordReader.gather.
            last = bisect.bisect_left(self.starts, self.words[-1][1]) - 1
            return WordFeatures(self.hidden[max(last, 0)])
        words = self.words[-self.reader.max_words :] if self.attention else self.words[-1:]
        first = max(bisect.bisect_right(self.ends, words[0][0]), 0)
        last = bisect.bisect_left(self.starts, words[-1][1])
        # Add one more token on both sides: a whitespace word can be part of the token after it.
        first = max(min(first, last) - 1, 0)
        last = min(last + 1, len(self.starts))
        part = slice(first, last)
        tokens = Features(torch.cat(self.hidden[part])) if last else Features(self._no_states())
        if self.attention:
            # Add one more row: the attention weights from the token after the word.
            tokens.attention = torch.cat(self.attention[first : last + 1])
        encoding = Encoding(self.ids[part], np.array(self.starts[part]), np.array(self.ends[part]))
        bounds = np.array(words)
        features = self.reader.gather(bounds[:, 0], bounds[:, 1], encoding, tokens)
        attention = None if features.attention is None else features.attention[-1:]
        return WordFeatures(features.hidden[-1:], attention)

    def _no_states(self) -> torch.Tensor:
        return torch.zeros((0, len(self.reader.layers), self.llm.width), device=self.llm.device)

    def _rescore(self, doc: Doc, encoding: Encoding) -> np.ndarray:
        """Score the words of the whole text again, with the features computed while it was written."""
        tokens = Features(torch.cat(self.hidden) if self.hidden else self._no_states())
        if self.attention:
            tokens.attention = torch.cat(self.attention)
        starts, ends = word_bounds(doc)
        return self.predictor.rows(doc, self.reader.gather(starts, ends, encoding, tokens))

    def _add_row(self, row: Optional[np.ndarray]) -> None:
        if row is not None:
            self.decoder.push(row, self.blank[len(self.rows)])
            self.rows.append(row)

    def _events(self, ended: bool) -> List[EntityEvent]:
        """Compare the best segmentation with the entities that were shown."""
        chain = self.decoder.chain
        fixed = len(chain) if ended else chain.fixed(since=self.fixed)
        current = chain.trace(until=self.fixed)
        removed = [key for key in self.shown if key not in current]
        events = []
        for key in current:
            is_final = key[1] <= fixed
            if key in self.shown and not is_final:
                continue
            overlapped = [old for old in removed if old[0] < key[1] and key[0] < old[1]]
            replaces = self._char_span(overlapped[0]) if overlapped else None
            status = "final" if is_final else "revised" if overlapped else "found"
            removed = [old for old in removed if old not in overlapped]
            for old in overlapped:
                self.shown.pop(old)
            for old in overlapped[1:]:
                events.append(self._event(old, "dropped"))
            event = self._event(key, status, replaces)
            events.append(event)
            if is_final:
                self.shown.pop(key, None)
            else:
                self.shown[key] = event
        for old in removed:
            self.shown.pop(old)
            events.append(self._event(old, "dropped"))
        self.fixed = fixed
        return events

    def _last_events(self, doc: Doc) -> List[EntityEvent]:
        """Correct the final events if the words or tokens of the whole text led to other entities."""
        final = {(e.start_char, e.end_char, e.label_): e for e in doc.ents}
        events = []
        for key in set(self.finals) - set(final):
            old = self.finals.pop(key)
            events.append(replace(old, status="dropped"))
        for key in set(final) - set(self.finals):
            ent = final[key]
            score = ent._.llmner_score or 0.0
            events.append(EntityEvent(*key, score, ent.text, "final"))
        return sorted(events, key=lambda e: (e.start, e.status != "dropped"))

    def _event(
        self, key: Key, status: str, replaces: Optional[Tuple[int, int, str]] = None
    ) -> EntityEvent:
        start, end, label = self._char_span(key)
        score = self.decoder.score(*key)
        found = self.predictor.spans([ScoredSpan(*key, score)])[0]
        event = EntityEvent(start, end, label, found.score, self.text[start:end], status, replaces)
        if status == "final":
            self.finals[(start, end, label)] = event
        return event

    def _char_span(self, key: Key) -> Tuple[int, int, str]:
        start, end, label = key
        return self.words[start][0], self.words[end - 1][1], self.predictor.labels[label]
