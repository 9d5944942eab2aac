"""spaCy's own commands with the config of the project; a tiny sentence encoder finds the examples."""

import json
import re
from pathlib import Path

import pytest
import spacy
from spacy.tokens import DocBin

from spacy_llmner.cli.index import build_index
from spacy_llmner.errors import LLMMismatchError
from spacy_llmner.retrieval import encoder as encoders
from tests.helpers import TEXTS, TRAIN, assert_same, assert_valid, make_examples

CONFIG = Path(__file__).parents[2] / "configs" / "ra_it_ner.cfg"
# Two corpora: the annotators of each looked for something else.
PEOPLE = [
    ("Ida Kern left Varnholm.", [(0, 8, "PER")]),
    ("In Port Ellam, Tom Reed waits.", [(15, 23, "PER")]),
]
PLACES = [
    ("Mira Stone likes Varnholm.", [(17, 25, "LOC")]),
    ("Port Ellam is far, says Oskar Blum.", [(0, 10, "LOC")]),
]

# So that a few steps are enough.
LEARN_ALL = (
    *("--components.ra_it_ner.negative_rate", "1.0"),
    *("--components.ra_it_ner.random_k", "false"),
    *("--components.ra_it_ner.model.first_layer", "0"),
)


def save_corpus(path, data, labels=None):
    """labels (Optional[List[str]]): What the annotators looked for. RETURNS (Path): The file."""
    docs = [eg.reference for eg in make_examples(spacy.blank("en"), data)]
    for doc in docs:
        doc._.llmner_labels = labels
    DocBin(docs=docs, store_user_data=True).to_disk(path)
    return path


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return save_corpus(tmp_path_factory.mktemp("corpus") / "corpus.spacy", TRAIN)


