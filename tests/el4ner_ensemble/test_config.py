"""Voters, verifiers and prompts that are not valid."""

import pytest
import spacy
import torch

from spacy_llmner.el4ner_ensemble.component import EL4NER
from spacy_llmner.el4ner_ensemble.voter.llm_voter import make_voter
from spacy_llmner.el4ner_ensemble.voter.prompt_files import read_prompts
from spacy_llmner.errors import LLMNERError
from spacy_llmner.llm import registry as pool
from tests.el4ner_ensemble.helpers import FakeEncoder, MockVoter, config_of, make_mock_nlp, make_nlp
from tests.helpers import TEXTS, make_examples


@pytest.mark.parametrize(
    "setting,value,match",
    [
        ("verifier", "c", "The verifier 'c' of 'el4ner_ensemble' is not one of its LLMs .a, b."),
        ("pos_weights", {"verb": 1.0}, "propn, noun, pron, other"),
    ],
)
def test_settings_that_name_something_unknown(setting, value, match):
    with pytest.raises(LLMNERError, match=match):
        make_nlp({"a": "/x", "b": "/y"}, **{setting: value})


def test_the_same_block_twice(roomy):
    match = "The voters 'a' and 'b' of 'el4ner_ensemble' are the same: .*`weight`"
    with pytest.raises(LLMNERError, match=match):
        make_nlp({"a": roomy[0], "b": roomy[0]})
    with pytest.raises(LLMNERError, match=match):
        make_nlp({"a": roomy[0], "b": f"{roomy[0]}/"})
    make_nlp({"a": roomy[1], "b": {"folder": roomy[1], "chat": False}})


@pytest.mark.parametrize(
    ("number", "same"),
    [
        (1, {"chat": True}),
        (0, {"chat": False}),
        (0, {"prompts": "en_base"}),
        (0, {"device": "auto"}),
    ],
)
def test_the_same_voter_in_other_words(roomy, number, same):
    """It is only known what "auto" and null mean after the LLM was loaded."""
    if same == {"device": "auto"} and torch.cuda.is_available():
        pytest.skip("here it is another device")
    config = config_of({"a": roomy[number], "b": roomy[number]}, labels=["PER"], k=0)
    device = same.pop("device", "cpu")
    config["llms"]["b"].update(same)
    config["llms"]["b"]["llm"]["device"] = device
    nlp = spacy.blank("en")
    with pytest.raises(LLMNERError, match="The voters 'a' and 'b' of .* are the same"):
        nlp.add_pipe("el4ner_ensemble", config=config)
        nlp.initialize(lambda: make_examples(nlp))
    nlp = spacy.blank("en")
    with pytest.raises(LLMNERError, match="The voters 'a' and 'b' of .* are the same"):
        nlp.add_pipe("el4ner_ensemble", config=config)
        nlp("Mira sings.")


def test_objects_that_are_not_voters():
    with pytest.raises(LLMNERError, match="The voter 'a' of 'x' is a list, but must be the"):
        EL4NER(spacy.blank("en"), {"a": ["smollm2"]}, FakeEncoder(), "x")
    with pytest.raises(LLMNERError, match="`llms.weight` .* is 0, but must be a number above 0"):
        make_nlp({"a": {"folder": "/x", "weight": 0}})
    voter = MockVoter()
    del voter.weight, voter.llm_key
    with pytest.raises(LLMNERError, match="'a' of 'x' is a MockVoter.*missing: weight, llm_key"):
        EL4NER(spacy.blank("en"), {"a": voter}, FakeEncoder(), "x")


@pytest.mark.parametrize(
    "setting,value,match",
    [
        (
            "verifier",
            "typo",
            "The verifier 'typo' of 'el4ner_ensemble' is not one of its LLMs .a, b.",
        ),
        ("pos_weights", {"verb": 1.0}, "propn, noun, pron, other"),
    ],
)
def test_unknown_names_in_cfg(setting, value, match):
    nlp, pipe = make_mock_nlp({"a": MockVoter(), "b": MockVoter()})
    pipe.cfg[setting] = value
    with pytest.raises(LLMNERError, match=match):
        pipe(nlp.make_doc(TEXTS[0]))
    with pytest.raises(LLMNERError, match=match):
        list(pipe.pipe([nlp.make_doc(text) for text in TEXTS]))
    with pytest.raises(LLMNERError, match=match):
        pipe.initialize(lambda: make_examples(nlp))


def test_labels_that_cannot_be_encoded():
    match = (
        r"`labels` of 'el4ner.*' is \['PER', '\\ud800'\], but must be words that UTF-8 can encode"
    )
    with pytest.raises(LLMNERError, match=match):
        make_mock_nlp({"a": MockVoter()}, labels=["PER", "\ud800"])


def test_some_pos_weights_in_cfg():
    nlp, pipe = make_mock_nlp({"a": MockVoter({"Oskar": {"PER": 1.0}})})
    pipe.cfg["pos_weights"] = {"noun": 3.0}
    assert pipe(nlp.make_doc("Somebody saw Oskar.")).ents


@pytest.mark.parametrize("weight", [0, -1.0, float("inf"), float("nan"), "2", None])
def test_invalid_weights_of_voters(weight):
    with pytest.raises(LLMNERError, match="`llms.weight` .* must be a number above 0"):
        make_voter(weight=weight)


def test_broken_prompts_are_an_error_at_construction(tmp_path):
    file = tmp_path / "mine.txt"
    file.write_text(read_prompts("en_base", "en", False).replace("{types}", "types"))
    with pytest.raises(LLMNERError, match="mine.txt.*'# instruction' contains {types} 0 times"):
        make_nlp({"a": {"folder": "/x", "prompts": str(file)}})


def test_missing_prompts_are_an_error_before_an_llm_is_loaded(roomy):
    pool.clear()
    nlp = make_nlp({"a": {"folder": roomy[0], "prompts": "en_chatt"}}, labels=["PER"])
    with pytest.raises(LLMNERError, match="Can't read the prompts 'en_chatt'.*en_base, en_chat"):
        nlp(TEXTS[0])
    with pytest.raises(LLMNERError, match="Can't read the prompts 'en_chatt'"):
        nlp.initialize(lambda: make_examples(nlp))
    assert not pool.loaded()
