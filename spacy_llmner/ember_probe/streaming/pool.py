"""Many streams side by side."""

import queue
import threading
from typing import Any, Callable, Iterator, Optional

from ..predictor import Predictor
from .events import Event
from .generation import EmberStream
from .prompt import Prompt


class PooledStream(EmberStream):
    """A stream of a StreamPool. Iterate over it once, in any thread."""

    def __init__(self, predictor: Predictor, prompt: Prompt, **settings: Any) -> None:
        super().__init__(predictor, prompt, **settings)
        self._queue: "queue.Queue[Any]" = queue.Queue()

    def __iter__(self) -> Iterator[Event]:
        while (event := self._queue.get()) is not None:
            if isinstance(event, BaseException):
                raise event
            yield event


class StreamPool:
    """Generates several texts side by side. Created by EmberProbe.streams()."""

    def __init__(self, make_predictor: Callable[..., Predictor], max_streams: int = 8) -> None:
        self._make_predictor = make_predictor
        self._free = threading.Semaphore(max_streams)

    def start(self, prompt: Prompt, *, labels: Any = None, **settings: Any) -> PooledStream:
        stream = PooledStream(self._make_predictor(labels), prompt, **settings)

        def run() -> None:
            with self._free:
                try:
                    for event in EmberStream.__iter__(stream):
                        stream._queue.put(event)
                    stream._queue.put(None)
                except Exception as e:
                    stream._queue.put(e)

        threading.Thread(target=run, daemon=True).start()
        return stream

    def __enter__(self) -> "StreamPool":
        return self

    def __exit__(self, *args: Optional[Any]) -> None:
        self.close()

    def close(self) -> None:
        """End all streams."""
