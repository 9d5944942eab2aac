"""Servers for tests, on free ports of 127.0.0.1."""

import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import openai
import uvicorn

from spacy_llmner.serve.app import make_app
from spacy_llmner.serve.server import Server
from spacy_llmner.serve.settings import ServeSettings

MODEL = "tiny"


class ServerThread:
    """Runs an application in a thread."""

    def __init__(self, app):
        config = uvicorn.Config(app, "127.0.0.1", 0, log_level="warning")
        self.start(uvicorn.Server(config))

    def start(self, server):
        self.server = server
        self.thread = threading.Thread(target=server.run)
        self.thread.start()
        wait_until(lambda: server.started or not self.thread.is_alive())
        port = server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"

    def stop(self):
        self.server.should_exit = True
        self.thread.join(60)
        assert not self.thread.is_alive()


class Running(ServerThread):
    """A server for a pipeline."""

    def __init__(self, nlp, **settings):
        self.app = make_app(nlp, MODEL, ServeSettings(**settings))
        self.service = self.app.state.service
        self.start(Server(self.app, "127.0.0.1", 0))

    def client(self, api_key="none", **options):
        """RETURNS (openai.OpenAI): The official client, which doesn't try again."""
        return openai.OpenAI(
            base_url=f"{self.url}/v1", api_key=api_key, max_retries=0, timeout=100, **options
        )


@contextmanager
def serving(nlp, **settings):
    """YIELDS (Running): A server, which is stopped at the end."""
    running = Running(nlp, **settings)
    try:
        yield running
    finally:
        running.stop()


@contextmanager
def process(pipeline, *options, seconds=60):
    """Run `spacy llmner serve` in another process. YIELDS (Tuple[str, Popen]): Its URL, and the process."""
    command = [sys.executable, "-m", "spacy", "llmner", "serve", str(pipeline), "--port", "0"]
    running = subprocess.Popen(
        [*command, *map(str, options)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        encoding="utf8",
        start_new_session=True,
        # A shell makes its background jobs ignore Ctrl-C, and these tests can be one.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    printed = []
    try:
        for line in running.stderr:
            printed.append(line)
            if found := re.search(r"running on (http://\S+)", line):
                break
        else:
            raise AssertionError("".join(printed))
        # Nobody reads what else it prints, which must not block it.
        threading.Thread(target=running.stderr.read, daemon=True).start()
        yield found.group(1), running
    finally:
        running.send_signal(signal.SIGTERM)
        running.wait(seconds)


def wait_until(is_true, seconds=60):
    """Wait for something that another thread does."""
    end = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < end
        time.sleep(0.01)


def entities(mode, **options):
    """RETURNS (Dict[str, Any]): What the client adds to a request."""
    return {"entities": {"mode": mode, **options}}


def keys(found):
    """RETURNS (List): Start, end and label of entities as they are sent."""
    return [(ent["start"], ent["end"], ent["label"]) for ent in found]


class Collected:
    """What a stream of chunks sent: all of its text, and its events. Checks each chunk."""

    def __init__(self, stream):
        self.text, self.events, self.finish_reason, self.usage = "", [], None, None
        self.n_chunks = 0
        for chunk in stream:
            self.n_chunks += 1
            if not chunk.choices:
                self.usage = chunk.usage
                continue
            assert self.finish_reason is None and self.usage is None
            choice = chunk.choices[0]
            text = choice.delta.content if hasattr(choice, "delta") else choice.text
            self.text += text or ""
            for event in getattr(choice, "entities", None) or []:
                # A client has the text of an entity before its event.
                assert self.text[event["start"] : event["end"]] == event["text"]
                self.events.append(event)
            self.finish_reason = choice.finish_reason
