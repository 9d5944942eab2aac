"""`spacy llmner serve --replicas`: two replicas of Ray Serve on the CPU."""

import re
import signal
import socket
import sys
from unittest.mock import MagicMock

import httpx2
import openai
import psutil
import pytest

import spacy_llmner.cli  # noqa: F401  # it registers the command
from spacy_llmner.errors import LLMNERError
from spacy_llmner.serve import replicas
from spacy_llmner.serve.entities import final_entities
from spacy_llmner.serve.settings import ServeSettings
from tests.serve.helpers import Collected, entities, keys, process, wait_until
from tests.serve.test_upstream import found_in

pytest.importorskip("ray.serve", reason="ray[serve] is not installed")

MODEL = "ember_probe/model-best"
MESSAGES = [{"role": "user", "content": "Mira Stone met Oskar Blum in Varnholm."}]
SETTINGS = {"model": MODEL, "messages": MESSAGES, "temperature": 1.5, "seed": 4, "max_tokens": 40}
LONG = {**SETTINGS, "max_tokens": 500, "stream": True}


@pytest.fixture(scope="module")
def started(folder):
    """YIELDS (Tuple[str, Popen]): The URL of a server with two replicas, and its process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPACY_LLMNER_API_KEY", "ours")
        patch.setenv("OMP_NUM_THREADS", "2")
        limits = ["--max-streams", 1, "--max-waiting", 1]
        with process(folder, "--replicas", 2, *limits) as started:
            yield started


@pytest.fixture
def url(started):
    return started[0]


@pytest.fixture
def running(started):
    return started[1]


@pytest.fixture
def client(url):
    return openai.OpenAI(base_url=f"{url}/v1", api_key="ours", max_retries=0, timeout=100)


def metrics(url):
    """RETURNS (str): The metrics of all replicas."""
    reply = httpx2.get(f"{url}/metrics", headers={"Authorization": "Bearer ours"}, timeout=60)
    assert reply.status_code == 200
    return reply.text


def names(url):
    """RETURNS (Set[str]): The names of the replicas."""
    return set(re.findall(r'llmner_streams_running\{replica="(\w+)"\}', metrics(url)))


def n_running(url):
    """RETURNS (float): Streams that run in all replicas."""
    return sum(map(float, re.findall(r"(?m)^llmner_streams_running.* (\S+)$", metrics(url))))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("mode", [None, "annotate", "redact"])
def test_chat(server, client, stream, mode):
    """The answers are those of one server."""
    options = {"extra_body": entities(mode) if mode else {}}
    own = {**SETTINGS, "model": "tiny", **options}
    expected = server.client().chat.completions.create(**own).choices[0].message
    reply = client.chat.completions.create(**SETTINGS, stream=stream, **options)
    if stream:
        answer = Collected(reply)
        assert answer.n_chunks > 3
        text, found = answer.text, final_entities(answer.events)
    else:
        message = reply.choices[0].message
        text, found = message.content, getattr(message, "entities", [])
    assert text == expected.content and found == getattr(expected, "entities", [])
    assert bool(found) is (mode is not None)


def test_the_rest(nlp, url, client):
    """Other endpoints, the key, the page and errors are those of one server."""
    assert [model.id for model in client.models.list()] == [MODEL]
    response = client.responses.create(model=MODEL, input="Who?", max_output_tokens=5)
    assert response.status == "incomplete"
    headers, body = {"Authorization": "Bearer ours"}, {"texts": [MESSAGES[0]["content"]]}
    found = httpx2.post(f"{url}/ner", json=body, headers=headers).json()["results"][0]["entities"]
    assert keys(found) == found_in(nlp(MESSAGES[0]["content"]))
    refused = httpx2.post(f"{url}/ner", json=body)
    assert refused.status_code == 401 and refused.json()["error"]["code"] == "invalid_api_key"
    assert "text/html" in httpx2.get(url).headers["content-type"]
    assert "default-src 'none'" in httpx2.get(url).headers["Content-Security-Policy"]
    with pytest.raises(openai.NotFoundError, match="LLMNER157"):
        client.chat.completions.create(model="other", messages=MESSAGES)


def test_both_replicas_work(url, client):
    """Two streams at once, though each replica has only one. Others wait, or are told to come back."""
    known = names(url)
    assert len(known) == 2 and httpx2.get(f"{url}/health").json()["replica"] in known
    streams = [client.chat.completions.create(**LONG) for _ in range(2)]
    for stream in streams:
        next(stream)
    wait_until(lambda: n_running(url) == 2)
    # A client that goes away frees its place.
    for stream in streams:
        stream.close()
    wait_until(lambda: n_running(url) == 0)
    ended = re.findall(r'llmner_answers_total\{ended="cancelled",replica="(\w+)"\}', metrics(url))
    assert set(ended) == known


def test_a_replica_that_dies_is_replaced(running, url, client):
    before = names(url)
    family = psutil.Process(running.pid).children(recursive=True)
    victim = next(p for p in family if any("ServeReplica" in part for part in p.cmdline()))
    victim.send_signal(signal.SIGKILL)
    wait_until(lambda: len(names(url) - before) == 1 and len(names(url)) == 2, 120)
    for _ in range(6):
        assert client.chat.completions.create(**SETTINGS).choices[0].message.content


def test_nothing_is_left(running, url, client):
    """Ctrl-C ends answers with an error event, and all processes. It is the last test of this server."""
    stream = client.chat.completions.create(**LONG)
    next(stream)
    family = psutil.Process(running.pid).children(recursive=True)
    assert len(family) > 3
    running.send_signal(signal.SIGINT)
    with pytest.raises(openai.APIError, match="LLMNER163.*shutting down"):
        list(stream)
    assert running.wait(60) == 0
    _, left = psutil.wait_procs(family, 30)
    assert not left


def test_a_replica_that_fails(monkeypatch):
    ray, serve = MagicMock(), MagicMock()
    serve.run.side_effect = RuntimeError("the LLM is too large")
    monkeypatch.setattr(replicas, "_import_ray", lambda: (ray, serve))
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(LLMNERError, match="LLMNER119.*the LLM is too large"):
            replicas.run_replicas(None, MODEL, ServeSettings(port=0), 2)
        # SIGTERM ends the server as Ctrl-C does.
        assert signal.getsignal(signal.SIGTERM) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGTERM, before)
    assert serve.shutdown.called and ray.shutdown.called


def test_no_pipeline(run, tmp_path):
    assert "LLMNER100" in run("llmner", "serve", tmp_path / "nothing", "--replicas", 1, code=1)


def test_an_address_that_is_taken(run, folder):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        out = run("llmner", "serve", folder, "--replicas", 1, "--port", port, code=1)
    assert "LLMNER121" in out and f"127.0.0.1:{port}" in out


def test_too_few_gpus(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    with pytest.raises(LLMNERError, match="LLMNER120.*--replicas 2 .*but there are 1"):
        replicas.run_replicas(None, MODEL, ServeSettings(), 2)


def test_ray_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(LLMNERError, match=r"LLMNER177.*'ray\[serve\]'"):
        replicas.run_replicas(None, MODEL, ServeSettings(), 2)
