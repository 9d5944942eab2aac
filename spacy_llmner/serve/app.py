"""The web application: endpoints, middleware and errors."""

from contextlib import asynccontextmanager
from typing import Any, AsyncIterator, Dict

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from spacy.language import Language
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response

from ..errors import Errors
from . import chat_completions, completions, ner, responses
from .limits import ApiKey, BodyLimit
from .metrics import CountRequests
from .request_errors import CatchErrors, RequestError, error_body
from .service import Service
from .settings import ServeSettings
from .static_page import StaticPage
from .upstream import Upstream


def make_app(nlp: Language, model: str, settings: ServeSettings) -> FastAPI:
    """Create the application. Its `state.service` has what the endpoints share.

    nlp (Language): The pipeline.
    model (str): Name by which clients know it.
    settings (ServeSettings): Settings and limits.
    RETURNS (FastAPI): The application.
    RAISES (LLMNERError): If the URL of the upstream server is not valid.
    """
    service = Service(nlp, model, settings)
    service.upstream = Upstream(service, settings.upstream) if settings.upstream else None

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        service.shut_down()
        if service.upstream is not None:
            await service.upstream.close()
        service.close()

    # FastAPI's own pages of documentation load scripts from another server.
    app = FastAPI(title="spacy-llmner", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.service = service
    for module in (chat_completions, completions, responses, ner):
        app.include_router(module.router)
    add_information(app)
    app.mount("/", StaticPage())
    # The last one comes first: a browser asks for the permission of CORS without a key.
    app.add_middleware(CatchErrors)
    app.add_middleware(BodyLimit, most=settings.max_body)
    if settings.api_key is not None:
        app.add_middleware(ApiKey, key=settings.api_key)
    app.add_middleware(CountRequests, metrics=service.metrics)
    if settings.cors:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.cors),
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
        )
    add_error_handlers(app)
    return app


def add_information(app: FastAPI) -> None:
    """Add the endpoints that say what the server has and does."""
    service: Service = app.state.service

    @app.get("/health")
    async def get_health() -> Dict[str, Any]:
        replica = {} if service.replica is None else {"replica": service.replica.name}
        return {"status": "stopping" if service.stopping else "ok", **replica}

    @app.get("/metrics")
    async def get_metrics() -> Response:
        replica = service.replica
        text = service.metrics.text() if replica is None else await replica.metrics()
        return Response(text, media_type="text/plain; version=0.0.4")

    @app.get("/v1/models")
    async def get_models(request: Request) -> Dict[str, Any]:
        own = {"object": "list", "data": [as_model(service.model)]}
        found = await service.upstream.models(request) if service.upstream else own
        return {**found, "entities": service.labels()}

    @app.get("/v1/models/{name:path}")
    async def get_model(name: str) -> Dict[str, Any]:
        if name != service.model:
            message = Errors.E157.format(name=name, known=service.model)
            raise RequestError(message, 404, "model_not_found", "model")
        return as_model(name)


def as_model(name: str) -> Dict[str, Any]:
    """RETURNS (Dict[str, Any]): A model as OpenAI's API describes it."""
    return {"id": name, "object": "model", "created": 0, "owned_by": "spacy-llmner"}


def add_error_handlers(app: FastAPI) -> None:
    """Send all errors in the form that OpenAI's API has."""

    async def http_error(request: Request, error: Exception) -> Response:
        if isinstance(error, RequestError):
            return JSONResponse(error.body(), error.status_code, error.headers)
        assert isinstance(error, HTTPException)
        message, code = str(error.detail), None
        if error.status_code in (404, 405):
            message, code = Errors.E169.format(path=request.url.path), "not_found"
        body = error_body(message, error.status_code, code)
        return JSONResponse(body, error.status_code, error.headers)

    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, (RequestValidationError, ValidationError))
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part != "body")
        reason = f"{where}: {first['msg']}" if where else first["msg"]
        body = error_body(Errors.E161.format(reason=reason), 400, "invalid_request", where or None)
        return JSONResponse(body, 400)

    async def gone(request: Request, error: Exception) -> Response:
        return Response(status_code=499)  # nobody reads it

    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(ValidationError, invalid)
    app.add_exception_handler(ClientDisconnect, gone)
