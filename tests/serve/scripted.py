"""A server with the API of OpenAI that answers what a test tells it to."""

import json

from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from tests.serve.helpers import ServerThread


class Scripted(ServerThread):
    """`pieces` are the pieces of the next answers, `requests` the bodies and headers that arrived. With
    `breaks`, streams end without their last chunk."""

    def __init__(self):
        self.pieces = ["Hello."]
        self.requests = []
        self.breaks = False
        self.extra = {}
        self.raw = None
        self.whole_json = None
        self.response = {}
        routes = [
            Route("/chat/completions", self.chat, methods=["POST"]),
            Route("/completions", self.complete, methods=["POST"]),
            Route("/responses", self.respond, methods=["POST"]),
            Route("/models", self.models),
        ]
        super().__init__(Starlette(routes=routes))

    def answer(self, pieces, breaks=False, extra=None, raw=None):
        """Set the next answers. `extra` is added to each delta or message; `raw` replaces the stream."""
        self.pieces, self.breaks, self.extra, self.raw = list(pieces), breaks, extra or {}, raw
        self.requests.clear()

    async def models(self, request):
        return JSONResponse({"object": "list", "data": [{"id": "scripted", "object": "model"}]})

    async def chat(self, request):
        return await self.reply(request, self.chat_piece, self.chat_whole)

    async def complete(self, request):
        return await self.reply(request, self.text_piece, self.text_whole)

    async def respond(self, request):
        body = await request.json()
        self.requests.append((body, dict(request.headers)))
        if body.get("model") != "scripted":
            error = {"message": "No such model", "type": "x", "code": "no_model", "param": "model"}
            return JSONResponse({"error": error}, 404)
        if body.get("stream"):
            return StreamingResponse(iter(self.raw), media_type="text/event-stream")
        return JSONResponse(self.response)

    async def reply(self, request, piece, whole):
        body = await request.json()
        self.requests.append((body, dict(request.headers)))
        if body.get("model") != "scripted":
            error = {"message": "No such model", "type": "x", "code": "no_model", "param": "model"}
            return JSONResponse({"error": error}, 404)
        if body.get("stream"):
            lines = self.raw or self.lines(piece)
            return StreamingResponse(iter(lines), media_type="text/event-stream")
        if self.whole_json is not None:
            return Response(self.whole_json, media_type="application/json")
        choices = [{"index": 0, **whole("".join(self.pieces)), "finish_reason": "stop"}]
        usage = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
        return JSONResponse({"id": "x", "object": "y", "choices": choices, "usage": usage})

    def lines(self, piece):
        yield ": a comment\n\n"
        for text in self.pieces:
            yield self.line({"index": 0, **piece(text), "finish_reason": None})
        if not self.breaks:
            yield self.line({"index": 0, **piece(""), "finish_reason": "stop"})
            yield "data: [DONE]\n\n"

    def answer_response(self, response, events):
        """Set the next answers to requests for /responses, whole and as a stream."""
        self.response, self.raw = response, [f"data: {json.dumps(event)}\n\n" for event in events]
        self.requests.clear()

    def chat_json(self, text, kind="delta"):
        return json.dumps({"choices": [{"index": 0, kind: {"content": text}}]})

    def line(self, choice):
        return f"data: {json.dumps({'id': 'x', 'object': 'y', 'choices': [choice]})}\n\n"

    def chat_piece(self, text):
        return {"delta": {**self.extra, "content": text}}

    def chat_whole(self, text):
        return {"message": {"role": "assistant", "content": text, **self.extra}}

    def text_piece(self, text):
        return {"text": text, **self.extra}

    text_whole = text_piece
