"""What one client may use: streams at once, the size of a request, and the server at all."""

import asyncio
import hmac
import time
from typing import Optional

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors import Errors
from .request_errors import RequestError

RETRY_AFTER = 5
# Paths that need the API key. /health and the files of the page don't.
API_PATHS = ("/v1", "/ner", "/metrics")


class Slots:
    """The answers that are written at once. Further requests wait, but not too many.

    n_running (int): Answers that can be written at once.
    n_waiting (int): Requests that can wait.
    """

    def __init__(self, n_running: int, n_waiting: int) -> None:
        self.n_running = n_running
        self.n_waiting = n_waiting
        self.running = 0
        self.waiting = 0
        self._free = asyncio.Semaphore(n_running)

    async def take(self, deadline: float) -> "Slot":
        """Wait for a free slot.

        deadline (float): When to give up, on the clock of `time.monotonic`.
        RETURNS (Slot): The slot. Call its `free` in any case.
        RAISES (RequestError): If too many requests wait, or at the deadline.
        """
        if self._free.locked() and self.waiting >= self.n_waiting:
            raise self._busy()
        self.waiting += 1
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                await self._free.acquire()
        except TimeoutError:
            raise self._busy() from None
        finally:
            self.waiting -= 1
        self.running += 1
        return Slot(self)

    def _busy(self) -> RequestError:
        message = Errors.E159.format(running=self.running, waiting=self.waiting)
        return RequestError(message, 429, "server_busy", retry_after=RETRY_AFTER)


class Slot:
    """One of the Slots, taken."""

    def __init__(self, slots: Slots) -> None:
        self._slots: Optional[Slots] = slots

    def free(self) -> None:
        """Free the slot. Can be called again."""
        slots, self._slots = self._slots, None
        if slots is not None:
            slots.running -= 1
            slots._free.release()


class ApiKey:
    """Middleware that refuses requests without the API key.

    app (ASGIApp): The application.
    key (str): The key.
    """

    def __init__(self, app: ASGIApp, key: str) -> None:
        self.app = app
        self.key = key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith(API_PATHS):
            given = Headers(scope=scope).get("authorization", "")
            kind, _, key = given.partition(" ")
            is_right = hmac.compare_digest(key.strip().encode("latin-1"), self.key)
            if kind.lower() != "bearer" or not is_right:
                error = RequestError(Errors.E160, 401, "invalid_api_key")
                response = JSONResponse(error.body(), 401, {"WWW-Authenticate": "Bearer"})
                await response(scope, receive, send)
                return
        await self.app(scope, receive, send)


class BodyLimit:
    """Middleware that refuses requests with a large body.

    app (ASGIApp): The application.
    most (int): Maximum number of bytes.
    """

    def __init__(self, app: ASGIApp, most: int) -> None:
        self.app = app
        self.most = most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        n_bytes = 0

        async def counted() -> Message:
            nonlocal n_bytes
            message = await receive()
            n_bytes += len(message.get("body", b""))
            if n_bytes > self.most:
                raise too_large(n_bytes, self.most)
            return message

        length = Headers(scope=scope).get("content-length", "")
        if length.isdigit() and int(length) > self.most:
            response = JSONResponse(too_large(int(length), self.most).body(), 413)
            await response(scope, receive, send)
            return
        await self.app(scope, counted, send)


def too_large(n: int, most: int) -> RequestError:
    """RETURNS (RequestError): For a body that is too large."""
    message = Errors.E158.format(n=n, what="bytes", most=most)
    return RequestError(message, 413, "request_too_large")


def check_size(n: int, what: str, most: int, field: str) -> None:
    """Check how much of something a request has.

    n (int): The number.
    what (str): What is counted, in the plural.
    most (int): The maximum.
    field (str): The field that it is in.
    RAISES (RequestError): If there is too much.
    """
    if n > most:
        message = Errors.E158.format(n=n, what=what, most=most)
        raise RequestError(message, 400, "limit_exceeded", field)