@pytest.fixture(scope="module")
def train(run, tiny_llm, tiny_bert):
    """`spacy train` for some steps. RETURNS (Path): Where the pipelines are."""

    def train(out, train, dev, steps=2, *more):
        run(
            *("train", CONFIG, "--output", out, "--paths.train", train, "--paths.dev", dev),
            *(
                "--paths.llm",
                tiny_llm,
                "--paths.encoder",
                tiny_bert,
                "--paths.labels",
                out / "none",
            ),
            *("--components.ra_it_ner.llm.device", "cpu"),
            *("--components.ra_it_ner.encoder.device", "cpu"),
            *("--training.max_steps", steps, "--training.optimizer.learn_rate.total_steps", steps),
            *("--training.eval_frequency", (steps + 1) // 2),
            *("--training.optimizer.learn_rate.warmup_steps", "1"),
            *("--training.optimizer.learn_rate.initial_rate", "0.02"),
            *more,
        )
        return out

    return train


@pytest.fixture(scope="module")
def folder(train, corpus, tmp_path_factory):
    """A pipeline that was trained on its corpus."""
    out = tmp_path_factory.mktemp("training")
    return train(out, corpus, corpus, 34, *LEARN_ALL) / "model-best"


def test_train_and_evaluate(run, folder, corpus, tmp_path):
    run("evaluate", folder, corpus, "--output", tmp_path / "scores.json")
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["ents_f"] > 0.8
    assert set(scores["ents_per_type"]) == {"LOC", "PER"}
    assert 0.0 <= scores["ents_ece"] <= 1.0
    nlp = spacy.load(folder)
    assert nlp.meta["performance"]["ents_f"] == pytest.approx(scores["ents_f"])
    assert nlp.meta["performance"]["ra_it_ner_loss"] > 0
    assert nlp.get_pipe("ra_it_ner").labels == ("LOC", "PER")
    (context,) = nlp(TEXTS[0])._.llmner_examples
    assert context["reason"] == "in-domain" and context["examples"]


def test_apply(run, folder, tmp_path):
    """The file contains the entities, the examples that were shown, and the reason."""
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    run("apply", folder, texts, tmp_path / "out.spacy", "--batch-size", "4")
    nlp = spacy.load(folder)
    docs = list(DocBin().from_disk(tmp_path / "out.spacy").get_docs(nlp.vocab))
    for doc, text in zip(docs, TEXTS, strict=True):
        alone = nlp(text)
        assert_same(doc, alone)
        # A DocBin makes tuples of lists.
        assert json.dumps(doc._.llmner_examples) == json.dumps(alone._.llmner_examples)


def test_find_threshold(run, folder, corpus):
    """It tries 0 and 1, too: at 1 nothing is listed."""
    out = run(
        *("find-threshold", folder, corpus, "ra_it_ner", "list_threshold", "ents_f"),
        *("--n_trials", "3"),
    )
    rows = [line.split() for line in out.splitlines() if re.match(r"[\d.]+ +[\d.]+", line)]
    assert [float(threshold) for threshold, _ in rows] == [0.0, 0.5, 1.0]
    found = [float(score) for _, score in rows]
    assert found[1] > 0.8 and found[0] < found[1] and found[2] == 0.0


def test_package(run, folder, tmp_path):
    """Examples are packaged, the weights of LLM and encoder are not."""
    run("package", folder, tmp_path, "--name", "open", "--version", "1.2.3", "--build", "none")
    made = tmp_path / "en_open-1.2.3"
    meta = json.loads((made / "meta.json").read_text())
    assert any(line.startswith("spacy-llmner") for line in meta["requirements"])
    nlp, there = spacy.load(made / "en_open" / "en_open-1.2.3"), spacy.load(folder)
    for one, other in zip(nlp.pipe(TEXTS), there.pipe(TEXTS)):
        assert_same(one, other)
        assert one._.llmner_examples == other._.llmner_examples


def test_resume(folder):
    nlp = spacy.load(folder)
    sgd = nlp.resume_training()
    losses = [nlp.update(make_examples(nlp), sgd=sgd)["ra_it_ner"] for _ in range(3)]
    assert all(0 < loss < 1.0 for loss in losses)


def test_a_sentence_encoder_is_loaded_once_and_late(folder):
    encoders._LOADED.clear()
    nlp = spacy.load(folder)
    data = nlp.to_bytes()
    assert not encoders._LOADED
    assert_valid(nlp(TEXTS[0]), TEXTS[0])
    (loaded,) = encoders._LOADED.values()
    again = spacy.load(folder).from_bytes(data)
    assert_same(again(TEXTS[0]), nlp(TEXTS[0]))
    assert list(encoders._LOADED.values()) == [loaded]
    encoder = nlp.get_pipe("ra_it_ner").encoder
    encoder.unload()
    assert not encoders._LOADED
    assert_same(nlp("Tea in Varnholm"), again("Tea in Varnholm"))


def test_another_sentence_encoder_is_refused(folder, other_bert):
    nlp = spacy.load(folder, config={"components.ra_it_ner.encoder.name": other_bert})
    with pytest.raises(
        LLMMismatchError, match="built with the encoder .*tiny.*is searched with .*oth"
    ):
        nlp(TEXTS[0])


def test_k_0_is_plain_instruction_tuning(train, corpus, tmp_path):
    """The same config then needs no encoder, neither in training nor later."""
    without = ("--components.ra_it_ner.retrieval.k", "0", "--paths.encoder", tmp_path / "none")
    nlp = spacy.load(train(tmp_path / "out", corpus, corpus, 2, *without) / "model-last")
    assert len(nlp.get_pipe("ra_it_ner").index) == 0
    for doc in nlp.pipe(TEXTS):
        assert_valid(doc, doc.text)
        assert doc._.llmner_examples == [{"reason": "no examples", "examples": []}]


def test_labels_of_a_file_and_further_examples(train, corpus, tiny_bert, tmp_path):
    """The labels to find can differ from those in training. `spacy llmner index` adds examples."""
    labels, more = tmp_path / "labels.json", save_corpus(tmp_path / "more.spacy", PEOPLE)
    labels.write_text('["PER", "ship"]')
    build_index(more, tmp_path / "pool", encoder=tiny_bert, device="cpu")
    given = ("--paths.labels", labels, "--paths.pool", tmp_path / "pool")
    nlp = spacy.load(train(tmp_path / "out", corpus, corpus, 2, *given) / "model-last")
    pipe = nlp.get_pipe("ra_it_ner")
    assert pipe.labels == ("PER", "ship")
    assert {ent.label_ for doc in nlp.pipe(TEXTS) for ent in doc.ents} <= {"PER", "ship"}
    shown = {example.text for example in pipe.index.examples}
    assert shown == {*TEXTS, *(text for text, _ in PEOPLE)}


def test_a_corpus_of_two_label_sets(run, train, tmp_path):
    """Types that the annotators didn't look for are neither learned as absent nor counted as errors."""
    parts = {"PER": PEOPLE, "LOC": PLACES}
    found = {}
    for kind in ("said", "unsaid"):
        mixed = DocBin(store_user_data=True)
        for label, data in parts.items():
            labels = [label] if kind == "said" else None
            path = save_corpus(tmp_path / f"{label}-{kind}.spacy", data, labels)
            mixed.merge(DocBin(store_user_data=True).from_disk(path))
        mixed.to_disk(tmp_path / f"{kind}.spacy")
        path = tmp_path / f"{kind}.spacy"
        k = ("--components.ra_it_ner.retrieval.k", "0")
        nlp = spacy.load(train(tmp_path / kind, path, path, 26, *LEARN_ALL, *k) / "model-last")
        assert nlp.get_pipe("ra_it_ner").labels == ("LOC", "PER")
        docs = nlp.pipe([text for text, _ in PEOPLE + PLACES])
        found[kind] = [{span.label_ for span in doc.spans["llmner"]} for doc in docs]
    assert found == {"said": [{"LOC", "PER"}] * 4, "unsaid": [{"PER"}] * 2 + [{"LOC"}] * 2}
    scored = {}
    for kind in ("said", "unsaid"):
        gold, out = tmp_path / f"PER-{kind}.spacy", tmp_path / f"{kind}.json"
        run("evaluate", tmp_path / "said" / "model-last", gold, "--output", out)
        scored[kind] = json.loads(out.read_text())
    assert set(scored["said"]["ents_per_type"]) == {"PER"}
    assert set(scored["unsaid"]["ents_per_type"]) == {"LOC", "PER"}
    assert scored["said"]["ents_p"] > scored["unsaid"]["ents_p"]
