"""The config of the project for each component."""

import inspect
from pathlib import Path

import spacy
from spacy.util import load_config

from spacy_llmner.ra_it_ner.architecture import make_ra_it

CONFIGS = Path(__file__).parents[2] / "configs"
# Settings to which a config file gives other values than the defaults.
CHOSEN = {
    "ember_probe": {"feature_cache"},
    # The best settings for a small LLM that follows instructions.
    "el4ner_ensemble": {"pool_size", "retrieval", "pre_extract", "verify"},
}


def test_config_is_complete(component):
    """It sets every setting, to its default."""
    nlp = spacy.blank("en")
    nlp.add_pipe(component.name)
    config = load_config(CONFIGS / f"{component.name}.cfg")["components"][component.name]
    default = nlp.get_pipe_config(component.name)
    assert config.keys() == default.keys()
    for setting, value in default.items():
        if not isinstance(value, dict) and setting not in CHOSEN.get(component.name, ()):
            assert config[setting] == value, setting
    if component.name == "ra_it_ner":
        model = {"@architectures", *inspect.signature(make_ra_it).parameters}
        assert config["model"].keys() == model
    elif component.name == "el4ner_ensemble":
        assert set(config["llms"]) == {"qwen"}
