"""Annotating a corpus in this process: formats, resuming, and what is refused."""

import errno
import json
import os
import random
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import spacy
from spacy.tokens import DocBin

from spacy_llmner.errors import LLMNERError
from spacy_llmner.scale import annotate, output, shards
from tests.ember_probe.helpers import TEXTS, entities, make_nlp, train
from tests.scale.conftest import read_jsonl, read_output, write_jsonl

BONN = {"label": "CITY", "score": None}


def files_of(folder):
    """RETURNS (Dict[str, bytes]): All files of an output folder that contain documents."""
    paths = [*folder.glob("[!.]*/*"), *folder.glob("failed.jsonl")]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def test_jsonl(corpus, stub, tmp_path):
    done = annotate(corpus, tmp_path / "out", stub, shard_size=30)
    rows = read_output(tmp_path / "out")
    assert [row["id"] for row in rows] == list(range(100))
    assert rows[7]["entities"] == [{"start": 16, "end": 20, **BONN}]
    assert done.n_documents == 100 and done.n_failed == 0 and done.n_shards_before == 0
    assert [path.name for path in done.shards] == [f"shard-00000{i}.jsonl" for i in range(4)]
    assert [len(read_jsonl(path)) for path in done.shards] == [30, 30, 30, 10]
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["result"] == {"documents": 100, "failed": 0, "shards": 4}
    assert manifest["input"][0]["documents"] == 100 and manifest["settings"]["shard_size"] == 30
    left = {path.name for path in (tmp_path / "out").iterdir()}
    assert left <= {"shards", "manifest.json", ".lock"}


def test_parquet(corpus, stub, tmp_path):
    pq = pytest.importorskip("pyarrow.parquet")
    annotate(corpus, tmp_path / "out", stub, shard_size=30, format="parquet", spans=True)
    table = pq.read_table(tmp_path / "out" / "shards")
    assert table["id"].to_pylist() == list(range(100))
    assert table["entities"].to_pylist()[7] == [{"start": 16, "end": 20, **BONN}]
    # and back again
    annotate(tmp_path / "out" / "shards", tmp_path / "again", stub)
    assert [row["id"] for row in read_output(tmp_path / "again")] == list(range(100))


def test_docs(corpus, stub, tmp_path):
    """The files can be used for training."""
    done = annotate(corpus, tmp_path / "out", stub, shard_size=60, format="spacy")
    vocab = spacy.blank("en").vocab
    docs = [doc for path in done.shards for doc in DocBin().from_disk(path).get_docs(vocab)]
    assert len(docs) == 100 and entities(docs[7]) == [(16, 20, "CITY")]
    assert docs[7].has_annotation("ENT_IOB") and docs[7].user_data["fields"] == {"id": 7}
    annotate(tmp_path / "out" / "shards", tmp_path / "again", stub)
    assert len(read_output(tmp_path / "again")) == 100


def test_long_texts_have_shards_of_their_own(stub, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "MAX_CHARS", 30)
    done = annotate(write_jsonl(tmp_path / "a.jsonl", 5), tmp_path / "out", stub)
    assert [len(read_jsonl(path)) for path in done.shards] == [2, 2, 1]


def test_shards_fit_into_memory(stub, tmp_path, monkeypatch):
    """Also if other fields than the text are long."""
    monkeypatch.setattr(shards, "MAX_SIZE", 80)
    done = annotate(write_jsonl(tmp_path / "a.jsonl", 5), tmp_path / "out", stub)
    assert [len(read_jsonl(path)) for path in done.shards] == [2, 2, 1]


def test_the_same_as_the_pipeline(tiny_llm, tmp_path):
    nlp = train(make_nlp(tiny_llm, width=32))
    nlp.to_disk(tmp_path / "pipeline")
    (tmp_path / "a.txt").write_text("\n".join(TEXTS * 5))
    annotate(tmp_path / "a.txt", tmp_path / "out", tmp_path / "pipeline", shard_size=7, spans=True)
    rows = read_output(tmp_path / "out")
    assert [row["text"] for row in rows] == TEXTS * 5
    for row, doc in zip(rows, nlp.pipe(TEXTS * 5)):
        assert [(e["start"], e["end"], e["label"]) for e in row["entities"]] == entities(doc)
        for ent, row_ent in zip(doc.ents, row["entities"]):
            assert row_ent["score"] == pytest.approx(ent._.llmner_score, abs=1e-4)
        assert len(row["spans"]) == len(doc.spans["llmner"])
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    llm = nlp.get_pipe("ember_probe").llm.load()
    assert manifest["pipeline"]["llms"] == [{"fingerprint": llm.fingerprint}]


