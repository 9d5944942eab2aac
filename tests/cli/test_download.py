import json

import pytest
import typer
from typer.testing import CliRunner

from spacy_llmner.cli.download import download_cli
from spacy_llmner.cli.info import info, info_cli
from spacy_llmner.errors import LLMNERError
from spacy_llmner.models import catalogue

download_module = "spacy_llmner.cli.download"


@pytest.fixture
def run(monkeypatch, tmp_path):
    monkeypatch.setenv(catalogue.HOME_VARIABLE, str(tmp_path / "home"))
    app = typer.Typer()
    app.command("download")(download_cli)
    app.command("info")(info_cli)
    return lambda *args: CliRunner().invoke(app, args)


@pytest.fixture
def downloads(monkeypatch, tmp_path):
    calls = []

    def download(name, **options):
        calls.append((name, options))
        return tmp_path / "models" / name

    monkeypatch.setattr(f"{download_module}.download", download)
    return calls


def test_download(run, downloads, tmp_path):
    result = run("download", "smollm2-135m-instruct")
    assert result.exit_code == 0, result.output
    assert "'smollm2-135m-instruct' is ready" in result.output
    assert "Apache-2.0" in result.output
    assert downloads == [
        (
            "smollm2-135m-instruct",
            {"accept_licence": False, "dtype": None, "progress": True, "home_dir": None},
        )
    ]


def test_dtype(run, downloads):
    assert run("download", "smollm2-135m-instruct", "--dtype", "bfloat16").exit_code == 0
    assert downloads[0][1]["dtype"] == "bfloat16"


def test_quiet(run, downloads):
    result = run("download", "smollm2-135m-instruct", "--quiet")
    assert result.exit_code == 0
    assert result.output == ""
    assert downloads[0][1]["progress"] is False


@pytest.mark.parametrize("flag", ["--accept-license", "--accept-licence"])
def test_accepted_licence_is_shown(run, downloads, flag):
    result = run("download", "gemma-3-270m", flag)
    assert "Licence accepted" in result.output
    assert "Gemma Terms of Use" in result.output
    assert downloads[0][1]["accept_licence"] is True


def test_licence_is_asked_for(run):
    result = run("download", "gemma-3-270m")
    assert result.exit_code == 1
    assert "Gemma is provided under and subject to the Gemma Terms of Use" in result.output
    # In one line, so that it can be copied.
    assert "python -m spacy llmner download gemma-3-270m --accept-license" in result.output


def test_a_folder_is_there_already(run, downloads, tmp_path):
    """A project must run with a folder: `spacy project run all . --vars.llm FOLDER`."""
    result = run("download", str(tmp_path))
    assert result.exit_code == 0
    assert "nothing to download" in result.stdout
    assert not downloads


def test_unknown_name(run):
    result = run("download", "gpt-9")
    assert result.exit_code == 1
    assert "no model 'gpt-9'" in result.output
    assert "all-minilm-l6-v2" in result.output


def test_errors_are_shown_even_if_quiet(run, monkeypatch):
    def fail(*args, **kwargs):
        raise LLMNERError("the disk is on fire")

    monkeypatch.setattr(f"{download_module}.download", fail)
    result = run("download", "all-minilm-l6-v2", "-q")
    assert result.exit_code == 1
    assert "the disk is on fire" in result.output


def test_info(run, tmp_path):
    (tmp_path / "home" / "features").mkdir(parents=True)
    (tmp_path / "home" / "features" / "x.bin").write_bytes(bytes(2_000_000))
    found = info()
    assert found["home"] == str(tmp_path / "home")
    assert found["features_mb"] == 2
    assert found["devices"][0] == "cpu"
    assert found["versions"]["spacy"].startswith("3.")
    assert [model["name"] for model in found["models"]] == list(catalogue.CATALOGUE)
    assert all(model["path"] is None for model in found["models"])
    result = run("info")
    assert result.exit_code == 0, result.output
    for model in catalogue.CATALOGUE.values():
        assert model.name in result.output
    assert "--accept-license" in result.output
    assert json.loads(run("info", "--json").output) == found
    qwen = next(model for model in found["models"] if "0.5b" in model["name"])
    assert qwen["memory_mb"] == {"float32": 1976, "bfloat16": 988, "4-bit": 474}
    output = result.output.replace("\n", " ")
    assert "494 million parameters, 988 MB on disk" in output
    assert "Licence: none stated in the wheels; Apache-2.0 for the original" in output


def test_info_of_a_model_that_is_there(run, monkeypatch, tmp_path):
    folder = tmp_path / "smollm2"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(bytes(3_000_000))
    monkeypatch.setattr(
        catalogue, "path_of", lambda name: folder if name.startswith("smollm2") else None
    )
    first = info()["models"][0]
    assert first["path"] == str(folder)
    assert first["size_mb"] == 3
    assert str(folder) in run("info").output.replace("\n", "")
