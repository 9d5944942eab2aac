"""Invalid values of settings, given at construction or set later in `cfg`."""

import pytest
import spacy

from spacy_llmner.errors import LLMNERError, LLMNotFoundError
from tests.contracts.components import ADAPTERS, BY_NAME, TRAINABLE, initialized, only, pipe_of
from tests.ember_probe.helpers import FEW_SHOT, PAPER, make_nlp
from tests.helpers import TEXTS, make_examples

SHARE, POSITIVE, COUNT = "must be between 0 and 1", "must be positive", "must be 0 or more"
GIVEN = [
    ("ember_probe", "threshold", -0.1, SHARE),
    ("ember_probe", "threshold", 1.5, SHARE),
    ("ember_probe", "max_batch_tokens", 0, POSITIVE),
    ("padellm_ner", "count", "all", "must be one of argmax, calibrated"),
    ("padellm_ner", "confidence", "sum", "must be one of product, mean"),
    ("padellm_ner", "probability", "some", "must be one of allowed, raw"),
    ("padellm_ner", "deduplicate", "yes", "must be one of none, string, span"),
    ("padellm_ner", "threshold", 1.5, SHARE),
    ("padellm_ner", "count_threshold", -0.1, SHARE),
    ("padellm_ner", "window", 0, POSITIVE),
    ("padellm_ner", "max_mention_tokens", 0, POSITIVE),
    ("padellm_ner", "max_batch_tokens", -3, POSITIVE),
    ("ra_it_ner", "use_examples", "sometimes", "must be one of auto, always, never"),
    ("ra_it_ner", "list_threshold", 1.5, SHARE),
    ("ra_it_ner", "negative_rate", -0.1, SHARE),
    ("ra_it_ner", "window", 0, POSITIVE),
    ("ra_it_ner", "context", 0, POSITIVE),
    ("ra_it_ner", "max_batch_tokens", 0, POSITIVE),
    ("ra_it_ner", "least_negatives", -1, COUNT),
    ("ra_it_ner", "example_threshold", 1.5, "must be a cosine, from -1 to 1"),
    ("el4ner_ensemble", "retrieval", "bm25", "must be one of span, sentence, random, none"),
    ("el4ner_ensemble", "pre_extract", "all", "must be one of llm, gold"),
    ("el4ner_ensemble", "vote", "loud", "must be one of majority, prob"),
    ("el4ner_ensemble", "verify_threshold", 1.5, SHARE),
    ("el4ner_ensemble", "k", -1, COUNT),
    ("el4ner_ensemble", "pool_size", -1, COUNT),
    ("el4ner_ensemble", "window", 0, POSITIVE),
    ("el4ner_ensemble", "max_batch_tokens", 0, POSITIVE),
    ("el4ner_ensemble", "resident", 0, "positive, or null for all LLMs"),
]


@pytest.mark.parametrize(("name", "setting", "value", "match"), GIVEN)
def test_values_are_checked_at_construction(name, setting, value, match):
    with pytest.raises(LLMNERError, match=f"`{setting}` of '{name}' is {value!r}, but .*{match}"):
        BY_NAME[name].make("/no/such/llm", cfg={setting: value})


TYPE = "of the type that the config"
CHANGED = [
    *(("ember_probe", "threshold", value, SHARE) for value in (-1, 2.0, "0.3", None, float("nan"))),
    ("padellm_ner", "count", "foo", ""),
    ("padellm_ner", "confidence", "foo", ""),
    ("padellm_ner", "deduplicate", "foo", ""),
    ("padellm_ner", "window", 0, ""),
    ("padellm_ner", "threshold", 2.0, ""),
    ("padellm_ner", "threshold", "0.3", ""),
    ("padellm_ner", "window", "long", ""),
    ("ra_it_ner", "use_examples", "foo", ""),
    ("ra_it_ner", "window", 0, ""),
    ("ra_it_ner", "threshold", "0.3", ""),
    ("ra_it_ner", "example_threshold", "0.3", ""),
    ("ra_it_ner", "constrained", "no", ""),
    ("ra_it_ner", "labels", None, ""),
    ("ra_it_ner", "labels", "PER", ""),
    ("el4ner_ensemble", "vote", "loud", "must be one of majority, probability"),
    ("el4ner_ensemble", "retrieval", "bm25", "must be one of span, sentence"),
    ("el4ner_ensemble", "k", None, COUNT),
    ("el4ner_ensemble", "k", 1.5, COUNT),
    ("el4ner_ensemble", "window", "long", POSITIVE),
    ("el4ner_ensemble", "verify_threshold", None, SHARE),
    ("el4ner_ensemble", "pos_weights", {"noun": "2"}, TYPE),
    ("el4ner_ensemble", "pos_weights", None, TYPE),
    ("el4ner_ensemble", "label_words", ["PER"], TYPE),
    ("el4ner_ensemble", "labels", None, "must be a list of strings"),
    ("el4ner_ensemble", "verifier", ["a"], TYPE),
    ("el4ner_ensemble", "verify", "no", "true or false"),
]