def test_failed_documents(make_stub, tmp_path):
    lines = ['{"id": 0, "text": "Bonn"}', '{"id": 1, "text": "FAIL"}', "{broken", '{"text": null}']
    (tmp_path / "a.jsonl").write_text("\n".join(lines * 2))
    done = annotate(tmp_path / "a.jsonl", tmp_path / "out", make_stub("fails"), shard_size=3)
    assert (done.n_documents, done.n_failed) == (8, 6)
    assert [row["id"] for row in read_output(tmp_path / "out")] == [0, 0]
    failed = read_jsonl(tmp_path / "out" / "failed.jsonl")
    assert [row["failed"]["row"] for row in failed] == [2, 3, 4, 6, 7, 8]
    assert "I don't like this text" in failed[0]["failed"]["reason"] and failed[0]["id"] == 1
    assert failed[1]["line"] == "{broken" and "not valid JSON" in failed[1]["failed"]["reason"]
    # They can be annotated again.
    again = annotate(tmp_path / "out" / "failed.jsonl", tmp_path / "again", make_stub())
    assert (again.n_documents, again.n_failed) == (6, 4)


def test_resume(corpus, make_stub, tmp_path):
    (tmp_path / "b.jsonl").write_text(corpus.read_text() + '{"text": "FAIL"}\n{"text": "Bonn"}\n')
    pipeline = make_stub("fails")

    def run(**settings):
        return annotate(tmp_path / "b.jsonl", tmp_path / "out", pipeline, shard_size=10, **settings)

    run(resume=True)  # a new folder
    whole = files_of(tmp_path / "out")
    assert len(whole) == 13
    kept = tmp_path / "out" / "shards" / "shard-000000.jsonl"
    before = kept.stat().st_mtime_ns
    (tmp_path / "out" / "shards" / "shard-000003.jsonl").unlink()
    (tmp_path / "out" / "shards" / "shard-000010.jsonl").unlink()
    (tmp_path / "out" / "failed" / "shard-000010.jsonl").write_text("old\n")
    (tmp_path / "out" / "failed" / "shard-000003.jsonl").write_text("old\n")
    done = run(resume=True)
    assert done.n_shards_before == 9 and done.n_failed == 1
    assert files_of(tmp_path / "out") == whole and kept.stat().st_mtime_ns == before
    with pytest.raises(LLMNERError, match=r"183\].*--resume"):
        run()
    assert files_of(tmp_path / "out") == whole


def test_another_run_is_refused(corpus, make_stub, stub, tmp_path):
    out = tmp_path / "out"
    annotate(corpus, out, stub, shard_size=50)
    whole = files_of(out)
    with pytest.raises(LLMNERError, match=r"173\].*differs in the pipeline"):
        annotate(corpus, out, make_stub("sentencizer"), shard_size=50, resume=True)
    with pytest.raises(LLMNERError, match=r"173\].*settings \(shard_size was 50, now 20\)"):
        annotate(corpus, out, stub, shard_size=20, resume=True)
    corpus.write_text(corpus.read_text().replace("Text 3 ", "Text 4 "))
    with pytest.raises(LLMNERError, match=r"173\].*input \(changed files: corpus.jsonl\)"):
        annotate(corpus, out, stub, shard_size=50, resume=True)
    assert files_of(out) == whole
    (out / "manifest.json").write_text("[]")
    with pytest.raises(LLMNERError, match=r"173\]"):
        annotate(corpus, out, stub, shard_size=50, resume=True)


