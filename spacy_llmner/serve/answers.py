"""Answers that the pipeline's own LLM writes."""

import asyncio
import threading
import time
from contextlib import suppress
from typing import Any, Dict, List, Optional, Union

from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request

from ..ember_probe.streaming.generation import EmberStream
from ..ember_probe.streaming.prompt import EncodedPrompt, Prompt, encode_prompt
from ..errors import Errors, LLMNERError
from .entities import MarkedStream, Part, choose_labels
from .limits import Slot, check_size
from .protocol import TextRequest
from .request_errors import RequestError, as_request_error, logger, unsupported
from .service import Service

FINISH_REASONS = {"end": "stop", "stop": "stop", "length": "length"}


class StreamedAnswer:
    """An answer while it is written. Iterate over it once, and call `close` in any case.

    service (Service): The server's parts.
    slot (Slot): The slot that the answer has taken.
    deadline (float): When the answer must end, on the clock of `time.monotonic`.

    After the last part, `finish_reason` and `usage` are set.
    """

    def __init__(self, service: Service, slot: Slot, deadline: float) -> None:
        self.finish_reason = ""
        self.usage: Dict[str, int] = {}
        self._service = service
        self._slot = slot
        self._deadline = deadline
        self._stream: Optional[EmberStream] = None
        self._loop = asyncio.get_running_loop()
        # Parts; None at the end, or an error.
        self._queue: asyncio.Queue[Union[None, Part, BaseException]] = asyncio.Queue()
        self._first: Optional[Part] = None
        self._ended = False
        service.answers.add(self)

    async def start(self, prompt: Prompt, body: TextRequest) -> None:
        """Start writing, and wait for the first part.

        prompt (Prompt): A text, or messages.
        body (TextRequest): The settings.
        RAISES (RequestError): If the answer can't be written.
        """
        try:
            await run_in_threadpool(self._start, prompt, body)
        except LLMNERError as e:
            raise RequestError(str(e), 400, "invalid_value") from e
        with suppress(StopAsyncIteration):
            self._first = await anext(self)

    def _start(self, prompt: Prompt, body: TextRequest) -> None:
        service, options = self._service, body.entities
        assert service.streams is not None
        wanted = options.labels if options else None
        labels, kept = choose_labels(service.ember, wanted, service.settings.max_labels)
        llm = service.ember.shared_llm()
        encoded = encode_prompt(llm, prompt)
        check_length(encoded, llm.max_length)
        given = {
            "temperature": body.temperature,
            "top_p": body.top_p,
            "repetition_penalty": body.repetition_penalty,
            "seed": body.seed,
        }
        stream = service.streams.start(
            prompt,
            labels=labels,
            max_new_tokens=max_tokens(body, service.settings.max_tokens),
            stop=body.stop or (),
            **{name: value for name, value in given.items() if value is not None},
        )
        self._stream = stream
        start = len(encoded.text) + len(encoded.separator)
        marked = MarkedStream(stream, start, options, kept, list(body.stop or ()))
        # A daemon, so that an answer never keeps the process from ending.
        threading.Thread(target=self._run, args=(stream, marked, encoded), daemon=True).start()

    def _run(self, stream: EmberStream, marked: MarkedStream, encoded: EncodedPrompt) -> None:
        """Pass on what the stream writes, in a thread of its own."""
        try:
            is_first = True
            for event in stream:
                part = marked.push(event)
                if is_first or part.text or part.entities:
                    self._put(part)
                is_first = False
            self._put(marked.close())
            n_prompt = len(encoded.ids)
            # A stream that was cancelled early has not read its prompt.
            n_answer = max(stream.n_tokens - len(encoded.encoding), 0)
            self.finish_reason = FINISH_REASONS.get(stream.stop_reason or "", "stop")
            self.usage = {
                "prompt_tokens": n_prompt,
                "completion_tokens": n_answer,
                "total_tokens": n_prompt + n_answer,
            }
            self._service.metrics.tokens.inc(n_answer)
            self._put(None)
        except Exception as e:
            stream.cancel()
            self._put(e)

    def _put(self, item: Union[None, Part, BaseException]) -> None:
        with suppress(RuntimeError):  # the server has ended
            self._loop.call_soon_threadsafe(self._queue.put_nowait, item)

    def __aiter__(self) -> "StreamedAnswer":
        return self

    async def __anext__(self) -> Part:
        if self._first is not None:
            part, self._first = self._first, None
            return part
        item = None if self._ended else await self._next()
        if isinstance(item, Part):
            return item
        if not self._ended:
            self._finish(self.finish_reason if item is None else "error")
        if item is None:
            raise StopAsyncIteration
        raise as_request_error(item)

    async def _next(self) -> Union[None, Part, BaseException]:
        try:
            async with asyncio.timeout(self._deadline - time.monotonic()):
                return await self._queue.get()
        except TimeoutError:
            seconds = self._service.settings.max_seconds
            return RequestError(Errors.E162.format(seconds=seconds), 504, "timeout")

    def _finish(self, ended: str) -> None:
        self._ended = True
        self._service.metrics.answers.labels(ended).inc()

    def shut_down(self) -> None:
        """End the answer with an error, since the server is shutting down."""
        self._queue.put_nowait(RequestError(Errors.E163, 503, "shutting_down"))

    def close(self) -> None:
        """End the answer, if it hasn't ended, and free its slot. Can be called again."""
        if not self._ended:
            self._finish("cancelled")
        if self._stream is not None:
            self._stream.cancel()
        self._service.answers.discard(self)
        self._slot.free()

    async def aclose(self) -> None:
        """Call `close`, for callers that wait."""
        self.close()


