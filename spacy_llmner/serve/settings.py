"""Settings of the server."""

from dataclasses import dataclass
from typing import Optional, Tuple


@dataclass(frozen=True)
class ServeSettings:
    """Settings and limits of the server.

    host (str): Address to listen on.
    port (int): Port to listen on; 0 for any free one.
    upstream (Optional[str]): URL of an OpenAI-compatible API that writes the answers, such as
        http://localhost:8001/v1. None if the LLM of the pipeline writes them.
    upstream_key (Optional[str]): API key for the upstream server.
    api_key (Optional[str]): API key that clients must send.
    cors (Tuple[str, ...]): Origins whose pages can use the server from a browser.
    log_prompts (bool): Write prompts and texts to the log.
    max_streams (int): Answers that are written at once.
    max_waiting (int): Requests that wait for one of these. Further ones are refused.
    max_tokens (int): Maximum number of tokens of an answer, and the default.
    max_seconds (float): Maximum time for a request.
    max_body (int): Maximum size of a request, in bytes.
    max_texts (int): Maximum number of texts of a request to /ner.
    max_chars (int): Maximum number of characters of these texts, or of a prompt.
    max_labels (int): Maximum number of labels of a request.
    batch_seconds (float): Time for which requests to /ner are collected.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    upstream: Optional[str] = None
    upstream_key: Optional[str] = None
    api_key: Optional[str] = None
    cors: Tuple[str, ...] = ()
    log_prompts: bool = False
    max_streams: int = 8
    max_waiting: int = 32
    max_tokens: int = 512
    max_seconds: float = 300.0
    max_body: int = 2_000_000
    max_texts: int = 256
    max_chars: int = 200_000
    max_labels: int = 64
    batch_seconds: float = 0.003
