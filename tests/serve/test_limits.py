"""Limits, keys, clients that go away, and the end of the server."""

import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx2
import openai
import pytest

from spacy_llmner.ember_probe.streaming.events import TextPiece
from tests.serve.helpers import MODEL, Collected, entities, serving, wait_until

QUESTION = {"model": MODEL, "messages": [{"role": "user", "content": "Who came?"}]}


class HeldStream:
    """A stream that writes one word, and goes on when it is told to, or cancelled."""

    def __init__(self, prompt):
        self.prompt = prompt
        self.go_on = threading.Event()
        self.cancelled = False
        self.error = None
        self.n_tokens = 10
        self.stop_reason = "end"

    def __iter__(self):
        yield TextPiece(f"{self.prompt[-1]['content']}\n\nOne")
        assert self.go_on.wait(60)
        if self.error is not None:
            raise self.error
        if not self.cancelled:
            yield TextPiece(" two")

    def cancel(self):
        self.cancelled = True
        self.go_on.set()


class HeldStreams:
    """Takes the place of a StreamPool."""

    def __init__(self):
        self.started = []

    def start(self, prompt, **settings):
        self.started.append(HeldStream(prompt))
        return self.started[-1]

    def close(self):
        self.closed = True


@pytest.fixture
def held(nlp):
    """A server for two streams at once and one more that waits."""
    with serving(nlp, max_streams=2, max_waiting=1) as running:
        running.service.streams.close()
        running.service.streams = running.streams = HeldStreams()
        yield running
        for stream in running.streams.started:
            stream.go_on.set()


def ask(running, stream=True, **options):
    return running.client().chat.completions.create(**QUESTION, stream=stream, **options)


def begin(running):
    """RETURNS (Tuple): A stream that has begun, and its first chunks."""
    stream = ask(running)
    return stream, [next(stream).choices[0].delta.content for _ in range(2)]


def test_waiting_and_busy(held):
    first, texts = begin(held)
    second, _ = begin(held)
    assert texts == ["", "One"]
    with ThreadPoolExecutor() as pool:
        third = pool.submit(ask, held, False)
        wait_until(lambda: held.service.slots.waiting == 1)
        for stream in (False, True):
            with pytest.raises(
                openai.RateLimitError, match="LLMNER159.*is busy: 2.* and 1"
            ) as caught:
                ask(held, stream)
            assert int(caught.value.response.headers["retry-after"]) > 0
        held.streams.started[0].go_on.set()
        assert Collected(first).text == " two"
        wait_until(lambda: len(held.streams.started) == 3)
        held.streams.started[2].go_on.set()
        assert third.result().choices[0].message.content == "One two"
    held.streams.started[1].go_on.set()
    assert Collected(second).text == " two"
    wait_until(lambda: held.service.slots.running == 0)


def test_a_client_that_goes_away(held):
    stream, _ = begin(held)
    stream.close()
    wait_until(lambda: held.streams.started[0].cancelled)
    wait_until(lambda: held.service.slots.running == 0 and not held.service.answers)


def test_a_client_that_goes_away_without_a_stream(held):
    with pytest.raises(openai.APITimeoutError):
        held.client().with_options(timeout=0.5).chat.completions.create(**QUESTION)
    wait_until(lambda: len(held.streams.started) == 1)
    held.streams.started[0].go_on.set()
    wait_until(lambda: held.service.slots.running == 0 and not held.service.answers)


def test_a_client_that_breaks_the_connection(held):
    """It sends half a request, or a whole one and nothing more."""
    host, port = held.url.removeprefix("http://").split(":")
    for body in (
        "{",
        '{"model": "tiny", "stream": true, "messages": [{"role": "user", "content": "x"}]}',
    ):
        with socket.create_connection((host, int(port))) as connection:
            head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            connection.sendall(f"{head}Content-Length: {max(len(body), 50)}\r\n\r\n{body}".encode())
            if len(body) > 1:
                wait_until(lambda: held.streams.started)
    wait_until(lambda: held.streams.started[0].cancelled)
    wait_until(lambda: held.service.slots.running == 0)


def test_a_stream_that_fails(held, caplog):
    first, _ = begin(held)
    second, _ = begin(held)
    held.streams.started[0].error = RuntimeError("Who came?")
    held.streams.started[0].go_on.set()
    with pytest.raises(openai.APIError, match="LLMNER167"):
        list(first)
    # What was asked is neither sent nor logged.
    logged = [record.getMessage() for record in caplog.records if "Error" in record.getMessage()]
    assert len(logged) == 1 and "RuntimeError" in logged[0] and "Who came?" not in caplog.text
    held.streams.started[1].go_on.set()
    assert Collected(second).text == " two"


def test_an_unexpected_error(nlp, caplog, monkeypatch):
    """Its message can contain what was asked, so it is neither sent nor logged."""

    def fail():
        raise RuntimeError(QUESTION["messages"][0]["content"])

    with serving(nlp) as running:
        monkeypatch.setattr(running.service.metrics, "text", fail)
        reply = httpx2.get(f"{running.url}/metrics")
        assert reply.status_code == 500 and "LLMNER167" in reply.json()["error"]["message"]
    assert "Who came?" not in reply.text + caplog.text and "RuntimeError" in caplog.text


def test_the_end_of_the_server(nlp):
    with serving(nlp) as running:
        running.service.streams = HeldStreams()
        stream, _ = begin(running)
    assert running.service.streams.started[0].cancelled and running.service.streams.closed
    with pytest.raises(openai.APIError, match="LLMNER163.*shutting down"):
        list(stream)


