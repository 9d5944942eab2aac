"""Voters with the same LLM, one of them with an adapter that another component trained."""

import json
import pickle

import pytest
import spacy
from safetensors.torch import load_file, save_file

from spacy_llmner.el4ner_ensemble.interfaces import Task
from spacy_llmner.errors import LLMMismatchError, LLMNERError, LLMNotFoundError
from spacy_llmner.llm import registry as pool
from tests.el4ner_ensemble.helpers import initialized, make_nlp, words_of
from tests.helpers import TEXTS, assert_valid, make_examples


@pytest.fixture(scope="module")
def trained(roomy, tmp_path_factory):
    """Folder of a `padellm_ner` whose adapter changes the LLM's output a lot."""
    nlp = spacy.blank("en")
    llm = {"@misc": "spacy_llmner.LLM.v1", "name": roomy[0], "device": "cpu"}
    model = {"@architectures": "spacy_llmner.PaDeLLM.v1", "rank": 4, "alpha": 8}
    nlp.add_pipe("padellm_ner", config={"llm": llm, "model": model})
    nlp.initialize(lambda: make_examples(nlp))
    for p in nlp.get_pipe("padellm_ner").module.parameters():
        p.data.normal_(0.0, 0.5)
    folder = tmp_path_factory.mktemp("trained")
    nlp.to_disk(folder)
    return folder / "padellm_ner"


@pytest.fixture(scope="module")
def nlp(roomy, trained):
    voters = {"plain": roomy[0], "tuned": {"folder": roomy[0], "adapter": str(trained)}}
    return initialized(make_nlp(voters, pre_extract="gold"))


def said(nlp):
    """RETURNS (List[Dict]): The probabilities that each voter gives for the first word."""
    pipe = nlp.get_pipe("el4ner_ensemble")
    task = Task(TEXTS[0], words_of(TEXTS[0]))
    sessions = [v.session([task], pipe.label_set, keep=False) for v in pipe.voters.values()]
    return [pytest.approx(session.classify([[(0, 4)]])[0][0], abs=1e-4) for session in sessions]


def test_one_llm_two_voters(nlp, trained):
    pool.clear()
    plain, tuned = said(nlp)
    assert plain.expected != tuned
    assert len(pool.loaded()) == 1
    assert said(nlp)[0].expected == plain  # it is as it was
    assert_valid(nlp(TEXTS[0]), TEXTS[0])
    assert set(nlp.get_pipe("el4ner_ensemble").cfg["voters"]["tuned"]) >= {"adapter"}


def test_saved_by_name(nlp, trained, tmp_path):
    expected = [voter.expected for voter in said(nlp)]
    assert expected == said(pickle.loads(pickle.dumps(nlp)))
    nlp.to_disk(tmp_path)
    assert expected == said(spacy.load(tmp_path))
    state = {k: v + 1 for k, v in load_file(trained / "model.safetensors").items()}
    other = tmp_path / "other" / "padellm_ner"
    other.mkdir(parents=True)
    save_file(state, other / "model.safetensors")
    (other / "cfg").write_text((trained / "cfg").read_text())
    (other.parent / "config.cfg").write_text((trained.parent / "config.cfg").read_text())
    changed = {"components.el4ner_ensemble.llms.tuned.adapter": str(other)}
    with pytest.raises(LLMMismatchError, match="not the adapter used at initialization"):
        spacy.load(tmp_path, config=changed)(TEXTS[0])


def test_adapters_that_cannot_be_used(roomy, trained, tmp_path):
    tuned = {"a": {"folder": roomy[2], "adapter": str(trained)}}
    match = "of the voter 'a' of 'el4ner_ensemble' can't be used .it was trained on"
    with pytest.raises(LLMMismatchError, match=match):
        make_nlp(tuned, labels=["PER"], k=0)(TEXTS[0])
    tuned["a"]["adapter"] = str(tmp_path)
    with pytest.raises(LLMNotFoundError, match="can't be used .*cfg.*padellm_ner or ra_it_ner"):
        make_nlp(tuned, labels=["PER"], k=0)(TEXTS[0])
    (tmp_path / "cfg").write_text(json.dumps({"labels": []}))
    with pytest.raises(LLMNotFoundError, match="can't be used"):
        make_nlp(tuned, labels=["PER"], k=0)(TEXTS[0])


def test_the_same_adapter_twice(roomy, trained):
    one = {"folder": roomy[0], "adapter": str(trained)}
    other = {"folder": roomy[0], "adapter": f"{trained.parent}/./{trained.name}/"}
    with pytest.raises(LLMNERError, match="are the same"):
        make_nlp({"a": one, "b": other})
