"""Entities in a generation that users run themselves with transformers' `generate`."""

import queue
from contextlib import contextmanager
from typing import Any, Iterator, List, Optional, Sequence

import torch
from spacy.tokens import Doc
from transformers.generation.streamers import BaseStreamer

from ...errors import Errors, LLMNERError
from ...llm.hidden_states import Features, tap_generation
from ...llm.views import generating_view
from ..predictor import Predictor
from .events import Event, TextPiece
from .live_text import LiveText


class EmberStreamer(BaseStreamer):
    """A streamer for transformers' `generate`. Created by EmberProbe.streamer().

    Call `streamer.model.generate(..., streamer=streamer)` inside the `with` block, in the same thread;
    `model` is a view of the shared LLM. Iterate over the streamer to get the events: in another thread
    while the text is being written, or afterwards. After the last event, `doc` is the annotated Doc. A
    streamer follows a single generation of a single text. There are no more events after the end of the
    block.

    If a generation stops at its maximum length, the LLM never reads the last token. Then the word with this
    token is scored with the features of the token before it.
    """

    def __init__(self, predictor: Predictor) -> None:
        self.name = predictor.name
        self.llm = predictor.llm
        self.model: Any = generating_view(self.llm, predictor.reader.layers)
        self.doc: Optional[Doc] = None
        self._live = LiveText(predictor)
        self._queue: queue.Queue[Optional[Event]] = queue.Queue()
        self._unread: List[int] = []
        self._prompt: List[int] = []
        self._last: Optional[Features] = None
        self._read: Any = None

    def put(self, value: torch.Tensor) -> None:
        """Called by `generate`, first with the prompt, then with each new token.

        RAISES (LLMNERError): If the streamer can't follow the generation.
        """
        if self.doc is not None:
            raise self._error("it has followed a generation already")
        if value.dim() and len(value) > 1:
            raise self._error(f"{len(value)} texts are written at once")
        ids = value.reshape(-1).tolist()
        if not self._prompt:
            self._prompt = ids
            return
        features = self._read()
        if features is None:
            raise self._error("the LLM does not run through it")
        if self._last is None:
            self._add_prompt(features)
        else:
            self._add(features)
        self._last = features
        self._unread = ids

    def end(self) -> None:
        """Called by `generate` at the end."""
        if self._last is not None:
            hidden, attention = self._last.hidden[-1:], self._last.attention
            last = Features(hidden, None if attention is None else attention[-1:])
            self._add(last)
        self.doc, events = self._live.finish()
        for event in events:
            self._queue.put(event)
        self.close()

    def close(self) -> None:
        """Tell iterators that there are no more events."""
        self._queue.put(None)

    def __iter__(self) -> Iterator[Event]:
        while (event := self._queue.get()) is not None:
            yield event
        self.close()  # tell other iterators

    def _error(self, reason: str) -> LLMNERError:
        return LLMNERError(Errors.E042.format(reason=reason, name=self.name))

    def _add_prompt(self, features: Features) -> None:
        """Add the prompt's decoded text, without special tokens."""
        special = set(self.llm.tokenizer.hf.all_special_ids)
        for i, token in enumerate(self._prompt):
            if token not in special:
                part = _row(features, i)
                piece = len(self._live.text)
                events = self._live.add_token(token, part)
                self._emit(self._live.text[piece:], events)

    def _add(self, features: Features) -> None:
        ends = self.llm.end_ids
        for token in self._unread:
            if token not in ends:
                before = len(self._live.text)
                events = self._live.add_token(token, _row(features, len(features.hidden) - 1))
                self._emit(self._live.text[before:], events)
        self._unread = []

    def _emit(self, piece: str, events: Sequence[Event]) -> None:
        if piece:
            self._queue.put(TextPiece(piece))
        for event in events:
            self._queue.put(event)


@contextmanager
def follow_generation(predictor: Predictor) -> Iterator[EmberStreamer]:
    """Read the features of generations inside the block.

    YIELDS (EmberStreamer): The streamer.
    """
    streamer = EmberStreamer(predictor)
    with tap_generation(streamer.llm, predictor.reader.probed) as read:
        streamer._read = read
        try:
            yield streamer
        finally:
            streamer.close()


def _row(features: Features, i: int) -> Features:
    attention = None if features.attention is None else features.attention[i : i + 1]
    return Features(features.hidden[i : i + 1], attention)