def test_no_requests_at_the_end(held):
    held.service.stopping = True
    with pytest.raises(openai.InternalServerError, match="LLMNER163"):
        ask(held)
    assert httpx2.get(f"{held.url}/health").json() == {"status": "stopping"}


def test_time_limit(nlp):
    with serving(nlp, max_seconds=0.2, max_streams=1) as running:
        running.service.streams = HeldStreams()
        stream = ask(running)
        with pytest.raises(openai.APIError, match="LLMNER162.*longer than 0.2 seconds"):
            list(stream)
        wait_until(lambda: running.service.slots.running == 0)
        with pytest.raises(openai.APIStatusError, match="LLMNER162"):
            ask(running, stream=False)
        assert all(stream.cancelled for stream in running.service.streams.started)


def test_size_of_a_request(nlp):
    with serving(nlp, max_body=1000) as running:
        for content in (b"x" * 1001, iter([b"x" * 600] * 2)):
            reply = httpx2.post(
                f"{running.url}/ner", content=content, headers={"content-type": "application/json"}
            )
            assert reply.status_code == 413 and "LLMNER158" in reply.json()["error"]["message"]


def test_api_key(nlp):
    with serving(nlp, api_key="schlüssel") as running:
        with pytest.raises(openai.AuthenticationError, match="LLMNER160.*missing or wrong"):
            running.client(api_key="wrong").models.list()
        for path in ("/ner", "/metrics", "/v1/models", "/v1/nothing"):
            assert httpx2.get(f"{running.url}{path}").status_code == 401
        for key, status in (("schlüssel", 200), ("schlüssel2", 401), ("schl", 401)):
            headers = {"authorization": f"Bearer {key}".encode()}
            assert httpx2.get(f"{running.url}/metrics", headers=headers).status_code == status
        for path in ("/health", "/"):
            assert httpx2.get(f"{running.url}{path}").status_code == 200


def test_cors(nlp):
    origin = {"Origin": "http://localhost:3000", "Access-Control-Request-Method": "POST"}
    with serving(nlp, cors=("http://localhost:3000",), api_key="k") as running:
        reply = httpx2.options(f"{running.url}/ner", headers=origin)
        assert reply.headers["access-control-allow-origin"] == "http://localhost:3000"
        other = {**origin, "Origin": "http://example.org"}
        assert (
            "access-control-allow-origin"
            not in httpx2.options(f"{running.url}/ner", headers=other).headers
        )
    with serving(nlp) as running:
        reply = httpx2.options(f"{running.url}/ner", headers=origin)
        assert "access-control-allow-origin" not in reply.headers
        # A browser sends this without asking.
        plain = {"content-type": "text/plain"}
        reply = httpx2.post(f"{running.url}/ner", content='{"texts": ["x"]}', headers=plain)
        assert reply.status_code == 400


def test_other_paths(server):
    for method, path in (
        ("GET", "/nothing"),
        ("GET", "/v1/nothing"),
        ("POST", "/v1/nothing"),
        ("GET", "/ner"),
    ):
        reply = httpx2.request(method, f"{server.url}{path}")
        assert reply.status_code in (404, 405)
        assert f"There is nothing at {path}" in reply.json()["error"]["message"]


def test_metrics(nlp):
    with serving(nlp) as running:
        Collected(ask(running, max_tokens=5, extra_body=entities("annotate")))
        httpx2.post(f"{running.url}/ner", json={"texts": ["a", "b"]})
        httpx2.get(f"{running.url}/made/up")
        text = httpx2.get(f"{running.url}/metrics").text
    lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert lines['llmner_requests_total{path="/v1/chat/completions",status="200"}'] == "1.0"
    assert lines['llmner_requests_total{path="other",status="404"}'] == "1.0"
    assert lines["llmner_streams_running"] == lines["llmner_streams_waiting"] == "0.0"
    assert lines["llmner_answer_tokens_total"] == "5.0"
    assert lines['llmner_answers_total{ended="length"}'] == "1.0"
    assert lines["llmner_ner_texts_total"] == "2.0"
    assert "made" not in text and "PER" not in text


@pytest.mark.parametrize("log_prompts", [False, True])
def test_prompts_are_only_logged_on_request(nlp, caplog, log_prompts):
    caplog.set_level("INFO")
    with serving(nlp, log_prompts=log_prompts) as running:
        ask(running, stream=False, max_tokens=2)
        httpx2.post(f"{running.url}/ner", json={"texts": ["Lorem"]})
    assert ("Who came?" in caplog.text) is ("Lorem" in caplog.text) is log_prompts


def test_streams_side_by_side(nlp):
    """Many clients, some of which go away. Each of the others gets its own answer."""
    with serving(nlp, max_streams=4, max_waiting=100) as running:
        client = running.client()

        def answer(seed, stream=True):
            settings = {**QUESTION, "temperature": 1.5, "seed": seed, "max_tokens": 30}
            reply = client.chat.completions.create(
                **settings, stream=stream, extra_body=entities("annotate")
            )
            if not stream:
                return reply.choices[0].message.content
            if seed % 3 == 0:
                next(reply)
                reply.close()
                return None
            return Collected(reply).text

        expected = [answer(seed, stream=False) for seed in range(24)]
        with ThreadPoolExecutor(12) as pool:
            texts = list(pool.map(answer, range(24)))
        assert all(text in (None, right) for text, right in zip(texts, expected))
        wait_until(lambda: running.service.slots.running == 0 and not running.service.answers)