async def start_answer(
    service: Service, request: Request, prompt: Prompt, body: TextRequest
) -> StreamedAnswer:
    """Wait for a free slot, and start an answer.

    service (Service): The server's parts.
    request (Request): The request.
    prompt (Prompt): A text, or messages.
    body (TextRequest): The settings.
    RETURNS (StreamedAnswer): The answer, with a first part. Call `close` in any case.
    RAISES (RequestError): If the answer can't be written.
    """
    body.check_fields()
    service.check_can_write()
    check_model(body.model, service.model)
    if body.entities is not None and body.entities.redact_prompt:
        reason = "the prompt doesn't leave this server, which has no --upstream"
        raise unsupported("entities.redact_prompt", True, reason)
    texts = [prompt] if isinstance(prompt, str) else [turn["content"] for turn in prompt]
    check_size(sum(map(len, texts)), "characters", service.settings.max_chars, "prompt")
    if service.settings.log_prompts:
        logger.info("Prompt: %s", texts)
    deadline = service.deadline()
    slot = await service.take_slot(deadline)
    answer = StreamedAnswer(service, slot, deadline)
    try:
        if await request.is_disconnected():
            raise ClientDisconnect()
        await answer.start(prompt, body)
    except BaseException:
        answer.close()
        raise
    return answer


async def read_whole(answer: StreamedAnswer, request: Request) -> Part:
    """Read an answer to its end, unless the client goes away.

    RETURNS (Part): The whole text, and all events.
    RAISES (ClientDisconnect): If the client went away.
    """
    texts: List[str] = []
    events: List[Dict[str, Any]] = []
    try:
        async for part in answer:
            texts.append(part.text)
            events += part.entities
            if await request.is_disconnected():
                raise ClientDisconnect()
    finally:
        answer.close()
    return Part("".join(texts), events)


def max_tokens(body: TextRequest, most: int) -> int:
    """RETURNS (int): The maximum number of tokens of an answer.
    RAISES (RequestError): If more are requested than the server allows.
    """
    check_size(body.limit or 0, "tokens of answer", most, "max_tokens")
    return most if body.limit is None else body.limit


def check_model(model: str, known: str) -> None:
    """RAISES (RequestError): If another model is requested."""
    if model != known:
        message = Errors.E157.format(name=model, known=known)
        raise RequestError(message, 404, "model_not_found", "model")


def check_length(encoded: EncodedPrompt, most: int) -> None:
    """RAISES (RequestError): If the prompt leaves no room for an answer."""
    try:
        check_size(len(encoded.ids), "tokens of prompt", most - 1, "prompt")
    except RequestError as e:
        e.code = "context_length_exceeded"
        raise
