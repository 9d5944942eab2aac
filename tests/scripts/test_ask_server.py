"""scripts/ask_server.py: a server in a process of its own, from its start to its end."""

import sys

import pytest
import typer

from tests.ember_probe.helpers import make_nlp, train
from tests.serve.conftest import chat_llm  # noqa: F401
from tests.test_project_file import ask_server


def test_three_questions(chat_llm, tmp_path, capsys):  # noqa: F811
    train(make_nlp(chat_llm, width=32)).to_disk(tmp_path / "pipeline")
    ask_server.main(str(tmp_path / "pipeline"), max_tokens=5)
    out = capsys.readouterr().out
    assert out.count("mode annotate") == 2 and out.count("mode redact") == 1
    assert out.endswith("The server has stopped.\n")


def test_a_server_that_cannot_start(tmp_path, capsys):
    with pytest.raises(typer.Exit), ask_server.serving(str(tmp_path / "nothing")):
        pass
    assert "LLMNER100" in capsys.readouterr().err


def test_without_the_client(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(typer.Exit):
        ask_server.main("pipeline", max_tokens=5)
    assert "pip install openai" in capsys.readouterr().err
