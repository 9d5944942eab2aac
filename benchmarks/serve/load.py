"""Load test of `spacy llmner serve`: clients that ask, cancel, and break their connections.

    python -m benchmarks.serve.load training/ember_probe/model-best

Each client sends one request after the other, of random kinds. If the server is busy, it waits for a
second. An answer is lost if it ends without a reason or with an error. A client hangs if it has not ended
two minutes after the last request. At the end, the server must have no streams.
"""

import json
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import contextmanager
from typing import Any, Callable, Dict, Iterator, List, Tuple

import httpx2
import openai
import psutil
import typer

from benchmarks.lib.common import save

STARTED = re.compile(r"running on (http://\S+)")
QUESTIONS = ("Tell me about the cities of Kenya.", "Who invented the telephone?", "Where is CERN?")
TEXT = "Ada Lovelace met Charles Babbage in London."


class Client:
    """Sends requests of random kinds.

    url (str): The server.
    seed (int): Seed of the choices.
    """

    def __init__(self, url: str, seed: int) -> None:
        self.url = url
        self.rng = random.Random(seed)
        self.api = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=300)
        self.model = next(iter(self.api.models.list())).id
        kinds: List[Callable[[], bool]] = [
            self.annotate,
            self.redact,
            self.whole,
            self.cancel,
            self.break_off,
            self.find,
        ]
        self.kinds = kinds
        self.counts: Counter = Counter()
        self.errors: List[str] = []

    def run(self, end: float) -> None:
        """Send requests until a time."""
        while time.monotonic() < end:
            kind = self.rng.choice(self.kinds)
            try:
                self.counts[kind.__name__ if kind() else "lost"] += 1
            except openai.RateLimitError:
                self.counts["busy"] += 1
                time.sleep(1)
            except Exception as e:
                self.counts["lost"] += 1
                self.errors.append(repr(e)[:200])

    def body(self, mode: str) -> Dict[str, Any]:
        """RETURNS (Dict[str, Any]): A random request for a chat."""
        return {
            "model": self.model,
            "messages": [{"role": "user", "content": self.rng.choice(QUESTIONS)}],
            "max_tokens": self.rng.choice([5, 20, 60]),
            "temperature": 0.8,
            "seed": self.rng.randrange(10**6),
            "extra_body": {"entities": {"mode": mode}},
        }

    def annotate(self) -> bool:
        return self._stream("annotate")

    def redact(self) -> bool:
        return self._stream("redact")

    def _stream(self, mode: str) -> bool:
        chunks = self.api.chat.completions.create(**self.body(mode), stream=True)
        return [chunk.choices[0].finish_reason for chunk in chunks][-1] is not None

    def whole(self) -> bool:
        answer = self.api.chat.completions.create(**self.body("annotate"))
        return answer.choices[0].finish_reason is not None

    def cancel(self) -> bool:
        """Close the connection after the first chunks."""
        stream = self.api.chat.completions.create(**self.body("annotate"), stream=True)
        for _ in range(self.rng.randrange(1, 4)):
            next(stream)
        stream.close()
        return True

    def break_off(self) -> bool:
        """Break the connection at once, or with half of the request."""
        body = self.body("annotate")
        content = json.dumps({**body, **body.pop("extra_body"), "stream": True}).encode()
        host, port = self.url.removeprefix("http://").split(":")
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        with socket.create_connection((host, int(port))) as connection:
            half = content[: self.rng.choice([len(content), len(content) // 2])]
            connection.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + half)
            if self.rng.random() < 0.5 and half == content:
                connection.recv(10)
        return True

    def find(self) -> bool:
        reply = httpx2.post(f"{self.url}/ner", json={"texts": [TEXT]}, timeout=300)
        if reply.status_code == 429:
            time.sleep(1)
        return reply.status_code == 429 or bool(reply.json()["results"][0]["entities"])


def main(
    pipeline: str = typer.Argument(..., help="Pipeline with an ember_probe"),
    n_clients: int = typer.Option(16, "--clients", min=1),
    minutes: float = typer.Option(5.0, "--minutes"),
) -> None:
    """Run the clients, and save what happened."""
    with serving(pipeline) as (url, process):
        clients = [Client(url, seed) for seed in range(n_clients)]
        end = time.monotonic() + 60 * minutes
        threads = [threading.Thread(target=c.run, args=(end,), daemon=True) for c in clients]
        for thread in threads:
            thread.start()
        megabytes: List[int] = []
        while time.monotonic() < end:
            time.sleep(10)
            megabytes.append(round(process.memory_info().rss / 2**20))
        for thread in threads:
            thread.join(max(end + 120 - time.monotonic(), 0))
        n_hung = sum(thread.is_alive() for thread in threads)
        counts = sum((client.counts for client in clients), Counter())
        wait_for_idle(url)
        for error in sorted({error for client in clients for error in client.errors}):
            print(error)
        n_warm = len(megabytes) // 5
        save(
            "serve_load",
            {
                "clients": n_clients,
                "minutes": minutes,
                "requests": dict(sorted(counts.items())),
                "lost": counts["lost"],
                "hung": n_hung,
                "streams left at the end": streams_left(url),
                "memory in MB after a fifth of the time": megabytes[n_warm],
                "memory in MB at the end": megabytes[-1],
                "highest memory in MB": max(megabytes),
            },
        )


def wait_for_idle(url: str) -> None:
    """Give the server a minute to end the streams of clients that went away."""
    end = time.monotonic() + 60
    while streams_left(url) and time.monotonic() < end:
        time.sleep(1)


def streams_left(url: str) -> int:
    """RETURNS (int): Streams that run or wait."""
    text = httpx2.get(f"{url}/metrics", timeout=60).text
    found = re.findall(r"^llmner_streams_(?:running|waiting) (\S+)$", text, re.MULTILINE)
    return int(sum(map(float, found)))


@contextmanager
def serving(pipeline: str, *settings: str) -> Iterator[Tuple[str, psutil.Process]]:
    """Run a server on a free port. YIELDS (Tuple[str, Process]): Its URL and its process."""
    command = [sys.executable, "-m", "spacy", "llmner", "serve", pipeline, "--port", "0", *settings]
    options: Dict[str, Any] = {"stdout": subprocess.DEVNULL, "encoding": "utf8"}
    server = subprocess.Popen(command, stderr=subprocess.PIPE, **options)
    assert server.stderr is not None
    try:
        lines = (STARTED.search(line) for line in server.stderr)
        yield next(line for line in lines if line).group(1), psutil.Process(server.pid)
    finally:
        server.send_signal(signal.SIGINT)
        server.communicate(timeout=60)


if __name__ == "__main__":
    typer.run(main)
