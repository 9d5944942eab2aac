"""`spacy llmner init config`: the config that it writes can be trained, and follows the corpus."""

import json
from pathlib import Path

import pytest
import spacy
from spacy.tokens import DocBin
from spacy.util import load_config

from spacy_llmner.cli.init_config import duration, init_config
from spacy_llmner.cli.training_config import RECIPES, make_config, make_schedule
from spacy_llmner.errors import LLMNERError
from tests.helpers import TRAIN, make_examples

ROOT = Path(__file__).parents[2]
COMPONENTS = list(RECIPES)
# What the command chooses from the corpus.
CHOSEN = {
    "paths.train",
    "paths.dev",
    "training.max_steps",
    "training.eval_frequency",
    "training.patience",
    "training.batcher.size",
    "training.optimizer.learn_rate.warmup_steps",
    "training.optimizer.learn_rate.total_steps",
}


def write(path, data=TRAIN):
    docs = [eg.reference for eg in make_examples(spacy.blank("en"), data)]
    DocBin(docs=docs).to_disk(path)
    return path


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write(tmp_path_factory.mktemp("corpus") / "corpus.spacy")


def flat(block, prefix=""):
    """RETURNS (Dict[str, Any]): The settings of a config by their full names."""
    found = {}
    for key, value in block.items():
        name = f"{prefix}{key}"
        found.update(
            flat(value, f"{name}.") if isinstance(value, dict) and value else {name: value}
        )
    return found


@pytest.mark.parametrize("component", COMPONENTS)
def test_config_can_be_trained_as_it_is(component, llm_of, tiny_bert, corpus, run, tmp_path):
    cfg = tmp_path / "new" / f"{component}.cfg"
    options = ("--component", component, "--llm", llm_of(component), "--gpu-id", -1)
    printed = run("llmner", "init", "config", corpus, corpus, cfg, *options, "--passes", 1)
    assert f"To train: python -m spacy train {cfg} --output out" in printed
    assert "6 texts" in printed and "2 labels: LOC, PER" in printed
    encoder = ("--paths.encoder", tiny_bert) if component == "ra_it_ner" else ()
    printed = run("train", cfg, "--output", tmp_path / "out", *encoder)
    steps = load_config(cfg)["training"]["max_steps"]
    assert any(line.split()[1:2] == [str(steps)] for line in printed.splitlines())
    nlp = spacy.load(tmp_path / "out" / "model-best")
    assert nlp.pipe_names == [component]
    assert nlp.get_pipe(component).labels == ("LOC", "PER")


def test_estimate(tiny_llm, corpus, run, tmp_path):
    printed = run("llmner", "init", "config", corpus, corpus, tmp_path / "x.cfg", "--llm", tiny_llm)
    assert "Estimate for this machine: about a minute on " in printed
    assert "GB of memory" in printed and "GB on disk" in printed
    assert [duration(60 * minutes) for minutes in (0.1, 3, 150)] == [
        "a minute",
        "3 minutes",
        "2.5 hours",
    ]


@pytest.mark.parametrize("component", COMPONENTS)
def test_same_settings_as_our_configs(component):
    """Those in configs/, which have comments."""
    schedule = make_schedule(RECIPES[component], [100])
    ours = flat(make_config(component, spacy.blank("en"), schedule, {}))
    path = ROOT / "configs" / f"{component}.cfg"
    nlp = spacy.util.load_model_from_config(load_config(path, interpolate=False), auto_fill=True)
    # A block without settings, and a setting that no LLM component uses.
    left_out = {f"components.{component}.model.label_descriptions", "initialize.vectors"}
    theirs = flat(nlp.config)
    for name in (ours.keys() | theirs.keys()) - CHOSEN - left_out:
        assert ours.get(name) == theirs.get(name), name


@pytest.mark.parametrize("component", COMPONENTS)
def test_larger_corpora_take_more_steps_but_fewer_passes(component):
    sizes = (100, 500, 1000, 5000, 14000)
    schedules = [make_schedule(RECIPES[component], [15] * n) for n in sizes]
    for small, large in zip(schedules, schedules[1:]):
        assert small.steps <= large.steps
        assert small.passes > large.passes
    for schedule in schedules:
        assert schedule.steps % schedule.eval_frequency == 0  # the last step is evaluated
        assert schedule.evaluations <= 9
        assert 0 < schedule.warmup < schedule.steps / 5


def test_schedules_of_this_project():
    nlp = spacy.blank("en")
    lines = (ROOT / "assets" / "en_train.jsonl").read_text(encoding="utf8").splitlines()
    lengths = [len(nlp.make_doc(json.loads(line)["text"])) for line in lines]
    steps = {name: make_schedule(recipe, lengths).steps for name, recipe in RECIPES.items()}
    assert 200 <= steps.pop("ember_probe") <= 300
    assert steps == {"padellm_ner": 200, "ra_it_ner": 90}


