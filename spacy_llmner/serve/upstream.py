"""An OpenAI-compatible server that writes the answers. The pipeline's LLM reads them."""

import asyncio
import json
import re
import time
from typing import Any, AsyncIterator, Dict, Optional, Union

import httpx2
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from ..errors import Errors, LLMNERError
from .entities import choose_labels
from .limits import Slot
from .protocol import EntityOptions, UpstreamRequest, parse
from .redacted_prompt import redact_prompt
from .request_errors import RequestError, as_request_error, logger
from .service import Service
from .sse import EventStream, lines_of
from .upstream_choice import UpstreamChoices
from .upstream_response import UpstreamResponse
from .upstream_text import Wanted, check_can_redact

# Headers of a request that are passed on, next to "authorization".
PASSED_ON = ("openai-organization", "openai-project")


class Upstream:
    """Passes requests on to another server, and reads its answers.

    service (Service): The server's parts.
    url (str): The URL of the server's API.
    """

    def __init__(self, service: Service, url: str) -> None:
        """RAISES (LLMNERError): If the URL is not valid."""
        if not re.match(r"https?://\w", url):
            reason = "its URL must begin with http:// or https://"
            raise LLMNERError(Errors.E165.format(url=url, reason=reason))
        try:
            httpx2.URL(url)
        except httpx2.InvalidURL as e:
            raise LLMNERError(Errors.E165.format(url=url, reason=e)) from None
        self.service = service
        self.url = url.rstrip("/")
        seconds = service.settings.max_seconds
        self.client = httpx2.AsyncClient(timeout=httpx2.Timeout(seconds, connect=10.0))

    async def close(self) -> None:
        """Close the connections."""
        await self.client.aclose()

    async def models(self, request: Request) -> Dict[str, Any]:
        """RETURNS (Dict[str, Any]): What the server answers to GET /models."""
        try:
            reply = await self.client.get(f"{self.url}/models", headers=self._headers(request))
        except httpx2.HTTPError as e:
            raise self._unusable(e) from None
        return self._checked(reply)

    async def forward(self, path: str, request: Request, body: Dict[str, Any]) -> Response:
        """Pass a request on.

        path (str): The endpoint: "chat/completions", "completions" or "responses".
        request (Request): The request.
        body (Dict[str, Any]): Its body.
        RETURNS (Response): The answer, with the entities that were asked for.
        RAISES (RequestError): If the request can't be answered.
        """
        checked = parse(UpstreamRequest, body)
        exchange, has_response = Exchange(self, request, checked), False
        kind = UpstreamResponse if path == "responses" else UpstreamChoices
        try:
            exchange.answer = kind(await exchange.send(path, body))
            if checked.stream:
                has_response = True
                return EventStream(exchange.chunks(), exchange.aclose)
            # As ASCII, since another server can send half of a surrogate pair.
            return Response(json.dumps(await exchange.whole()), media_type="application/json")
        finally:
            if not has_response:
                await exchange.aclose()

    def _headers(self, request: Request) -> Dict[str, str]:
        headers = {name: request.headers[name] for name in PASSED_ON if name in request.headers}
        settings = self.service.settings
        if settings.upstream_key is not None:
            headers["authorization"] = f"Bearer {settings.upstream_key}"
        elif settings.api_key is None and "authorization" in request.headers:
            # If this server has a key, that is what the client sent.
            headers["authorization"] = request.headers["authorization"]
        return headers

    def _unusable(self, error: Exception) -> RequestError:
        message = Errors.E165.format(url=self.url, reason=type(error).__name__)
        return RequestError(message, 502, "upstream_unreachable")

    def _checked(self, reply: httpx2.Response) -> Dict[str, Any]:
        """RETURNS (Dict[str, Any]): The body of a reply.
        RAISES (RequestError): If it is an error, or not JSON.
        """
        try:
            data = reply.json()
        except ValueError:
            data = None
        if not isinstance(data, dict):
            message = Errors.E165.format(url=self.url, reason=f"status {reply.status_code}")
            raise RequestError(message, 502, "upstream_unreachable")
        if reply.status_code >= 400:
            error = data.get("error")
            error = error if isinstance(error, dict) else {"message": str(data)}
            message, code = str(error.get("message")), error.get("code")
            raise RequestError(message, reply.status_code, code, error.get("param"))
        return data


