"""Many streams side by side, whose tokens share the LLM's forward passes."""

import queue
import threading
from typing import Any, Callable, Iterator, List, Optional, Sequence, Union

from ...errors import Errors, LLMNERError, check_values
from ..predictor import Predictor
from .events import Event
from .prompt import Prompt
from .rounds import RoundStream, StreamRounds


class StreamPool:
    """Generates several texts side by side. Created by EmberProbe.streams().

    Texts can begin and end at any time. Each round adds one token to every text, in one forward pass. So
    eight texts together take little longer than one. All passes run in one background thread.

    Without other streams, a text is the same as from EmberProbe.stream(). Next to others, it is the same
    unless two tokens are almost equally probable, since the order of floating-point sums differs.

    get_predictor (Callable): Returns the Predictor for some labels, or for the component's own if None.
    max_streams (int): Maximum number of texts that are generated at once. Others wait.
    """

    def __init__(self, get_predictor: Callable[..., Predictor], max_streams: int) -> None:
        """RAISES (LLMNERError): If the maximum is not a positive number."""
        check_values("streams", {"max_streams": max_streams}, least={"max_streams": 1})
        self.max_streams = max_streams
        self._get_predictor = get_predictor
        predictor = get_predictor()
        self._rounds = StreamRounds(predictor.llm, predictor.reader.probed)
        self._waiting: List[PooledStream] = []
        self._closed = False
        self._changed = threading.Condition()
        self._worker = threading.Thread(target=self._work, name="StreamPool", daemon=True)
        self._worker.start()

    def start(
        self, prompt: Prompt, *, labels: Optional[Sequence[str]] = None, **settings: Any
    ) -> "PooledStream":
        """Start a stream. Can be called from any thread.

        prompt, labels, settings: See EmberProbe.stream().
        RETURNS (PooledStream): Iterate over it once, in any thread.
        RAISES (LLMNERError): If a setting has an invalid value, or if the pool is closed.
        """
        stream = PooledStream(self._get_predictor(labels), prompt, **settings)
        with self._changed:
            if self._closed:
                raise LLMNERError(Errors.E154)
            self._waiting.append(stream)
            self._changed.notify()
        return stream

    @property
    def n_streams(self) -> int:
        """RETURNS (int): The number of streams that have not ended."""
        return len(self._rounds.running) + len(self._waiting)

    def close(self) -> None:
        """Cancel all streams, and wait until they have ended. Called at the end of a `with` block."""
        with self._changed:
            self._closed = True
            for stream in [*self._waiting, *self._rounds.running]:
                stream.cancel()
            self._changed.notify()
        self._worker.join()

    def __enter__(self) -> "StreamPool":
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()

    def _work(self) -> None:
        running = self._rounds.running
        while True:
            with self._changed:
                while not (self._waiting or running or self._closed):
                    self._changed.wait()
                new = self._admit()
                if self._closed and not (new or running):
                    return
            for stream in new:
                self._rounds.add(stream)
            self._rounds.round()

    def _admit(self) -> "List[PooledStream]":
        """RETURNS (List[PooledStream]): The waiting streams that can begin now."""
        for stream in [stream for stream in self._waiting if stream.cancelled]:
            self._waiting.remove(stream)
            stream.stop_reason = "cancelled"
            stream.end(None)
        n_free = self.max_streams - len(self._rounds.running)
        new, self._waiting = self._waiting[:n_free], self._waiting[n_free:]
        return new


class PooledStream(RoundStream):
    """A stream of a StreamPool. Like EmberStream, except that it is generated in the background.

    If it is cancelled before its prompt was read, `doc` is None. If the iteration is stopped early, it is
    cancelled.
    """

    def __init__(self, predictor: Predictor, prompt: Prompt, **settings: Any) -> None:
        super().__init__(predictor, prompt, **settings)
        self._queue: queue.Queue[Union[Event, Exception, None]] = queue.Queue()

    def flush(self) -> None:
        for event in self.take_events():
            self._queue.put(event)

    def end(self, error: Optional[Exception]) -> None:
        self._queue.put(error)

    def __iter__(self) -> Iterator[Event]:
        try:
            while (event := self._queue.get()) is not None:
                if isinstance(event, Exception):
                    raise event
                yield event
        finally:
            self.cancel()
            self.end(None)  # for another iteration