def test_passes_can_be_chosen():
    schedule = make_schedule(RECIPES["padellm_ner"], [16] * 1000, passes=2)
    assert schedule.passes == 2 and schedule.steps == 200


def test_longest_entity(tmp_path, tiny_llm):
    text = "They read the long and winding story of a very small red boat today."
    long = [(text, [(10, 61, "WORK")])]
    for data, max_words in ((TRAIN, 8), (long, 11)):
        path = write(tmp_path / f"{max_words}.spacy", data)
        config = init_config(path, path, llm=tiny_llm)[0]
        assert config["components"]["ember_probe"]["model"]["max_words"] == max_words


def test_small_corpora_start_from_the_words_of_their_labels(tmp_path, corpus, tiny_llm, run):
    def model(path, **options):
        config = init_config(path, path, **{"llm": "smollm2-135m-instruct", **options})[0]
        return config["components"]["ember_probe"]["model"]["@architectures"]

    large = write(tmp_path / "large.spacy", TRAIN * 200)
    long = write(tmp_path / "long.spacy", [("a b c d e f g h i j", [(0, 19, "WORK")])])
    assert model(corpus) == model(corpus, llm="gemma-3-270m") == "spacy_llmner.EmberMatch.v1"
    for other in (
        model(large),
        model(long),
        model(corpus, lang="de"),
        model(corpus, llm=tiny_llm),  # it has no weights
        model(corpus, llm="qwen2.5-coder-0.5b-instruct"),
    ):
        assert other == "spacy_llmner.EmberProbe.v1"
    printed = run("llmner", "init", "config", corpus, corpus, tmp_path / "x.cfg")
    assert "starts from the words of the labels" in printed
    printed = run("llmner", "init", "config", large, corpus, tmp_path / "y.cfg")
    assert "starts from the words of the labels" not in printed


def test_language_and_device(tmp_path, corpus, tiny_llm, run):
    # The config can be for a machine with a GPU.
    config = init_config(corpus, corpus, llm=tiny_llm, lang="de", gpu_id=0)[0]
    assert config["nlp"]["lang"] == "de"
    assert config["components"]["ember_probe"]["llm"]["device"] == "cuda:0"
    options = ("--llm", tiny_llm, "--lang", "de")
    printed = run("llmner", "init", "config", corpus, corpus, tmp_path / "x.cfg", *options)
    assert "LLMNER-W020" in printed and "components.ember_probe.model.prefix" in printed


def test_llm_that_is_not_downloaded(corpus, run, tmp_path, monkeypatch):
    monkeypatch.setenv("SPACY_LLMNER_HOME", str(tmp_path / "home"))
    cfg = tmp_path / "x.cfg"
    printed = run("llmner", "init", "config", corpus, corpus, cfg)
    assert "not downloaded: smollm2-135m-instruct" in printed and "Estimate" not in printed
    assert load_config(cfg)["paths"]["llm"] == "smollm2-135m-instruct"


def test_existing_file(corpus, tiny_llm, run, tmp_path):
    cfg = tmp_path / "x.cfg"
    cfg.write_text("mine")
    args = ("llmner", "init", "config", corpus, corpus, cfg, "--llm", tiny_llm)
    run(*args, code=1)
    assert cfg.read_text() == "mine"
    run(*args, "--force")
    assert load_config(cfg)["paths"]["llm"] == tiny_llm


def test_messages(corpus, tiny_llm, tmp_path):
    nothing = write(tmp_path / "nothing.spacy", [("Tea is cold.", [])])
    DocBin().to_disk(tmp_path / "empty.spacy")
    for args, options, message in (
        ((tmp_path / "no.spacy", corpus), {}, "Can't find the data"),
        ((corpus, tmp_path / "empty.spacy"), {}, "empty.spacy' contain no non-empty documents"),
        ((nothing, corpus), {}, "nothing.spacy' contain no entities that can be used"),
        ((corpus, nothing), {}, "nothing.spacy' contain no entities that can be used"),
        ((corpus, corpus), {"component": "ner"}, "'ner' is not a valid component. Choose one of"),
        ((corpus, corpus), {"llm": "no-such-llm"}, "Can't find the LLM 'no-such-llm'"),
        ((corpus, corpus), {"lang": "klingon"}, "doesn't support the language 'klingon'"),
    ):
        with pytest.raises(LLMNERError, match=message):
            init_config(*args, **{"llm": tiny_llm, **options})
