"""Spawned processes and threads find what a single call finds, with all components."""

import json
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import spacy

from spacy_llmner.llm import registry

ARCHIVE = Path(__file__).parents[1] / "data" / "saved_by_0.1.0.zip"
PIPELINES = ("ember_probe", "padellm_ner", "ra_it_ner", "el4ner_ensemble")
TEXTS = [
    "Mira Stone met Oskar Blum in Varnholm.",
    "Oskar Blum likes tea.",
    "The river near Varnholm is cold.",
    "In Port Ellam , Mira Stone sings.",
]
# Processes are spawned on macOS and Windows: everything they need is pickled.
SCRIPT = """
import json, multiprocessing, sys, warnings
import spacy


def group(spans):
    scores = spans.attrs["scores"]
    return [[s.start, s.end, s.label_, score] for s, score in zip(spans, scores)]


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    method, saved, names, *texts = sys.argv[1:]
    multiprocessing.set_start_method(method)
    names = names.split(",")
    nlp = spacy.blank("en")
    for name in names:
        other = spacy.load(f"{saved}/{name}", config={"paths.llm": f"{saved}/llm"})
        nlp.add_pipe(name, source=other)
        nlp.get_pipe(name).cfg["spans_key"] = name
    nlp.add_pipe("llmner_combine", config={"keys": names, "min_votes": 1})
    found = []
    for n_process in (1, 2):
        docs = nlp.pipe(texts, n_process=n_process, batch_size=2)
        keys = [*names, "combined"]
        found.append([{key: group(doc.spans[key]) for key in keys} for doc in docs])
    print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    zipfile.ZipFile(ARCHIVE).extractall(folder)
    return folder / "saved_by_0.1.0"


def load(saved, name):
    return spacy.load(saved / name, config={"paths.llm": str(saved / "llm")})


def found(doc):
    return [[ent.start, ent.end, ent.label_] for ent in doc.ents]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes(saved, method, tmp_path):
    """All components in one pipeline find the same as in one process."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, script, method, saved, ",".join(PIPELINES), *TEXTS]
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    one, two = json.loads(result.stdout.splitlines()[-1])
    for key in (*PIPELINES, "combined"):
        assert any(doc[key] for doc in one), key
        for doc, other in zip(one, two, strict=True):
            assert [span[:3] for span in doc[key]] == [span[:3] for span in other[key]]
            scores = [span[3] for span in doc[key]]
            assert [span[3] for span in other[key]] == pytest.approx(scores, abs=1e-4)


@pytest.mark.filterwarnings("ignore:.*LLMNER-W014")
@pytest.mark.parametrize("name", PIPELINES)
def test_threads_share_a_fresh_pipeline(saved, name):
    """8 threads make their first calls at the same time. No thread breaks what another one uses."""
    expected = [found(doc) for doc in load(saved, name).pipe(TEXTS)]
    for _ in range(5):
        registry.clear()
        nlp = load(saved, name)
        with ThreadPoolExecutor(8) as threads:
            docs = list(threads.map(nlp, TEXTS * 4))
        assert [found(doc) for doc in docs] == expected * 4


def test_a_prediction_writes_nothing_to_the_probe(saved):
    """Prediction doesn't move the module: a move to the same device would rebuild the GRU's weight list."""
    nlp = load(saved, "ember_probe")
    module = nlp.get_pipe("ember_probe").module
    before = module.forwards._flat_weights
    nlp(TEXTS[0])
    assert module.forwards._flat_weights is before and not module.training
