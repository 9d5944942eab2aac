"""POST /v1/responses: the same answers as those of a chat, in the form of OpenAI's newer API."""

import time
import uuid
from typing import Any, AsyncIterator, Dict, List

from fastapi import APIRouter, Body, Request
from starlette.responses import JSONResponse, Response

from .answers import StreamedAnswer, read_whole, start_answer
from .entities import final_entities
from .protocol import ResponseRequest, parse
from .request_errors import RequestError, unsupported
from .sse import EventStream, as_event

router = APIRouter()


class ResponseShape:
    """How a response looks. It has one message with one text, and entities as the text's annotations.

    body (ResponseRequest): The request.
    """

    def __init__(self, body: ResponseRequest) -> None:
        self.body = body
        self.id = f"resp_{uuid.uuid4().hex}"
        self.item_id = f"msg_{uuid.uuid4().hex}"
        self.created_at = int(time.time())
        self.text = ""
        self.annotations: List[Dict[str, Any]] = []
        self._number = 0

    def content(self) -> Dict[str, Any]:
        """RETURNS (Dict[str, Any]): The text so far."""
        kept = [{"type": "entity", **entity} for entity in final_entities(self.annotations)]
        return {"type": "output_text", "text": self.text, "annotations": kept, "logprobs": []}

    def item(self, status: str) -> Dict[str, Any]:
        """RETURNS (Dict[str, Any]): The message so far."""
        content = [] if status == "in_progress" else [self.content()]
        common = {"id": self.item_id, "type": "message", "role": "assistant"}
        return {**common, "status": status, "content": content}

    def response(self, status: str, answer: StreamedAnswer) -> Dict[str, Any]:
        """RETURNS (Dict[str, Any]): The response so far."""
        done = status in ("completed", "incomplete")
        reason = {"reason": "max_output_tokens"} if status == "incomplete" else None
        usage = {
            "input_tokens": answer.usage.get("prompt_tokens", 0),
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": answer.usage.get("completion_tokens", 0),
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": answer.usage.get("total_tokens", 0),
        }
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created_at,
            "status": status,
            "error": None,
            "incomplete_details": reason,
            "instructions": self.body.instructions,
            "max_output_tokens": self.body.max_output_tokens,
            "model": self.body.model,
            "output": [self.item(status)] if done else [],
            "parallel_tool_calls": False,
            "temperature": self.body.temperature,
            "tool_choice": "none",
            "tools": [],
            "top_p": self.body.top_p,
            "usage": usage if done else None,
        }

    def event(self, kind: str, **values: Any) -> str:
        """RETURNS (str): The next event of a stream."""
        number, self._number = self._number, self._number + 1
        return as_event({"type": kind, "sequence_number": number, **values}, kind)

    def text_event(self, kind: str, **values: Any) -> str:
        """RETURNS (str): The next event of a stream, about the text."""
        where = {"item_id": self.item_id, "output_index": 0, "content_index": 0}
        return self.event(kind, **where, **values)


@router.post("/v1/responses")
async def create_response(request: Request, body: Dict[str, Any] = Body()) -> Response:
    """Answer an input."""
    service = request.app.state.service
    if service.upstream is not None:
        return await service.upstream.forward("responses", request, body)
    checked = parse(ResponseRequest, body)
    if checked.stop:
        raise unsupported("stop", checked.stop, "/v1/responses has no stop strings")
    messages: List[Dict[str, str]] = []
    if checked.instructions:
        messages.append({"role": "system", "content": checked.instructions})
    if isinstance(checked.input, str):
        messages.append({"role": "user", "content": checked.input})
    else:
        messages += [message.as_turn() for message in checked.input]
    answer = await start_answer(service, request, messages, checked)
    shape = ResponseShape(checked)
    if checked.stream:
        return EventStream(events(answer, shape), answer.aclose)
    part = await read_whole(answer, request)
    shape.text, shape.annotations = part.text, part.entities
    return JSONResponse(shape.response(_status(answer), answer))


async def events(answer: StreamedAnswer, shape: ResponseShape) -> AsyncIterator[str]:
    """YIELDS (str): The events of a response."""
    progress = "in_progress"
    yield shape.event("response.created", response=shape.response(progress, answer))
    yield shape.event("response.in_progress", response=shape.response(progress, answer))
    yield shape.event("response.output_item.added", output_index=0, item=shape.item(progress))
    yield shape.text_event("response.content_part.added", part=shape.content())
    try:
        async for part in answer:
            if part.text:
                shape.text += part.text
                yield shape.text_event("response.output_text.delta", delta=part.text, logprobs=[])
            for entity in part.entities:
                yield shape.text_event(
                    "response.output_text.annotation.added",
                    annotation_index=len(shape.annotations),
                    annotation={"type": "entity", **entity},
                )
                shape.annotations.append(entity)
    except RequestError as e:
        yield shape.event("error", code=e.code, message=e.detail, param=e.param)
        return
    status = _status(answer)
    yield shape.text_event("response.output_text.done", text=shape.text, logprobs=[])
    yield shape.text_event("response.content_part.done", part=shape.content())
    yield shape.event("response.output_item.done", output_index=0, item=shape.item(status))
    yield shape.event(f"response.{status}", response=shape.response(status, answer))


def _status(answer: StreamedAnswer) -> str:
    return "incomplete" if answer.finish_reason == "length" else "completed"
