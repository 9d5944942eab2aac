"""Responses that are sent piece by piece, as server-sent events."""

import json
from typing import Any, AsyncIterator, Awaitable, Callable, Optional

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from ..pipeline.labels import encodable

DONE = "data: [DONE]\n\n"


class EventStream(StreamingResponse):
    """A response of server-sent events.

    events (AsyncIterator[str]): The events.
    close (Callable[[], Awaitable[None]]): Called at the end in any case: when the client goes away too, and
        when it went away before the first event.
    """

    def __init__(self, events: AsyncIterator[str], close: Callable[[], Awaitable[None]]) -> None:
        # Proxies such as nginx must not collect the events.
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(events, headers=headers, media_type="text/event-stream")
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._close()


def as_event(data: Any, name: Optional[str] = None) -> str:
    """RETURNS (str): An event with JSON data."""
    json_data = json.dumps(data, ensure_ascii=False)
    if not encodable([json_data]):  # another server can send half of a surrogate pair
        json_data = json.dumps(data)
    text = f"data: {json_data}\n\n"
    return text if name is None else f"event: {name}\n{text}"


async def lines_of(pieces: AsyncIterator[bytes]) -> AsyncIterator[str]:
    """Split a stream of events into lines. httpx2's own method also splits at characters such as U+2028,
    which texts in JSON contain.

    pieces (AsyncIterator[bytes]): The stream, cut anywhere.
    YIELDS (str): The lines.
    """
    rest = b""
    async for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            yield line.rstrip(b"\r").decode("utf8", "replace")
    yield rest.decode("utf8", "replace")
