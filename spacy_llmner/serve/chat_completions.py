"""POST /v1/chat/completions."""

from typing import Any, Dict, List, Optional

from fastapi import APIRouter, Body, Request
from starlette.responses import Response

from .completions import TextShape, respond
from .protocol import ChatRequest, parse

router = APIRouter()


class ChatShape(TextShape):
    """How the answers of /v1/chat/completions look."""

    prefix, whole_object, chunk_object = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def first(self) -> List[Dict[str, Any]]:
        return [self.chunk({"delta": {"role": "assistant", "content": ""}})]

    def piece(self, text: str) -> Dict[str, Any]:
        # A chunk that has only entities has an empty delta.
        return {"delta": {"content": text} if text else {}}

    def text(self, text: str, entities: Optional[List[Dict[str, Any]]]) -> Dict[str, Any]:
        message: Dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        return {"message": {**message, **({} if entities is None else {"entities": entities})}}

    def last(self) -> Dict[str, Any]:
        return {"delta": {}}


@router.post("/v1/chat/completions")
async def create_chat_completion(request: Request, body: Dict[str, Any] = Body()) -> Response:
    """Answer the last message of a chat."""
    service = request.app.state.service
    if service.upstream is not None:
        return await service.upstream.forward("chat/completions", request, body)
    checked = parse(ChatRequest, body)
    messages = [message.as_turn() for message in checked.messages]
    return await respond(request, messages, checked, ChatShape(service.model))
