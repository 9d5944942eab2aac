"""spaCy's own commands, from the config that users train with to an installed package."""

import json
import re
from pathlib import Path

import pytest
import spacy
from spacy.tokens import DocBin

from tests.ember_probe.helpers import TEXTS, assert_same, entities, make_examples

CONFIG = Path(__file__).parents[2] / "configs" / "ember_probe.cfg"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "corpus.spacy"
    docs = [eg.reference for eg in make_examples(spacy.blank("en"))]
    DocBin(docs=docs).to_disk(path)
    return path


@pytest.fixture(scope="module")
def folder(run, corpus, tiny_llm, tmp_path_factory):
    """A pipeline that `spacy train` made with the project's config."""
    out = tmp_path_factory.mktemp("training")
    run(
        *("train", CONFIG, "--output", out, "--paths.train", corpus, "--paths.dev", corpus),
        *("--paths.llm", tiny_llm, "--components.ember_probe.feature_cache", out / "features"),
        *("--components.ember_probe.llm.device", "cpu", "--training.max_steps", "60"),
        *("--training.optimizer.learn_rate.total_steps", "60"),
        *("--training.eval_frequency", "20", "--training.optimizer.learn_rate.warmup_steps", "5"),
        *("--training.optimizer.learn_rate.initial_rate", "0.02", "--training.dropout", "0.0"),
    )
    return out / "model-best"


def test_train_and_evaluate(run, folder, corpus, tmp_path):
    run("evaluate", folder, corpus, "--output", tmp_path / "scores.json")
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["ents_f"] > 0.9
    assert set(scores["ents_per_type"]) == {"LOC", "PER"}
    assert 0.0 <= scores["ents_ece"] <= 1.0
    assert spacy.load(folder).meta["performance"]["ents_f"] == scores["ents_f"]


def test_apply(run, folder, tmp_path):
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    run("apply", folder, texts, tmp_path / "out.spacy")
    nlp = spacy.load(folder)
    docs = list(DocBin().from_disk(tmp_path / "out.spacy").get_docs(nlp.vocab))
    assert [doc.text for doc in docs] == TEXTS
    assert [entities(doc) for doc in docs] == [entities(nlp(text)) for text in TEXTS]


def test_find_threshold(run, folder, corpus):
    """It tries 0 and 1, too."""
    out = run(
        "find-threshold", folder, corpus, "ember_probe", "threshold", "ents_f", "--n_trials", "3"
    )
    rows = [line.split() for line in out.splitlines() if re.match(r"[\d.]+ +[\d.]+", line)]
    assert [float(threshold) for threshold, _ in rows] == [0.0, 0.5, 1.0]
    assert float(rows[1][1]) > 0.9


def test_package(run, folder, tmp_path):
    """A package can be loaded. It has the LLM's name, but not its weights."""
    run("package", folder, tmp_path, "--name", "entities", "--version", "1.2.3", "--build", "none")
    made = tmp_path / "en_entities-1.2.3"
    meta = json.loads((made / "meta.json").read_text())
    assert any(line.startswith("spacy-llmner") for line in meta["requirements"])
    assert sum(path.stat().st_size for path in made.rglob("*")) < 20e6
    nlp = spacy.load(made / "en_entities" / "en_entities-1.2.3")
    for text in TEXTS:
        assert_same(nlp(text), spacy.load(folder)(text))


def test_resume(folder, corpus):
    nlp = spacy.load(folder)
    examples = make_examples(nlp)
    assert nlp.update(examples, sgd=nlp.resume_training())["ember_probe"] < 0.5


def test_debug_data(run, corpus, tiny_llm, tmp_path):
    paths = ("--paths.train", corpus, "--paths.dev", corpus, "--paths.llm", tiny_llm)
    feature_cache = ("--components.ember_probe.feature_cache", "off")
    filled = tmp_path / "filled.cfg"
    run("init", "fill-config", CONFIG, filled)  # it adds the tokenizer of the language
    out = run(
        "debug", "data", filled, *paths, *feature_cache, code=1
    )  # so few examples are an error
    assert "Pipeline can be initialized with data" in out and "Corpus is loadable" in out


def test_fill_config(run, tmp_path):
    """The project's config is complete, except for the tokenizer of the language."""
    run("init", "fill-config", CONFIG, tmp_path / "filled.cfg")
    filled = spacy.util.load_config(tmp_path / "filled.cfg", interpolate=False)
    config = spacy.util.load_config(CONFIG, interpolate=False)
    assert filled["nlp"].pop("tokenizer") == {"@tokenizers": "spacy.Tokenizer.v1"}
    assert filled == config


@pytest.mark.parametrize("config", sorted(CONFIG.parent.glob("*.cfg")), ids=lambda path: path.stem)
def test_debug_config(run, config, corpus, tiny_llm, tmp_path):
    run("init", "fill-config", config, tmp_path / "filled.cfg")
    paths = ("--paths.train", corpus, "--paths.dev", corpus, "--paths.llm", tiny_llm)
    assert "Config is valid" in run("debug", "config", tmp_path / "filled.cfg", *paths)


def test_chinese(run, tiny_llm, tmp_path):
    """The config uses the tokenizer of the chosen language."""
    doc = spacy.blank("zh")("林小燕住在成都。")
    doc.ents = [doc.char_span(0, 3, label="PER")]
    DocBin(docs=[doc]).to_disk(tmp_path / "zh.spacy")
    run(
        *("train", CONFIG, "--output", tmp_path / "out", "--nlp.lang", "zh"),
        *("--paths.train", tmp_path / "zh.spacy", "--paths.dev", tmp_path / "zh.spacy"),
        *("--paths.llm", tiny_llm, "--components.ember_probe.feature_cache", "off"),
        *("--components.ember_probe.llm.device", "cpu", "--training.max_steps", "1"),
        *("--training.eval_frequency", "1"),
    )
    nlp = spacy.load(tmp_path / "out" / "model-last")
    assert [token.text for token in nlp.make_doc("住在成都")] == ["住", "在", "成", "都"]
