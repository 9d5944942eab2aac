"""POST /v1/completions, and what it shares with POST /v1/chat/completions."""

import time
import uuid
from typing import Any, AsyncIterator, Dict, List, Optional

from fastapi import APIRouter, Body, Request
from starlette.responses import JSONResponse, Response

from ..ember_probe.streaming.prompt import Prompt
from .answers import StreamedAnswer, read_whole, start_answer
from .entities import Part, final_entities
from .protocol import CompletionRequest, TextRequest, parse
from .request_errors import RequestError
from .sse import DONE, EventStream, as_event

router = APIRouter()


class TextShape:
    """How the answers of /v1/completions look.

    model (str): The model's name.
    """

    prefix, whole_object, chunk_object = "cmpl", "text_completion", "text_completion"

    def __init__(self, model: str) -> None:
        self.id = f"{self.prefix}-{uuid.uuid4().hex}"
        self.model = model
        self.created = int(time.time())

    def first(self) -> List[Dict[str, Any]]:
        """RETURNS (List[Dict[str, Any]]): The chunks before the first text."""
        return []

    def piece(self, text: str) -> Dict[str, Any]:
        """RETURNS (Dict[str, Any]): A piece of text, in a choice."""
        return {"text": text}

    def text(self, text: str, entities: Optional[List[Dict[str, Any]]]) -> Dict[str, Any]:
        """RETURNS (Dict[str, Any]): The whole text and its entities, in a choice."""
        return {"text": text, **({} if entities is None else {"entities": entities})}

    def last(self) -> Dict[str, Any]:
        """RETURNS (Dict[str, Any]): The end of the text, in a choice."""
        return {"text": ""}

    def chunk(self, choice: Dict[str, Any], finish_reason: Optional[str] = None) -> Dict[str, Any]:
        """RETURNS (Dict[str, Any]): One chunk of a stream."""
        choice = {"index": 0, "logprobs": None, **choice, "finish_reason": finish_reason}
        return self.envelope(self.chunk_object, [choice])

    def whole(self, choice: Dict[str, Any], answer: StreamedAnswer) -> Dict[str, Any]:
        """RETURNS (Dict[str, Any]): A whole answer."""
        choice = {"index": 0, "logprobs": None, **choice, "finish_reason": answer.finish_reason}
        return {**self.envelope(self.whole_object, [choice]), "usage": answer.usage}

    def envelope(self, kind: str, choices: List[Dict[str, Any]]) -> Dict[str, Any]:
        """RETURNS (Dict[str, Any]): An answer or a chunk with these choices."""
        common = {"id": self.id, "object": kind, "created": self.created, "model": self.model}
        return {**common, "choices": choices}


@router.post("/v1/completions")
async def create_completion(request: Request, body: Dict[str, Any] = Body()) -> Response:
    """Continue a text."""
    service = request.app.state.service
    if service.upstream is not None:
        return await service.upstream.forward("completions", request, body)
    checked = parse(CompletionRequest, body)
    return await respond(request, checked.text, checked, TextShape(service.model))


async def respond(
    request: Request, prompt: Prompt, body: TextRequest, shape: TextShape
) -> Response:
    """Answer a request with the pipeline's LLM.

    request (Request): The request.
    prompt (Prompt): A text, or messages.
    body (TextRequest): The settings.
    shape (TextShape): How the answer looks.
    RETURNS (Response): The whole answer, or a stream of chunks.
    """
    answer = await start_answer(request.app.state.service, request, prompt, body)
    if body.stream:
        return EventStream(chunks(answer, body, shape), answer.aclose)
    part = await read_whole(answer, request)
    has_entities = body.entities is not None and body.entities.mode is not None
    entities = final_entities(part.entities) if has_entities else None
    return JSONResponse(shape.whole(shape.text(part.text, entities), answer))


async def chunks(answer: StreamedAnswer, body: TextRequest, shape: TextShape) -> AsyncIterator[str]:
    """YIELDS (str): The chunks of an answer, as events."""
    with_usage = body.stream_options is not None and body.stream_options.include_usage
    no_usage: Dict[str, Any] = {"usage": None} if with_usage else {}
    for chunk in shape.first():
        yield as_event({**chunk, **no_usage})
    try:
        async for part in answer:
            if part.text or part.entities:
                yield as_event({**shape.chunk(as_choice(part, shape)), **no_usage})
    except RequestError as e:
        yield as_event(e.body())
        return
    yield as_event({**shape.chunk(shape.last(), answer.finish_reason), **no_usage})
    if with_usage:
        yield as_event({**shape.envelope(shape.chunk_object, []), "usage": answer.usage})
    yield DONE


def as_choice(part: Part, shape: TextShape) -> Dict[str, Any]:
    """RETURNS (Dict[str, Any]): A part of an answer, as a choice of a chunk."""
    entities = {"entities": part.entities} if part.entities else {}
    return {**shape.piece(part.text), **entities}
