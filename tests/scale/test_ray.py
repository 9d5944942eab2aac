"""The same shards on a Ray cluster of this machine. Each run is a process, since Ray leaves threads and
handlers behind."""

import json
import subprocess
import sys

import pytest

from spacy_llmner.errors import LLMNERError
from spacy_llmner.scale import annotate, ray_actors
from tests.scale.conftest import CODE, read_output, write_jsonl

pytest.importorskip("ray")

RUN = """
import json, sys
from spacy_llmner.errors import LLMNERError
from spacy_llmner.scale import annotate

args, settings = json.loads(sys.argv[1])
try:
    done = annotate(*args, ray="local", workers=2, shard_size=10, **settings)
    print("DONE", done.n_documents, done.n_failed, done.n_shards_before)
except LLMNERError as e:
    print("ERROR", e)
"""


def annotate_on_ray(*args, **settings):
    arguments = json.dumps([[str(arg) for arg in args], {**settings, "code_path": CODE}])
    done = subprocess.run([sys.executable, "-c", RUN, arguments], capture_output=True, text=True)
    return done.stdout + done.stderr


def test_same_output(corpus, make_stub, tmp_path):
    corpus.write_text(corpus.read_text() + '{broken\n{"text": "FAIL"}\n')
    pipeline = make_stub("fails")
    printed = annotate_on_ray(corpus, tmp_path / "ray", pipeline)
    assert "DONE 102 2 0" in printed, printed
    annotate(corpus, tmp_path / "here", pipeline, shard_size=10)
    assert read_output(tmp_path / "ray") == read_output(tmp_path / "here")
    failed = [(tmp_path / name / "failed.jsonl").read_bytes() for name in ("ray", "here")]
    assert failed[0] == failed[1]
    # A run can be continued in another way than it began.
    (tmp_path / "ray" / "shards" / "shard-000004.jsonl").unlink()
    done = annotate(corpus, tmp_path / "ray", pipeline, shard_size=10, resume=True)
    assert done.n_shards_before == 10
    assert read_output(tmp_path / "ray") == read_output(tmp_path / "here")


def test_an_actor_that_dies(make_stub, tmp_path):
    corpus = write_jsonl(tmp_path / "a.jsonl", 60)
    corpus.write_text(corpus.read_text().replace("Text 37 ", "DIE 37 "))
    (tmp_path / "deaths").mkdir()
    pipeline = make_stub("dies", folder=str(tmp_path / "deaths"), times=3)
    printed = annotate_on_ray(corpus, tmp_path / "out", pipeline)
    assert "ERROR [LLMNER175]" in printed and "from a.jsonl:31 to a.jsonl:40" in printed, printed
    assert len(list((tmp_path / "deaths").iterdir())) == 2
    # Once more, and then it lives.
    printed = annotate_on_ray(corpus, tmp_path / "out", pipeline, resume=True)
    assert "DONE 60 0 " in printed, printed
    assert [row["id"] for row in read_output(tmp_path / "out")] == list(range(60))


def test_error_of_the_setup(tiny_llm, corpus, tmp_path):
    from tests.ember_probe.helpers import make_nlp

    make_nlp(tiny_llm).to_disk(tmp_path / "pipeline")
    printed = annotate_on_ray(corpus, tmp_path / "out", tmp_path / "pipeline")
    assert "ERROR [LLMNER0" in printed and "has no labels" in printed, printed


def test_ray_is_missing(corpus, stub, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(LLMNERError, match=r"177\] --ray can't be used.*spacy-llmner\[ray\]"):
        annotate(corpus, tmp_path / "out", stub, ray="local")


def test_no_cluster(corpus, stub, tmp_path, monkeypatch):
    import ray

    def init(**settings):
        raise ConnectionError("no cluster there")

    with pytest.raises(LLMNERError, match=r"181\].*'127.0.0.1:1' \(.*refused\)"):
        annotate(corpus, tmp_path / "out", stub, ray="127.0.0.1:1")
    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(LLMNERError, match=r"181\].*'auto' \(no cluster there\).*ray start --head"):
        annotate(corpus, tmp_path / "out", stub, ray="auto", resume=True)


def test_cluster_is_too_small(monkeypatch):
    import ray

    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 4.0})
    ray_actors._check_resources(ray, 2, {"num_cpus": 2, "num_gpus": 0})
    with pytest.raises(LLMNERError, match=r"`workers` of 'annotate' is 3.*at most 2.*has 4 CPUs"):
        ray_actors._check_resources(ray, 3, {"num_cpus": 2, "num_gpus": 0})
    with pytest.raises(LLMNERError, match=r"`gpus` of 'annotate' is 2.*at most 0.*has 0 GPUs"):
        ray_actors._check_resources(ray, 2, {"num_cpus": 1, "num_gpus": 1})