def test_a_copy_of_the_run_is_accepted(corpus, make_stub, stub, tmp_path):
    """Another place, and other times of the files."""
    import shutil

    annotate(corpus, tmp_path / "out", stub)
    for source, target in ((tmp_path / "out", "out2"), (Path(stub), "stub2")):
        shutil.copytree(source, tmp_path / target, copy_function=shutil.copyfile)
    (tmp_path / "there").mkdir()
    shutil.copyfile(corpus, tmp_path / "there" / corpus.name)
    done = annotate(
        tmp_path / "there" / corpus.name, tmp_path / "out2", tmp_path / "stub2", resume=True
    )
    assert done.n_shards_before == len(done.shards) == 1


def test_folders_with_other_files(corpus, stub, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").touch()
    with pytest.raises(LLMNERError, match=r"184\].*thesis.txt"):
        annotate(corpus, tmp_path / "out", stub, resume=True)
    with pytest.raises(LLMNERError, match=r"178\]"):
        annotate(corpus, corpus, stub)


def test_two_runs_at_once(corpus, stub, tmp_path):
    from filelock import FileLock

    (tmp_path / "out").mkdir()
    with (
        FileLock(tmp_path / "out" / output.LOCK),
        pytest.raises(LLMNERError, match=r"180\] Another process"),
    ):
        annotate(corpus, tmp_path / "out", stub)


def test_no_documents(stub, tmp_path):
    (tmp_path / "a.txt").touch()
    with (
        pytest.raises(LLMNERError, match=r"179\].*no documents"),
        pytest.warns(UserWarning, match="W026"),
    ):
        annotate(tmp_path / "a.txt", tmp_path / "out", stub)
    assert not (tmp_path / "out").exists()


def test_wrong_text_field(corpus, stub, tmp_path):
    with pytest.raises(LLMNERError, match=r"174\].*no field 'body' \(it has: id, text\)"):
        annotate(corpus, tmp_path / "out", stub, text_field="body")
    assert not (tmp_path / "out").exists()


def test_all_documents_fail(make_stub, tmp_path):
    """Then the setup is wrong. Earlier shards are kept."""
    (tmp_path / "a.txt").write_text("Bonn\n" * 10 + "FAIL\n" * 10)
    with pytest.raises(LLMNERError, match=r"176\] .*all 10 documents from a.txt:11 to a.txt:20"):
        annotate(tmp_path / "a.txt", tmp_path / "out", make_stub("fails"), shard_size=10)
    assert len(read_output(tmp_path / "out")) == 10


def test_all_documents_that_reach_the_pipeline_fail(make_stub, tmp_path):
    """A text that is too long for it doesn't count."""
    (tmp_path / "a.txt").write_text("FAIL\n" * 10 + "x" * 99)
    with pytest.raises(LLMNERError, match=r"176\] .*all 10 documents"):
        annotate(tmp_path / "a.txt", tmp_path / "out", make_stub("fails"), max_length=50)


def test_warnings(corpus, stub, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "empty.txt").touch()
    (folder / "notes.md").touch()
    (folder / "a.jsonl").write_text('{"text": "Bonn", "entities": [[0, 4, "X"]]}\n')
    with pytest.warns(UserWarning) as caught:
        annotate(folder, tmp_path / "out", stub)
    messages = [str(warning.message) for warning in caught]
    assert any("1 files" in m and "because of their endings: notes.md" in m for m in messages)
    assert any("they contain no documents: empty.txt" in m for m in messages)
    assert any("W027] 1 documents already had" in m for m in messages)
    assert read_output(tmp_path / "out")[0]["entities"][0]["label"] == "CITY"


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_full_disk(corpus, stub, tmp_path, monkeypatch, failing):
    """Finished shards stay, and the run can be resumed."""
    usual = getattr(os, failing)
    calls = []

    def full(*args):
        calls.append(args)
        if len(calls) == 8:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return usual(*args)

    monkeypatch.setattr(os, failing, full)
    with pytest.raises(LLMNERError, match=r"178\].*No space left on device.*--resume"):
        annotate(corpus, tmp_path / "out", stub, shard_size=10)
    monkeypatch.setattr(os, failing, usual)
    n_before = len(read_output(tmp_path / "out")) // 10
    assert 0 < n_before < 10
    done = annotate(corpus, tmp_path / "out", stub, shard_size=10, resume=True)
    assert done.n_shards_before == n_before
    assert [row["id"] for row in read_output(tmp_path / "out")] == list(range(100))


def test_settings(corpus, stub, tmp_path):
    for settings, message in (
        ({"shard_size": 0}, "`shard_size`"),
        ({"workers": 0}, "`workers`"),
        ({"gpus": 1, "workers": 2}, "`workers` of 'annotate' is 2, but must be 1 with `gpus`"),
        ({"gpus": 1000}, "the number of GPUs that torch can use"),
    ):
        with pytest.raises(LLMNERError, match=message):
            annotate(corpus, tmp_path / "out", stub, **settings)
    with pytest.raises(LLMNERError, match="can't be read again"):
        annotate("-", tmp_path / "out", stub, resume=True)


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")


def in_child(function):
    """Run a function in a forked process. RETURNS (int): The process."""
    process = os.fork()
    if process == 0:
        with suppress(BaseException):
            function()
            os._exit(0)
        os._exit(1)
    return process


@pytest.fixture
def run_of(make_stub, tmp_path):
    """A run whose documents fail in part, and the files that it should write."""
    corpus = write_jsonl(tmp_path / "corpus.jsonl", 400)
    with corpus.open("a") as file:
        file.write('{"text": "FAIL"}\n{broken\n' * 20)
    pipeline = make_stub("fails")

    def run(out):
        return annotate(corpus, tmp_path / out, pipeline, shard_size=7, resume=True)

    done = run("whole")
    assert done.n_documents == 440 and done.n_failed == 40
    return run, files_of(tmp_path / "whole")


@needs_fork
def test_killed_at_random(run_of, tmp_path):
    """20 times, with the same output folder as long as something is missing. The union is exact."""
    run, expected = run_of
    rng = random.Random(0)
    n_killed = n_folders = 0
    while n_killed < 20:
        n_folders += 1
        out = f"out{n_folders}"
        while True:
            process = in_child(lambda out=out: run(out))
            time.sleep(rng.uniform(0.0, 0.4))
            os.kill(process, signal.SIGKILL)
            _, status = os.waitpid(process, 0)
            if not os.WIFSIGNALED(status):
                break
            n_killed += 1
            present = files_of(tmp_path / out) if (tmp_path / out).exists() else {}
            assert all(expected[name] == content for name, content in present.items())
        assert os.waitstatus_to_exitcode(status) == 0
        run(out)
        assert files_of(tmp_path / out) == expected
        left = {path.name for path in (tmp_path / out).iterdir()}
        assert left <= {"shards", "failed", "failed.jsonl", "manifest.json", ".lock"}


@needs_fork
def test_killed_at_every_step(run_of, tmp_path, monkeypatch):
    """Before or after each change of the disk around a shard with failed documents."""
    run, expected = run_of
    n_steps = 0

    def dies_at(step, function):
        def call(*args):
            nonlocal n_steps
            n_steps += 1
            if n_steps == step:
                os.kill(os.getpid(), signal.SIGKILL)
            result = function(*args)
            n_steps += 1
            if n_steps == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return call

    usual = os.replace, os.fsync
    monkeypatch.setattr(os, "replace", dies_at(0, usual[0]))
    monkeypatch.setattr(os, "fsync", dies_at(0, usual[1]))
    run("all")
    total = n_steps
    # The first steps write the manifest and the first shard, the last ones shards with failed
    # documents, all failed documents, and the manifest.
    for step in [*range(1, 14), *range(total - 30, total + 1, 2)]:
        out = tmp_path / f"step{step}"
        n_steps = 0
        monkeypatch.setattr(os, "replace", dies_at(step, usual[0]))
        monkeypatch.setattr(os, "fsync", dies_at(step, usual[1]))
        process = in_child(lambda out=out: run(out.name))
        monkeypatch.undo()
        assert os.WIFSIGNALED(os.waitpid(process, 0)[1])
        present = files_of(out)
        assert all(expected[name] == content for name, content in present.items())
        run(out.name)
        assert files_of(out) == expected, step


def test_stdin(stub, tmp_path, monkeypatch):
    import io
    from types import SimpleNamespace

    content = b"".join(b'{"text": "Tea in Bonn."}\n' for _ in range(25))
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(content)))
    done = annotate("-", tmp_path / "out", stub, shard_size=10)
    assert done.n_documents == 25 and len(done.shards) == 3
