"""Errors that are sent to clients, in the form that OpenAI's API has."""

import logging
import traceback
import uuid
from typing import Any, Dict, Optional

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors import Errors, LLMNERError

logger = logging.getLogger("spacy_llmner.serve")


def log_requests() -> None:
    """Write all that this logger gets: prompts and texts, too."""
    logging.basicConfig()
    logger.setLevel(logging.INFO)


class RequestError(HTTPException):
    """A request can't be answered.

    message (str): What is wrong and what to do.
    status (int): HTTP status.
    code (Optional[str]): A word that programs can compare.
    param (Optional[str]): The field that is wrong.
    retry_after (Optional[int]): Seconds after which the client can try again.
    """

    def __init__(
        self,
        message: str,
        status: int = 400,
        code: Optional[str] = None,
        param: Optional[str] = None,
        retry_after: Optional[int] = None,
    ) -> None:
        headers = None if retry_after is None else {"Retry-After": str(retry_after)}
        super().__init__(status, message, headers)
        self.code = code
        self.param = param

    def body(self) -> Dict[str, Any]:
        """RETURNS (Dict[str, Any]): The error in the form that OpenAI's API has."""
        return error_body(self.detail, self.status_code, self.code, self.param)


def error_body(
    message: str, status: int, code: Optional[str] = None, param: Optional[str] = None
) -> Dict[str, Any]:
    """RETURNS (Dict[str, Any]): An error in the form that OpenAI's API has."""
    types = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
    kind = types.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "code": code, "param": param}}


def unsupported(field: str, value: Any, reason: str) -> RequestError:
    """RETURNS (RequestError): For a field that can't be used, to be raised by the caller."""
    message = Errors.E156.format(field=field, value=repr(value)[:100], reason=reason)
    return RequestError(message, 400, "unsupported_value", field)


def internal_error(error: BaseException) -> RequestError:
    """Log an unexpected error, without its message, which can contain a part of a prompt.

    RETURNS (RequestError): What the client is told.
    """
    name = uuid.uuid4().hex[:8]
    where = "".join(traceback.format_tb(error.__traceback__))
    logger.error("Error %s: %s\n%s", name, type(error).__name__, where)
    return RequestError(Errors.E167.format(id=name), 500, "internal_error")


def as_request_error(error: BaseException) -> RequestError:
    """RETURNS (RequestError): What the client is told about an error while its answer is written."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, LLMNERError):
        return RequestError(str(error), 500, "generation_failed")
    return internal_error(error)


class CatchErrors:
    """Middleware that catches unexpected errors.

    uvicorn would log them with their messages, which can contain a part of a prompt.

    app (ASGIApp): The application.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        has_started = False

        async def watched(message: Message) -> None:
            nonlocal has_started
            has_started = True
            await send(message)

        try:
            await self.app(scope, receive, watched)
        except Exception as e:
            error = internal_error(e)
            # If the response has started, uvicorn closes the connection.
            if not has_started:
                await JSONResponse(error.body(), error.status_code)(scope, receive, send)