@pytest.mark.parametrize(("name", "setting", "value", "must"), CHANGED)
def test_values_changed_in_cfg_are_checked(name, setting, value, must, pipelines, monkeypatch):
    """They are checked before any text is read, whatever the error handler, and before training too."""
    nlp = pipelines(name)
    pipe = nlp.get_pipe(name)
    monkeypatch.setitem(pipe.cfg, setting, value)
    untrained = BY_NAME[name].make("/no/such/llm")
    pipe_of(untrained).cfg[setting] = value
    uses = [lambda: nlp(TEXTS[0]), lambda: list(nlp.pipe(TEXTS)), lambda: untrained(TEXTS[0])]
    if name == "ember_probe":  # a call is enough
        uses.append(lambda: pipe.stream(TEXTS[0]))
    elif hasattr(pipe, "stream"):
        uses.append(lambda: list(pipe.stream(TEXTS[0])))
    if name == "el4ner_ensemble":
        uses.append(lambda: pipe.initialize(lambda: make_examples(nlp)))
    for use in uses:
        with pytest.raises(LLMNERError) as raised:
            use()
        message = str(raised.value)
        assert f"`{setting}` of '{name}' is {value!r}, but must be" in message
        assert must.rpartition("must be ")[2] in message
    monkeypatch.setattr(pipe, "error_handler", lambda *args: None, raising=False)
    with pytest.raises(LLMNERError, match=f"`{setting}` of '{name}'"):
        list(nlp.pipe(TEXTS))


MODEL = [
    ("ember_probe", {"width": 1}, "`model.width` of 'ember_probe' is 1, but must be at least 2"),
    ("ember_probe", {"max_words": 0}, "`model.max_words` .* must be positive"),
    ("ember_probe", {"layers": []}, "`model.layers` .* must be (numbers of layers|layer numbers)"),
    ("ember_probe", {"layers": [-1]}, "`model.layers` .* must be (numbers of layers|layer num)"),
    ("ember_probe", {"architecture": PAPER, "width": 0}, "`model.width` .* must be positive"),
    (
        "ember_probe",
        {"architecture": PAPER, "layer": -1},
        "`model.layer` .* is -1, but must be 0 or more",
    ),
    (
        "ember_probe",
        {"architecture": PAPER, "max_words": -2},
        "`model.max_words` .* must be positive",
    ),
    ("ember_probe", {"architecture": FEW_SHOT, "k": 0}, "`model.k` .* must be positive"),
    (
        "ember_probe",
        {"architecture": FEW_SHOT, "max_words": 0},
        "`model.max_words` .* must be positive",
    ),
    (
        "ember_probe",
        {"architecture": FEW_SHOT, "layer": -3},
        "`model.layer` .* is -3, but must be 0 or more",
    ),
    ("padellm_ner", {"loss": "all"}, "`model.loss` .* is 'all', but must be one of allowed, raw"),
    ("padellm_ner", {"rank": -1}, "`rank`.*0 or more"),
    ("ra_it_ner", {"conversation": "mine"}, "'mine' is no.*published_en"),
    ("ra_it_ner", {"notation": "xml"}, "`notation`.*one of json, python"),
    ("ra_it_ner", {"occurrences": "some"}, "`occurrences`.*one of ordered, all"),
    ("ra_it_ner", {"rank": -1}, "`rank`.*0 or more"),
]


@pytest.mark.parametrize(("name", "settings", "match"), MODEL)
def test_values_of_the_model_are_checked(name, settings, match):
    make = make_nlp if name == "ember_probe" else BY_NAME[name].make
    with pytest.raises(LLMNERError, match=match):
        make("/no/such/llm", **settings)


@only(TRAINABLE)
def test_layers_that_the_llm_does_not_have(component, make):
    nlp = make(**({"first_layer": 4} if component.adapter else {"layers": [0, 9]}))
    match = "`first_layer` .* is 4, but must be below 4, the number of layers"
    if not component.adapter:
        match = "Layer 9 was (asked for|requested).*has 4 layers"
    with pytest.raises(LLMNERError, match=match):
        initialized(nlp)


@only(ADAPTERS)
def test_labels_with_the_same_word(component, make):
    words = {"PER": "name", "LOC": "name"}
    with pytest.raises(LLMNERError, match="`label_words` .* each of LOC, PER"):
        initialized(make(label_words=words))
    # Words for labels that don't exist are allowed.
    initialized(make(label_words={"PER": "person", "ORG": "person"}))


def test_no_llm_set(component):
    nlp = spacy.blank("en")
    config = {}
    if "llms" in component.llm:
        encoder = {"@misc": "el4ner_tests.Encoder.v1"}
        config = {"llms": {"a": {"@misc": "spacy_llmner.Voter.v1"}}, "encoder": encoder}
    pipe = nlp.add_pipe(component.name, config=config)
    if component.name != "ra_it_ner":  # which looks for its LLM first
        with pytest.raises(LLMNERError, match="no labels") as raised:
            nlp("Some text")
        assert "fit(" not in str(raised.value)
        assert ("spacy train" in str(raised.value)) is not component.open
    match = rf"{component.name}\.{component.llm}"
    with pytest.raises(LLMNotFoundError, match=match):
        initialized(nlp)
    if component.open:
        pipe.set_labels(["PER"])
        with pytest.raises(LLMNotFoundError, match=match):
            nlp("Some text")


@only(["ember_probe", "padellm_ner"])
def test_use_before_training(component, make):
    """The other components can be used without training."""
    nlp = make()
    pipe = pipe_of(nlp)
    pipe.add_label("PER")
    for use in (lambda: nlp("Some text"), lambda: list(pipe.stream("Some text"))):
        with pytest.raises(LLMNERError, match=f"'{component.name}' is not trained yet"):
            use()
