"""Servers for tests, on free ports of 127.0.0.1."""

import threading
import time
from contextlib import contextmanager

import openai

from spacy_llmner.serve.app import make_app
from spacy_llmner.serve.server import Server
from spacy_llmner.serve.settings import ServeSettings

MODEL = "tiny"


class Running:
    """A server in a thread."""

    def __init__(self, nlp, **settings):
        self.app = make_app(nlp, MODEL, ServeSettings(**settings))
        self.service = self.app.state.service
        self.server = Server(self.app, "127.0.0.1", 0)
        self.thread = threading.Thread(target=self.server.run)
        self.thread.start()
        wait_until(lambda: self.server.started or not self.thread.is_alive())
        port = self.server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"

    def client(self, api_key="none", **options):
        """RETURNS (openai.OpenAI): The official client, which doesn't try again."""
        return openai.OpenAI(
            base_url=f"{self.url}/v1", api_key=api_key, max_retries=0, timeout=100, **options
        )

    def stop(self):
        self.server.should_exit = True
        self.thread.join(60)
        assert not self.thread.is_alive()


@contextmanager
def serving(nlp, **settings):
    """YIELDS (Running): A server, which is stopped at the end."""
    running = Running(nlp, **settings)
    try:
        yield running
    finally:
        running.stop()


def wait_until(is_true, seconds=60):
    """Wait for something that another thread does."""
    end = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < end
        time.sleep(0.01)
