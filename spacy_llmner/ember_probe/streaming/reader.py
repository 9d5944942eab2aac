"""Entities in a text that arrives in pieces, for example from another LLM."""

from contextlib import nullcontext
from typing import Any, List, Optional

from spacy.tokens import Doc

from ...errors import Errors, LLMNERError
from ...llm.hidden_states import WindowReader
from ...llm.incremental import IncrementalEncoder
from ...llm.tokenization import Encoding
from ..predictor import Predictor
from .events import EntityEvent
from .live_text import LiveText

# Characters that are processed at once. Features of a longer piece would take much memory.
MAX_PIECE = 2000


class EmberReader:
    """Reads a text that arrives in pieces. Created by EmberProbe.reader().

    Pass each piece to `push`, and call `close` at the end of the text, or use the reader in a `with` block.
    Pieces can have any size and can be cut anywhere: the final entities and `doc` depend only on the text.
    `doc` is the annotated Doc after the end.

    The LLM reads each token once, as soon as the word after it begins. It reads the same prefix and the
    same windows as in finished texts.

    predictor (Predictor): A trained probe that can stream.
    """

    def __init__(self, predictor: Predictor) -> None:
        llm, reader = predictor.llm, predictor.reader
        self.doc: Optional[Doc] = None
        self.predictor = predictor
        self.lock = nullcontext()  # as in EmberStream
        self._open = True
        self._live = LiveText(predictor)
        self._encoder = IncrementalEncoder(llm.tokenizer)
        before = reader.before(llm)
        window = reader.window(llm, len(before))
        self._window = WindowReader(llm, reader.probed, before, *window)
        # A word is complete if the LLM has read it and white space follows. If the attention of the next
        # token is needed, the LLM must have read that token too.
        self._n_ahead = 0 if reader.attention else 1

    @property
    def text(self) -> str:
        """RETURNS (str): The text so far."""
        return self._encoder.text

    @property
    def settled(self) -> int:
        """RETURNS (int): Number of characters at the beginning of the text whose entities are final."""
        return self._live.settled if self.doc is None else len(self.text)

    def push(self, piece: str) -> List[EntityEvent]:
        """Read the next piece of the text.

        piece (str): The piece.
        RETURNS (List[EntityEvent]): New events.
        RAISES (LLMNERError): If the piece is not a text, or if the reader is closed.
        """
        if not isinstance(piece, str):
            raise LLMNERError(Errors.E126.format(name=self.predictor.name, value=piece))
        if not self._open:
            raise LLMNERError(Errors.E125.format(name=self.predictor.name))
        # After an exception, tokens are missing.
        self._open = False
        events = []
        for i in range(0, len(piece), MAX_PIECE):
            before = self._encoder.encoded
            encoding = self._encoder.push(piece[i : i + MAX_PIECE])
            if self._encoder.encoded > before:
                self._add(encoding, self._encoder.encoded + self._n_ahead)
                events += self._live.update()
                self._live.free()
        self._open = True
        return events

    def close(self) -> List[EntityEvent]:
        """End the text, and create `doc`.

        RETURNS (List[EntityEvent]): The last events. Empty if the reader was closed already.
        """
        if not self._open:
            return []
        self._open = False
        self._add(self._encoder.end(), len(self.text))
        end = self.predictor.llm.tokenizer.end if self._live.attention else []
        events = self._live.end(self._window.read_end(end) if end else None)
        self.doc = self._live.doc_of_words()
        return events

    def __enter__(self) -> "EmberReader":
        return self

    def __exit__(self, error: Any, *args: Any) -> None:
        if error is None:
            self.close()

    def _add(self, encoding: Encoding, n_chars: int) -> None:
        """Read the next tokens.

        n_chars (int): Number of characters of the text up to which words can be complete.
        """
        live = self._live
        live.add_text(self.text[len(live.text) : n_chars])
        first = 0
        for features in self._window.read(encoding.ids):
            part = slice(first, first + len(features.hidden))
            tokens = Encoding(encoding.ids[part], encoding.starts[part], encoding.ends[part])
            live.add_tokens(tokens, features)
            first = part.stop
