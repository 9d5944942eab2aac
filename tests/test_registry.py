import configparser
from pathlib import Path

import pytest
import spacy
from spacy import registry
from spacy.cli.init_config import fill_config, init_config
from spacy.language import Language
from spacy.util import load_config, load_model_from_config

import spacy_llmner
from spacy_llmner.errors import LLMNERError
from spacy_llmner.llm import registry as pool
from tests.helpers import make_examples

ROOT = Path(spacy_llmner.__file__).parent.parent
REGISTRIES = {
    "spacy_architectures": "architectures",
    "spacy_misc": "misc",
    "spacy_scorers": "scorers",
}


def entry_points():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    for group, lines in setup["options.entry_points"].items():
        for line in lines.strip().splitlines():
            yield group, line.split("=")[0].strip()


@pytest.mark.parametrize("group,name", entry_points())
def test_entry_points(group, name):
    if group == "spacy_factories":
        assert Language.has_factory(name) or spacy.blank("en").has_factory(name)
    elif group == "spacy_cli":
        assert name in registry.cli.get_all()
    else:
        assert callable(registry.get(REGISTRIES[group], name))


@pytest.fixture
def nothing_loaded():
    pool.clear()
    yield
    assert pool.loaded() == []


def test_add_pipe_needs_no_llm(nothing_loaded, tmp_path, monkeypatch):
    monkeypatch.setenv("SPACY_LLMNER_HOME", str(tmp_path))
    nlp = spacy.blank("en")
    pipe = nlp.add_pipe("ember_probe", config={"llm": {"name": "/no/such/folder"}})
    assert pipe.labels == () and pipe.is_trainable
    assert nlp.config["components"]["ember_probe"]["llm"]["name"] == "/no/such/folder"
    # What could be read from the config can be built from it.
    again = load_model_from_config(nlp.config)
    assert again.pipe_names == ["ember_probe"]
    nlp.to_disk(tmp_path / "pipeline")
    assert spacy.load(tmp_path / "pipeline").pipe_names == ["ember_probe"]


def test_fill_config(nothing_loaded, tmp_path):
    (tmp_path / "base.cfg").write_text(
        "[paths]\nllm = null\n[nlp]\nlang = 'en'\npipeline = ['ember_probe']\n"
        "[components]\n[components.ember_probe]\nfactory = 'ember_probe'\n"
        "[components.ember_probe.llm]\n@misc = 'spacy_llmner.LLM.v1'\nname = ${paths.llm}\n".replace(
            "'", '"'
        )
    )
    _, filled = fill_config(tmp_path / "filled.cfg", tmp_path / "base.cfg", silent=True)
    config = load_config(tmp_path / "filled.cfg", interpolate=False)
    section = config["components"]["ember_probe"]
    assert section["threshold"] == 0.5
    assert section["model"]["@architectures"] == "spacy_llmner.EmberProbe.v1"
    assert section["llm"] == {
        "@misc": "spacy_llmner.LLM.v1",
        "name": "${paths.llm}",
        "revision": None,
        "dtype": "auto",
        "device": "auto",
        "quantization": None,
        "device_map": None,
        "self_check": True,
    }
    assert config["training"]["score_weights"]["ents_f"] == 1.0
    nlp = load_model_from_config(load_config(tmp_path / "filled.cfg"), auto_fill=False)
    assert nlp.pipe_names == ["ember_probe"]


def test_paper_architecture_fills(nothing_loaded):
    nlp = spacy.blank("en")
    nlp.add_pipe("ember_probe", config={"model": {"@architectures": "spacy_llmner.EmberPaper.v1"}})
    model = nlp.config["components"]["ember_probe"]["model"]
    assert model == {
        "@architectures": "spacy_llmner.EmberPaper.v1",
        "layer": None,
        "attention": "both",
        "width": 256,
        "max_words": 8,
    }


def test_init_config(nothing_loaded):
    """The config of `spacy init config -p ember_probe` has no LLM. The error names a better command."""
    config = init_config(lang="en", pipeline=["ember_probe"], silent=True)
    assert config["components"]["ember_probe"]["factory"] == "ember_probe"
    nlp = load_model_from_config(config, auto_fill=True)
    with pytest.raises(LLMNERError, match="llmner init config TRAIN.spacy DEV.spacy OUT.cfg --llm"):
        nlp.initialize(lambda: make_examples(nlp))


def test_analyze_pipes(nothing_loaded):
    nlp = spacy.blank("en")
    nlp.add_pipe("ember_probe")
    summary = nlp.analyze_pipes()["summary"]["ember_probe"]
    assert {"doc.ents", "doc.spans"} <= set(summary["assigns"])
    assert "ents_f" in summary["scores"]
    assert nlp.analyze_pipes()["problems"]["ember_probe"] == []


def test_unknown_settings_are_refused():
    nlp = spacy.blank("en")
    with pytest.raises(ValueError, match="tresh"):
        nlp.add_pipe("ember_probe", config={"treshold": 0.3})
    with pytest.raises((ValueError, LLMNERError), match="tpu"):
        nlp.add_pipe("ember_probe", config={"llm": {"device": "tpu"}})
