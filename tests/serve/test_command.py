"""`spacy llmner serve`: its options, warnings and errors."""

import sys

import pytest

import spacy_llmner.cli  # noqa: F401  # it registers the command
from spacy_llmner.serve.server import Server


@pytest.fixture
def started(monkeypatch):
    """Servers that the command would run."""
    servers = []
    monkeypatch.setattr(Server, "run", lambda server: servers.append(server))
    for name in ("SPACY_LLMNER_API_KEY", "SPACY_LLMNER_UPSTREAM_KEY"):
        monkeypatch.delenv(name, raising=False)
    return servers


def test_defaults(run, folder, started, recwarn):
    run("llmner", "serve", folder)
    (server,) = started
    assert (server.config.host, server.config.port) == ("127.0.0.1", 8000)
    assert server.app.state.service.model == "ember_probe/model-best"
    assert not [w for w in recwarn if "LLMNER" in str(w.message)]


def test_options(run, folder, started, monkeypatch):
    monkeypatch.setenv("SPACY_LLMNER_API_KEY", "ours")
    monkeypatch.setenv("SPACY_LLMNER_UPSTREAM_KEY", "theirs")
    options = ["--host", "0.0.0.0", "--port", 0, "--upstream", "http://localhost:1/v1"]
    options += ["--max-streams", 2, "--max-waiting", 0, "--max-tokens", 9, "--max-seconds", 7]
    run("llmner", "serve", folder, *options, "--cors", "http://a", "--cors", "http://b")
    service = started[0].app.state.service
    assert started[0].config.host == "0.0.0.0" and service.upstream.url == "http://localhost:1/v1"
    settings = service.settings
    assert (settings.api_key, settings.upstream_key) == ("ours", "theirs")
    assert (settings.max_streams, settings.max_waiting, settings.max_tokens) == (2, 0, 9)
    assert settings.max_seconds == 7 and settings.cors == ("http://a", "http://b")


def test_open_to_everyone(run, folder, started):
    with pytest.warns(UserWarning, match="LLMNER-W024.*listens on 0.0.0.0 without an API key"):
        run("llmner", "serve", folder, "--host", "0.0.0.0")


def test_logged_prompts(run, folder, started):
    with pytest.warns(UserWarning, match="LLMNER-W025"):
        run("llmner", "serve", folder, "--log-prompts")


def test_no_pipeline(run, tmp_path, started):
    assert "LLMNER100" in run("llmner", "serve", tmp_path / "nothing", code=1)
    assert not started


def test_missing_packages(run, folder, started, monkeypatch):
    monkeypatch.setitem(sys.modules, "fastapi", None)
    for name in [name for name in sys.modules if name.startswith("spacy_llmner.serve.")]:
        monkeypatch.delitem(sys.modules, name)
    out = run("llmner", "serve", folder, code=1)
    assert "LLMNER168" in out and 'pip install "spacy-llmner[serve]"' in out


def test_wrong_upstream(run, folder, started):
    out = run("llmner", "serve", folder, "--upstream", "localhost:8001/v1", code=1)
    assert "LLMNER165" in out and "must begin with http:// or https://" in out
    out = run("llmner", "serve", folder, "--upstream", "http://localhost:80o1/v1", code=1)
    assert "LLMNER165" in out and "port" in out