class Exchange:
    """One request to the upstream server, and its answer. Call `aclose` in any case.

    upstream (Upstream): The upstream server.
    request (Request): The request.
    checked (UpstreamRequest): What this server reads in its body.
    """

    def __init__(self, upstream: Upstream, request: Request, checked: UpstreamRequest) -> None:
        self.upstream = upstream
        self.service = upstream.service
        self.request = request
        self.streams = checked.stream
        self.deadline = self.service.deadline()
        self.options = checked.entities
        self.answer: Union[UpstreamChoices, UpstreamResponse]
        self._slot: Optional[Slot] = None
        self._reply: Optional[httpx2.Response] = None
        self._stopped = asyncio.Event()

    async def send(self, path: str, body: Dict[str, Any]) -> Optional[Wanted]:
        """Send the request, and wait for the beginning of the answer.

        path (str): The endpoint.
        body (Dict[str, Any]): The body.
        RETURNS (Optional[Wanted]): What to do with entities in the answer; None for nothing.
        """
        body = {key: value for key, value in body.items() if key != "entities"}
        if self.options is not None:
            self.service.check_can_write()
            check_can_redact(body, self.options)
        if self.service.settings.log_prompts:
            fields = ("messages", "prompt", "instructions", "input")
            logger.info("Prompt: %s", [body[field] for field in fields if field in body])
        self._slot = await self.service.take_slot(self.deadline)
        self.service.answers.add(self)
        wanted = None
        if self.options is not None:
            wanted = await run_in_threadpool(self._prepare, self.options, body)
        upstream = self.upstream
        message = upstream.client.build_request(
            "POST", f"{upstream.url}/{path}", json=body, headers=upstream._headers(self.request)
        )
        try:
            self._reply = await self._wait(upstream.client.send(message, stream=True))
            if self._reply.status_code >= 400 or not self.streams:
                await self._wait(self._reply.aread())
                upstream._checked(self._reply)
        except httpx2.HTTPError as e:
            raise upstream._unusable(e) from None
        return wanted

    def _prepare(self, options: EntityOptions, body: Dict[str, Any]) -> Wanted:
        ember, most = self.service.ember, self.service.settings.max_labels
        originals: Dict[str, str] = {}
        try:
            labels, kept = choose_labels(ember, options.labels, most)
            if options.redact_prompt:
                originals = redact_prompt(body, ember, options, labels, kept).originals
        except LLMNERError as e:
            raise RequestError(str(e), 400, "invalid_value") from e
        return Wanted(ember, options, labels, kept, originals)

    async def whole(self) -> Dict[str, Any]:
        """RETURNS (Dict[str, Any]): The whole answer."""
        assert self._reply is not None
        data = self.upstream._checked(self._reply)
        return await run_in_threadpool(self.answer.read_whole, data)

    async def chunks(self) -> AsyncIterator[str]:
        """YIELDS (str): The chunks of the answer, as events."""
        answer = self.answer
        try:
            async for data in self._data():
                if data.get("error"):
                    yield answer.as_event(data)
                    return
                # Only an answer that is read for entities takes time.
                for chunk in (
                    await run_in_threadpool(answer.read, data)
                    if answer.wanted
                    else answer.read(data)
                ):
                    yield answer.as_event(chunk)
            if missing := answer.missing():
                raise self._too_early(missing)
            if answer.end is not None:
                yield answer.end
        except httpx2.HTTPError as e:
            yield answer.as_event(self._too_early(type(e).__name__).body())
        except Exception as e:
            yield answer.as_event(as_request_error(e).body())

    async def _data(self) -> AsyncIterator[Dict[str, Any]]:
        """YIELDS (Dict[str, Any]): What the upstream server sends."""
        assert self._reply is not None
        lines = lines_of(self._reply.aiter_bytes())
        while True:
            try:
                line = await self._wait(anext(lines))
            except StopAsyncIteration:
                if self.answer.end is None and not self.answer.missing():
                    return
                raise self._too_early("the connection was closed") from None
            if not line.startswith("data:"):
                continue
            text = line.removeprefix("data:").strip()
            if text == "[DONE]":
                return
            try:
                data = json.loads(text)
            except ValueError:
                data = None
            if not isinstance(data, dict):
                raise self._too_early("it sent something that is not JSON")
            yield data

    async def _wait(self, awaitable: Any) -> Any:
        """Wait for the upstream server, but not beyond the deadline or the end of this server."""
        task = asyncio.ensure_future(awaitable)
        stopped = asyncio.ensure_future(self._stopped.wait())
        try:
            while not task.done():
                left = self.deadline - time.monotonic()
                if stopped.done():
                    raise RequestError(Errors.E163, 503, "shutting_down")
                if left <= 0:
                    seconds = self.service.settings.max_seconds
                    raise RequestError(Errors.E162.format(seconds=seconds), 504, "timeout")
                # A response that streams notices by itself that the client has gone away.
                if not self.streams and await self.request.is_disconnected():
                    raise ClientDisconnect()
                await asyncio.wait(
                    {task, stopped}, timeout=min(left, 1), return_when=asyncio.FIRST_COMPLETED
                )
            return task.result()
        finally:
            stopped.cancel()
            task.cancel()

    def _too_early(self, reason: str) -> RequestError:
        return RequestError(Errors.E166.format(reason=reason), 502, "upstream_failed")

    def shut_down(self) -> None:
        """End the answer with an error, since this server is shutting down."""
        self._stopped.set()

    async def aclose(self) -> None:
        """Close the connection, and free the slot. Can be called again."""
        self.service.answers.discard(self)
        if self._slot is not None:
            self._slot.free()
        if self._reply is not None:
            await self._reply.aclose()
