"""`spacy llmner serve`: serve a pipeline, with an API that OpenAI's clients know."""

import os
import warnings
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import List, Optional

import typer

from ..errors import Errors, LLMNERError, Warnings
from ._util import exit_on_error, folder_name, load_pipeline

KEY, UPSTREAM_KEY = "SPACY_LLMNER_API_KEY", "SPACY_LLMNER_UPSTREAM_KEY"
LOCAL = ("127.0.0.1", "localhost", "::1")


def serve_cli(
    pipeline: str = typer.Argument(..., help="Pipeline: a folder or an installed package"),
    host: str = typer.Option("127.0.0.1", "--host", help="Address to listen on"),
    port: int = typer.Option(8000, "--port", min=0, max=65535, help="Port; 0 for any free one"),
    upstream: Optional[str] = typer.Option(
        None,
        "--upstream",
        help="URL of an OpenAI-compatible API that writes the answers, such as http://localhost:8001/v1",
    ),
    max_streams: int = typer.Option(8, "--max-streams", min=1, help="Answers at once"),
    max_waiting: int = typer.Option(32, "--max-waiting", min=0, help="Requests that can wait"),
    max_tokens: int = typer.Option(512, "--max-tokens", min=1, help="Maximum tokens per answer"),
    max_seconds: float = typer.Option(300.0, "--max-seconds", min=1, help="Maximum per request"),
    replicas: Optional[int] = typer.Option(
        None,
        "--replicas",
        min=1,
        help="Run this many replicas with Ray Serve, each with an LLM, and with a GPU if there are any",
    ),
    cors: Optional[List[str]] = typer.Option(
        None, "--cors", help="Origin whose pages can use the server. Can be repeated"
    ),
    log_prompts: bool = typer.Option(False, "--log-prompts", help="Write prompts to the log"),
) -> None:
    """
    Serve a pipeline. OpenAI's clients can use it at /v1; with the field `entities`, entities come with the
    answer, or are redacted. POST /ner finds entities in texts. If the environment variable
    SPACY_LLMNER_API_KEY is set, clients must send this key. SPACY_LLMNER_UPSTREAM_KEY is the key for the
    upstream server. Ctrl-C ends the server. See docs/serve.md.
    """
    with exit_on_error():
        try:
            from ..serve.app import make_app
            from ..serve.replicas import run_replicas
            from ..serve.request_errors import log_requests
            from ..serve.server import Server
            from ..serve.settings import ServeSettings
        except ModuleNotFoundError as e:
            raise LLMNERError(Errors.E168.format(name=e.name)) from None
        settings = ServeSettings(
            host=host,
            port=port,
            upstream=upstream,
            upstream_key=os.environ.get(UPSTREAM_KEY) or None,
            api_key=os.environ.get(KEY) or None,
            cors=tuple(cors or ()),
            log_prompts=log_prompts,
            max_streams=max_streams,
            max_waiting=max_waiting,
            max_tokens=max_tokens,
            max_seconds=max_seconds,
        )
        if host not in LOCAL and settings.api_key is None:
            warnings.warn(Warnings.W024.format(host=host), stacklevel=2)
        if log_prompts:
            warnings.warn(Warnings.W025, stacklevel=2)
            log_requests()
        nlp = load_pipeline(pipeline)
        if replicas is not None:
            # This process loads it only to find mistakes before Ray starts. It doesn't load the LLM. The
            # replicas can have another working directory.
            del nlp
            where = str(Path(pipeline).resolve()) if Path(pipeline).exists() else pipeline
            load = partial(load_pipeline, where)
            run_replicas(load, folder_name(pipeline), settings, replicas)
            return
        server = Server(make_app(nlp, folder_name(pipeline), settings), host, port)
        with suppress(KeyboardInterrupt):
            server.run()
