"""`spacy llmner check`: what an LLM can be used for."""

import json

from typer.testing import CliRunner

from spacy_llmner.cli import app
from tests.llm.families import save_random_llm

RUN = CliRunner()


def test_table(tiny_llm):
    result = RUN.invoke(app, ["check", tiny_llm, "--device", "cpu"])
    assert result.exit_code == 0
    output = " ".join(result.output.split())  # without line breaks
    for text in (
        "Finished texts",
        "Streaming",
        "Prompts that share a prefix",
        "yes",
        "was checked in",
    ):
        assert text in output
    assert "⚠" not in result.output


def test_reasons(tmp_path):
    folder = save_random_llm(tmp_path / "falcon", "falcon")
    result = RUN.invoke(app, ["check", folder])
    assert result.exit_code == 0  # ember_probe can use it
    assert "attention that can't be replaced" in result.output
    found = json.loads(RUN.invoke(app, ["check", folder, "--json"]).output)
    assert found["reads"] == {"states": found["reads"]["states"], "log_probs": None, "reason": ""}
    assert found["trees"]["states"] is None and "replaced" in found["trees"]["reason"]


def test_unknown_llm():
    result = RUN.invoke(app, ["check", "no-such-llm"])
    assert result.exit_code == 1
    assert "no-such-llm" in result.output
