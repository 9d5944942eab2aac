"""Settings and voters that make no sense."""

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
        ("retrieval", "bm25", "must be one of span, sentence, random, none"),
        ("pre_extract", "all", "must be one of llm, gold"),
        (
            "vote",
            "loud",
            "`vote` of 'el4ner_ensemble' is 'loud', but must be one of majority, prob",
        ),
        ("verify_threshold", 1.5, "between 0 and 1"),
        ("k", -1, "`k` .* 0 or more"),
        ("pool_size", -1, "0 or more"),
        ("window", 0, "positive"),
        ("max_batch_tokens", 0, "positive"),
        ("resident", 0, "`resident` .* positive, or null for all LLMs"),
        ("verifier", "c", "The verifier 'c' of 'el4ner_ensemble' is not among its LLMs .a, b."),
        ("pos_weights", {"verb": 1.0}, "propn, noun, pron, other"),
    ],
)
def test_senseless_settings(setting, value, match):
    with pytest.raises(LLMNERError, match=match):
        make_nlp({"a": "/x", "b": "/y"}, **{setting: value})


def test_the_same_block_twice(roomy):
    match = "The voter 'b' of 'el4ner_ensemble' and the voter 'a' are the same: .*`weight`"
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
    """What "auto" and null mean is known once the LLM was loaded."""
    if same == {"device": "auto"} and torch.cuda.is_available():
        pytest.skip("here it is another device")
    config = config_of({"a": roomy[number], "b": roomy[number]}, labels=["PER"], k=0)
    device = same.pop("device", "cpu")
    config["llms"]["b"].update(same)
    config["llms"]["b"]["llm"]["device"] = device
    nlp = spacy.blank("en")
    with pytest.raises(LLMNERError, match="'b' .* and the voter 'a' are the same"):
        nlp.add_pipe("el4ner_ensemble", config=config)
        nlp.initialize(lambda: make_examples(nlp))
    nlp = spacy.blank("en")
    with pytest.raises(LLMNERError, match="'b' .* and the voter 'a' are the same"):
        nlp.add_pipe("el4ner_ensemble", config=config)
        nlp("Mira sings.")


def test_what_is_no_voter():
    with pytest.raises(LLMNERError, match="The voter 'a' of 'x' is a str, not a block"):
        EL4NER(spacy.blank("en"), {"a": "smollm2"}, FakeEncoder(), "x")
    with pytest.raises(LLMNERError, match="`llms.weight` .* is 0, but must be a number above 0"):
        make_nlp({"a": {"folder": "/x", "weight": 0}})
    voter = MockVoter()
    del voter.weight, voter.memory
    with pytest.raises(LLMNERError, match="'a' of 'x' is a MockVoter.*missing: weight, memory"):
        EL4NER(spacy.blank("en"), {"a": voter}, FakeEncoder(), "x")


@pytest.mark.parametrize(
    "setting,value,match",
    [
        (
            "verifier",
            "typo",
            "The verifier 'typo' of 'el4ner_ensemble' is not among its LLMs .a, b.",
        ),
        ("vote", "loud", "must be one of majority, probability"),
        ("retrieval", "bm25", "must be one of span, sentence"),
        ("k", None, "`k` .* is None, but must be 0 or more"),
        ("k", 1.5, "0 or more"),
        ("window", "long", "`window` .* positive"),
        ("verify_threshold", None, "between 0 and 1"),
        ("pos_weights", {"verb": 1.0}, "propn, noun, pron, other"),
        ("pos_weights", {"noun": "2"}, "`pos_weights` .* of the kind that the config takes"),
        ("pos_weights", None, "`pos_weights` .* of the kind that the config takes"),
        ("label_words", ["PER"], "`label_words` .* of the kind that the config takes"),
        ("labels", None, "`labels` .* of the kind that the config takes"),
        ("verifier", ["a"], "`verifier` .* of the kind that the config takes"),
        ("verify", "no", "`verify` .* true or false"),
    ],
)
def test_settings_changed_in_cfg_are_checked(setting, value, match):
    nlp, pipe = make_mock_nlp({"a": MockVoter(), "b": MockVoter()})
    pipe.cfg[setting] = value
    with pytest.raises(LLMNERError, match=match):
        pipe(nlp.make_doc(TEXTS[0]))
    with pytest.raises(LLMNERError, match=match):
        list(pipe.pipe([nlp.make_doc(text) for text in TEXTS]))
    with pytest.raises(LLMNERError, match=match):
        pipe.initialize(lambda: make_examples(nlp))


@pytest.mark.parametrize("labels", ["PER", [1], ["PER", " "], None, 5, [None]])
def test_labels_that_are_none(labels):
    nlp, pipe = make_mock_nlp({"a": MockVoter()}, initialize=False, labels=["river"])
    with pytest.raises(LLMNERError, match="`labels` of 'el4ner.*' is .*must be a list of words"):
        pipe.set_labels(labels)
    assert pipe.labels == ("river",)  # as before


def test_labels_that_cannot_be_encoded():
    match = (
        r"`labels` of 'el4ner.*' is \['PER', '\\ud800'\], but must be words that UTF-8 can encode"
    )
    nlp, pipe = make_mock_nlp({"a": MockVoter()}, initialize=False, labels=["river"])
    with pytest.raises(LLMNERError, match=match):
        pipe.set_labels(["PER", "\ud800"])
    assert pipe.labels == ("river",)
    with pytest.raises(LLMNERError, match=match):
        make_mock_nlp({"a": MockVoter()}, labels=["PER", "\ud800"])


def test_labels_of_any_iterable():
    nlp, pipe = make_mock_nlp({"a": MockVoter()}, initialize=False, labels=[" PER"])
    assert pipe.labels == ("PER",)
    pipe.set_labels(label for label in [" river ", "PER", "river", "PER\n"])
    assert pipe.labels == ("river", "PER")


def test_some_pos_weights_in_cfg():
    nlp, pipe = make_mock_nlp({"a": MockVoter({"Oskar": {"PER": 1.0}})})
    pipe.cfg["pos_weights"] = {"noun": 3.0}
    assert pipe(nlp.make_doc("Somebody saw Oskar.")).ents


@pytest.mark.parametrize("weight", [0, -1.0, float("inf"), float("nan"), "2", None])
def test_weights_of_voters_without_sense(weight):
    with pytest.raises(LLMNERError, match="`llms.weight` .* must be a number above 0"):
        make_voter(weight=weight)


def test_broken_prompts_are_told_when_a_voter_is_built(tmp_path):
    file = tmp_path / "mine.txt"
    file.write_text(read_prompts("en_base", "en", False).replace("{types}", "types"))
    with pytest.raises(LLMNERError, match="mine.txt.*'# instruction' has the slot {types} 0 times"):
        make_nlp({"a": {"folder": "/x", "prompts": str(file)}})


def test_missing_prompts_are_told_before_an_llm_is_loaded(roomy):
    pool.clear()
    nlp = make_nlp({"a": {"folder": roomy[0], "prompts": "en_chatt"}}, labels=["PER"])
    with pytest.raises(LLMNERError, match="Can't read the prompts 'en_chatt'.*en_base, en_chat"):
        nlp(TEXTS[0])
    with pytest.raises(LLMNERError, match="Can't read the prompts 'en_chatt'"):
        nlp.initialize(lambda: make_examples(nlp))
    assert not pool.loaded()
