"""Several processes: the same output, and what happens if one of them dies or can't work."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from spacy_llmner.errors import LLMNERError
from spacy_llmner.scale import annotate, run, workers
from tests.scale.conftest import CODE, read_jsonl, read_output, write_jsonl


def annotate_with_two(*args, **settings):
    return annotate(*args, workers=2, code_path=CODE, shard_size=10, **settings)


def test_same_output(corpus, make_stub, tmp_path, monkeypatch):
    """As in this process, and no process is left."""
    with corpus.open("a") as file:
        file.write('{broken\n{"text": "FAIL"}\n')
    pipeline = make_stub("fails")
    annotate(corpus, tmp_path / "one", pipeline, shard_size=10)
    monkeypatch.setattr(run.torch, "get_num_threads", lambda: 5)
    threads = []
    usual = workers.annotate_in_processes
    monkeypatch.setattr(
        run, "annotate_in_processes", lambda *args: threads.append(args[3]) or usual(*args)
    )
    done = annotate_with_two(corpus, tmp_path / "two", pipeline)
    assert threads == [2] and done.n_failed == 2
    for folder in ("shards", "failed", "."):
        for path in (tmp_path / "one" / folder).glob("*.jsonl"):
            assert path.read_bytes() == (tmp_path / "two" / folder / path.name).read_bytes()
    assert not multiprocessing.active_children()
    # If nothing is missing, no process is started.
    monkeypatch.setattr(workers, "_Worker", None)
    assert annotate_with_two(corpus, tmp_path / "two", pipeline, resume=True).n_shards_before == 11


def test_a_process_that_dies_once_is_replaced(make_stub, tmp_path):
    corpus = write_jsonl(tmp_path / "a.jsonl", 40)
    corpus.write_text(corpus.read_text().replace("Text 17 ", "DIE 17 "))
    (tmp_path / "deaths").mkdir()
    pipeline = make_stub("dies", folder=str(tmp_path / "deaths"))
    done = annotate_with_two(corpus, tmp_path / "out", pipeline)
    assert done.n_failed == 0 and len(list((tmp_path / "deaths").iterdir())) == 1
    assert [row["id"] for row in read_output(tmp_path / "out")] == list(range(40))


def test_a_process_that_dies_twice(make_stub, tmp_path):
    corpus = write_jsonl(tmp_path / "a.jsonl", 60)
    corpus.write_text(corpus.read_text().replace("Text 57 ", "DIE 57 "))
    (tmp_path / "deaths").mkdir()
    pipeline = make_stub("dies", folder=str(tmp_path / "deaths"), times=2)
    message = r"175\] .*code or reason: -9\).* from a.jsonl:51 to a.jsonl:60.*--resume"
    with pytest.raises(LLMNERError, match=message):
        annotate_with_two(corpus, tmp_path / "out", pipeline)
    assert not multiprocessing.active_children()
    n_before = len(list((tmp_path / "out" / "shards").iterdir()))
    done = annotate(corpus, tmp_path / "out", pipeline, shard_size=10, resume=True)
    assert done.n_shards_before == n_before > 0
    assert [row["id"] for row in read_output(tmp_path / "out")] == list(range(60))


def test_error_of_the_setup(tiny_llm, corpus, tmp_path):
    """The same message as in one process."""
    from tests.ember_probe.helpers import make_nlp

    make_nlp(tiny_llm).to_disk(tmp_path / "pipeline")
    with pytest.raises(LLMNERError, match=r"\[LLMNER0\d\d\] .*has no labels"):
        annotate_with_two(corpus, tmp_path / "out", tmp_path / "pipeline")


def test_unexpected_error():
    """It is sent as text, since it may not be picklable."""

    def broken(shard):
        raise RuntimeError("odd")

    error = workers.answer_to(broken, "from a:1 to a:9")
    assert isinstance(error, LLMNERError)
    assert "182] A worker failed" in str(error) and "RuntimeError: odd" in str(error)


def test_one_gpu_for_each_process(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    gpus = [{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "1"}]
    assert run._places(1, 2) == gpus
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5,7")
    assert run._places(1, 2) == [{"CUDA_VISIBLE_DEVICES": "3"}, {"CUDA_VISIBLE_DEVICES": "5"}]
    assert run._places(2, 0) == [{}, {}]


def start(*args):
    """RETURNS (Popen): `spacy llmner annotate` in another process, once it has written a shard."""
    command = [sys.executable, "-m", "spacy", "llmner", "annotate", *map(str, args)]
    return subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell makes its background jobs ignore Ctrl-C, and these tests can be one.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def wait_for_shard(process, out):
    while process.poll() is None and not list(Path(out).glob("shards/*")):
        time.sleep(0.05)
    assert process.poll() is None


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_stopped(stub, tmp_path, sent, code):
    """A message says how to continue, and finished shards stay."""
    corpus = write_jsonl(tmp_path / "a.jsonl", 200_000)
    out = tmp_path / "out"
    process = start(corpus, out, "--model", stub, "--shard-size", "10")
    wait_for_shard(process, out)
    process.send_signal(sent)
    _, errors = process.communicate()
    assert process.returncode == code, errors
    assert f"✘ Stopped. The finished shards are in {out}" in errors and "--resume" in errors
    assert "Traceback" not in errors
    assert all(len(read_jsonl(path)) == 10 for path in (out / "shards").iterdir())
    assert {path.name for path in out.iterdir()} <= {"shards", "manifest.json", ".lock"}


def test_processes_end_with_their_parent(stub, tmp_path):
    """Also if it is killed and can't end them."""
    corpus = write_jsonl(tmp_path / "a.jsonl", 200_000)
    out = tmp_path / "out"
    process = start(corpus, out, "--model", stub, "--shard-size", "10", "--workers", "2")
    wait_for_shard(process, out)
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) >= 2
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    gone, alive = psutil.wait_procs(children, timeout=60)
    assert not alive
