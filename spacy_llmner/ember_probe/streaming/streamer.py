"""Entities in a generation that the user runs with transformers' `generate`."""

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
    """A streamer for people who call `generate` themselves.

    Made by EmberProbe.streamer(). Call `streamer.model.generate(..., streamer=streamer)` inside the
    `with` block and in its thread; `model` is a view of the shared LLM. Iterate over the streamer to get
    the events (in another thread while they come, or afterwards); then `doc` is the annotated Doc. It
    follows one generation of one text; when the block is left, there are no more events.
    The last token of a generation that is cut by its length is never read by the LLM; its word is
    scored from the token before.
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
        """Called by `generate`: with the prompt first, then with each new token.

        RAISES (LLMNERError): If this is not what the streamer was made for."""
        if self.doc is not None:
            raise self._lost("it has followed a generation already")
        if value.dim() and len(value) > 1:
            raise self._lost(f"{len(value)} texts are written at once")
        ids = value.reshape(-1).tolist()
        if not self._prompt:
            self._prompt = ids
            return
        features = self._read()
        if features is None:
            raise self._lost("the LLM does not run through it")
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
        """Let those who iterate know that nothing more comes."""
        self._queue.put(None)

    def __iter__(self) -> Iterator[Event]:
        while (event := self._queue.get()) is not None:
            yield event
        self.close()  # for whoever else does

    def _lost(self, reason: str) -> LLMNERError:
        return LLMNERError(Errors.E042.format(reason=reason, name=self.name))

    def _add_prompt(self, features: Features) -> None:
        """The prompt's special tokens carry no text; the rest is its decoded text."""
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
    """Tap the LLM for the generations made inside the block. YIELDS (EmberStreamer): The streamer."""
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
