"""Training in two processes: the same weights as in one. The processes are started as torchrun does."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import spacy
from safetensors.torch import load_file
from spacy.tokens import DocBin

import spacy_llmner.cli  # noqa: F401  # registers the commands
from tests.ember_probe.helpers import make_examples

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "corpus.spacy"
    docs = [eg.reference for eg in make_examples(spacy.blank("en"))]
    DocBin(docs=docs).to_disk(path)
    return path


def arguments(component, corpus, llm, out):
    args = [
        *(CONFIGS / f"{component}.cfg", "--output", out),
        *("--paths.train", corpus, "--paths.dev", corpus, "--paths.llm", llm),
        *(f"--components.{component}.llm.device", "cpu", "--training.dropout", "0.0"),
        *("--training.max_steps", "20", "--training.eval_frequency", "10"),
        *("--training.optimizer.learn_rate.warmup_steps", "2"),
        *("--training.batcher.size", "4" if component == "ember_probe" else "60"),
    ]
    if component == "ember_probe":
        args += ["--components.ember_probe.feature_cache", out / "features"]
    return [str(arg) for arg in args]


def start(command, args, n=2, **env):
    """RETURNS (Tuple): The exit codes and the outputs of n processes."""
    port = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(n)}
    processes = [
        subprocess.Popen(
            [sys.executable, *command, *args],
            env={**os.environ, **port, "RANK": str(k), "LOCAL_RANK": str(k), **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for k in range(n)
    ]
    outputs = [process.communicate()[0] for process in processes]
    return [process.returncode for process in processes], outputs


def free_port():
    import socket

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.mark.parametrize("component", ["ember_probe", "padellm_ner"])
def test_same_weights_as_one_process(run, component, corpus, tiny_llm, tmp_path):
    run("train", *arguments(component, corpus, tiny_llm, tmp_path / "one"))
    args = arguments(component, corpus, tiny_llm, tmp_path / "two")
    codes, outputs = start(["-m", "spacy_llmner", "train"], args)
    assert codes == [0, 0], "\n".join(outputs)
    assert "Saved pipeline" in outputs[0] and "Saved pipeline" not in outputs[1]
    for kind in ("model-best", "model-last"):
        weights = [
            load_file(tmp_path / n / kind / component / "model.safetensors") for n in ("one", "two")
        ]
        assert weights[0].keys() == weights[1].keys()
        for name in weights[0]:
            assert weights[0][name] == pytest.approx(weights[1][name], abs=1e-5), name
    scores = [spacy.load(tmp_path / n / "model-last").meta["performance"] for n in ("one", "two")]
    assert scores[0]["ents_f"] == scores[1]["ents_f"]


def test_each_process_reads_its_share(corpus, tiny_llm, tmp_path):
    args = arguments("ember_probe", corpus, tiny_llm, tmp_path)
    codes, outputs = start(["-m", "spacy_llmner", "train"], args)
    assert codes == [0, 0], "\n".join(outputs)
    lines = [path.read_text().splitlines() for path in (tmp_path / "features").rglob("*.jsonl")]
    texts = {eg.reference.text for eg in make_examples(spacy.blank("en"))}
    assert len(lines) == 2
    assert sum(map(len, lines)) == len(texts)
    assert abs(len(lines[0]) - len(lines[1])) <= 1


def test_batches_that_are_too_small_for_all_processes(corpus, tiny_llm, tmp_path):
    args = arguments("ember_probe", corpus, tiny_llm, tmp_path)
    args[args.index("--training.batcher.size") + 1] = "1"
    args[args.index("--training.max_steps") + 1] = "4"
    codes, outputs = start(["-m", "spacy_llmner", "train"], args)
    assert codes == [0, 0], "\n".join(outputs)


def test_a_process_that_ends_ends_the_others(corpus, tiny_llm, tmp_path):
    code = (
        "import os, sys\n"
        "from spacy_llmner.ember_probe.component import EmberProbe\n"
        "update, steps = EmberProbe.update, []\n"
        "def failing(self, *args, **kwargs):\n"
        "    steps.append(1)\n"
        "    if os.environ['RANK'] == '1' and len(steps) == 3:\n"
        "        os._exit(7)\n"
        "    return update(self, *args, **kwargs)\n"
        "EmberProbe.update = failing\n"
    )
    (tmp_path / "failing.py").write_text(code)
    args = arguments("ember_probe", corpus, tiny_llm, tmp_path / "out")
    args += ["--code", str(tmp_path / "failing.py")]
    codes, outputs = start(["-m", "spacy_llmner", "train"], args)
    assert codes[1] == 7 and codes[0] == 1
    assert "LLMNER191" in outputs[0]


def test_without_torchrun(run, corpus, tiny_llm, tmp_path):
    args = arguments("ember_probe", corpus, tiny_llm, tmp_path)
    assert "LLMNER190" in run("llmner", "train", *args, code=1)


def test_components_of_others_are_refused(corpus, tiny_llm, tmp_path):
    args = arguments("ember_probe", corpus, tiny_llm, tmp_path)
    config = (CONFIGS / "ember_probe.cfg").read_text() + '\n[components.ner]\nfactory = "ner"\n'
    (tmp_path / "config.cfg").write_text(config)
    args[0] = str(tmp_path / "config.cfg")
    args += ["--nlp.pipeline", '["ember_probe","ner"]']
    codes, outputs = start(["-m", "spacy_llmner", "train"], args)
    assert codes == [1, 1]
    assert all("LLMNER192" in output for output in outputs), "\n".join(outputs)
