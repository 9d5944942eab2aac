"""Settings of all components: a misspelt name is an error, wherever it is given."""

import copy
import json
import pickle

import pytest
import spacy

from spacy_llmner import LLMNERError
from spacy_llmner.el4ner_ensemble.component import EL4NER
from spacy_llmner.ember_probe.component import EmberProbe
from spacy_llmner.padellm_ner.component import PaDeLLM
from spacy_llmner.pipeline.settings import Settings
from spacy_llmner.ra_it_ner.component import RAIT

FACTORIES = ["ember_probe", "padellm_ner", "ra_it_ner", "el4ner_ensemble"]


def make(factory, llm, **config):
    llms = {"llms": {"a": llm}} if factory == "el4ner_ensemble" else {"llm": llm}
    return spacy.blank("en").add_pipe(factory, config={**llms, **config})


@pytest.mark.parametrize("factory", FACTORIES)
def test_misspelt_in_cfg(factory, tiny_llm):
    pipe = make(factory, tiny_llm)
    nearest = "verify_threshold" if factory == "el4ner_ensemble" else "threshold"
    for change in (
        lambda: pipe.cfg.__setitem__("tresh", 1),
        lambda: pipe.cfg.update(tresh=1),
        lambda: pipe.cfg.setdefault("tresh", 1),
    ):
        with pytest.raises(LLMNERError, match=f"no setting `tresh`. Did you mean `{nearest}`"):
            change()
    assert "tresh" not in pipe.cfg


@pytest.mark.parametrize("factory", FACTORIES)
def test_misspelt_argument(factory, tiny_llm):
    pipe = make(factory, tiny_llm)
    nlp = spacy.blank("en")
    with pytest.raises(LLMNERError, match="no setting `overwrit`. Did you mean `overwrite`"):
        if factory == "ember_probe":
            EmberProbe(nlp, pipe.llm, pipe.model, overwrit=False)
        elif factory == "padellm_ner":
            PaDeLLM(nlp, pipe.llm, pipe.model, overwrit=False)
        elif factory == "ra_it_ner":
            RAIT(nlp, pipe.llm, pipe.model, pipe.encoder, pipe.retrieval, overwrit=False)
        else:
            EL4NER(nlp, pipe.voters, pipe.pool.encoder, overwrit=False)


@pytest.mark.parametrize("factory", FACTORIES)
def test_arguments_have_the_defaults_of_the_config(factory, tiny_llm):
    pipe = make(factory, tiny_llm)
    nlp = spacy.blank("en")
    other = {
        "ember_probe": lambda: EmberProbe(nlp, tiny_llm, pipe.model),
        "padellm_ner": lambda: PaDeLLM(nlp, tiny_llm, pipe.model),
        "ra_it_ner": lambda: RAIT(nlp, tiny_llm, pipe.model, pipe.encoder, pipe.retrieval),
        "el4ner_ensemble": lambda: EL4NER(nlp, {"a": tiny_llm}, pipe.pool.encoder),
    }[factory]()
    assert other.cfg == pipe.cfg
    assert other.max_batch_tokens == pipe.max_batch_tokens


@pytest.mark.parametrize("factory", FACTORIES)
def test_the_llm_by_its_name(factory, tiny_llm):
    """`llm = "NAME"` is the block with that name, also in a saved config."""
    pipe = make(factory, tiny_llm)
    voters = pipe.voters.values() if factory == "el4ner_ensemble" else [pipe]
    assert [voter.llm.spec.name for voter in voters] == [tiny_llm]
    nlp = spacy.blank("en")
    block = {"@misc": "spacy_llmner.LLM.v1", "name": tiny_llm}
    if factory == "el4ner_ensemble":
        voter = {"@misc": "spacy_llmner.Voter.v1", "llm": block}
        nlp.add_pipe(factory, config={"llms": {"a": voter}})
        assert nlp.get_pipe(factory).voters["a"].llm.spec == pipe.voters["a"].llm.spec
    else:
        nlp.add_pipe(factory, config={"llm": block})
        assert nlp.get_pipe(factory).llm.spec == pipe.llm.spec


@pytest.mark.parametrize("factory", FACTORIES)
def test_the_name_survives_a_config_file(factory, tiny_llm, tmp_path):
    llms = {"llms": {"a": tiny_llm}} if factory == "el4ner_ensemble" else {"llm": tiny_llm}
    nlp = spacy.blank("en")
    nlp.add_pipe(factory, config=llms)
    nlp.config.to_disk(tmp_path / "config.cfg")
    again = spacy.util.load_model_from_config(spacy.util.load_config(tmp_path / "config.cfg"))
    assert repr(again.get_pipe(factory)) == repr(nlp.get_pipe(factory))


def test_copies():
    settings = Settings("mine", {"a": 1, "b": [2]})
    for other in (
        copy.copy(settings),
        copy.deepcopy(settings),
        pickle.loads(pickle.dumps(settings)),
    ):
        assert other == settings
        with pytest.raises(LLMNERError, match="'mine' has no setting `aa`"):
            other["aa"] = 1
    assert json.loads(json.dumps(settings)) == settings


def test_saved_by_another_version():
    settings = Settings("mine", {"a": 1, "b": 2})
    with pytest.warns(UserWarning, match="'mine' was saved with .*: c, d. They are ignored"):
        settings.restore({"a": 3, "c": 4, "d": 5})
    assert settings == {"a": 3, "b": 2}
