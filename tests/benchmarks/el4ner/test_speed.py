"""The naive method gives the same results as the component, with as many calls as the formula says."""

import json
from collections import Counter

import pytest
import spacy
from spacy.training import Example

from benchmarks.el4ner.speed import (
    NaiveSession,
    StageSession,
    check_calls,
    compare,
    make_naive,
    timed,
)
from spacy_llmner.el4ner_ensemble.call_counts import CallCounts
from spacy_llmner.el4ner_ensemble.voter import session

TEXTS = [
    ("Ada Hale met Bo Lund in Bonn.", [(0, 8, "PER"), (13, 20, "PER"), (24, 28, "LOC")]),
    ("Nobody came to Bern.", [(15, 19, "LOC")]),
    ("Bo sings.", [(0, 2, "PER")]),
]
NEW = ["Yesterday Ada left Bonn with Bo Lund.", "Bo, Bo and Ada in Bern", "Tea is cold."]


@pytest.fixture(scope="module")
def nlp(make_tiny, tmp_path_factory):
    """An ensemble of two LLMs with random weights, which find some spans, and with demonstrations."""
    root = tmp_path_factory.mktemp("voters")
    voters = {}
    for name, shape, seed in (("a", "llama", 7), ("b", "qwen2", 8)):
        make_tiny(root / name, shape, seed)
        config = json.loads((root / name / "config.json").read_text())
        config["max_position_embeddings"] = 4096
        (root / name / "config.json").write_text(json.dumps(config))
        llm = {"@misc": "spacy_llmner.LLM.v1", "name": str(root / name), "device": "cpu"}
        voters[name] = {"@misc": "spacy_llmner.Voter.v1", "llm": llm}
    encoder = {"@misc": "spacy_llmner.LLMEncoder.v1", "llm": voters["a"]["llm"]}
    nlp = spacy.blank("en")
    config = {"llms": voters, "encoder": encoder, "k": 2, "verify_threshold": 0.0}
    nlp.add_pipe("el4ner_ensemble", config=config)
    usual, session.MAX_LIST_TOKENS = session.MAX_LIST_TOKENS, 16
    nlp.initialize(lambda: [Example.from_dict(nlp.make_doc(t), {"entities": e}) for t, e in TEXTS])
    yield nlp
    session.MAX_LIST_TOKENS = usual


@pytest.mark.parametrize("kind", [NaiveSession, StageSession])
def test_naive_method(nlp, kind):
    """It gives the same spans and scores, uses more tokens, and counts its prompts."""
    ours = nlp.get_pipe("el4ner_ensemble")
    prompts = Counter()
    other = make_naive(ours, nlp, kind, prompts)
    assert len(other.pool) == len(ours.pool)
    ours.call_counts = CallCounts()
    docs = [nlp.make_doc(text) for text in NEW]
    found = {}
    for doc in docs:
        assert timed(ours, doc, found, "ours") >= 0.0
        assert timed(other, doc, found, "naive") >= 0.0
        assert compare(found["ours"], found["naive"]) < 1e-4
    assert other.call_counts.tokens > ours.call_counts.tokens
    assert prompts["check"] and prompts["type"]
    if kind is StageSession:
        check_calls(ours, len(docs), prompts)
    else:
        assert prompts["type"] >= ours.call_counts.classification


def test_wrong_calls_are_reported(nlp):
    ours = nlp.get_pipe("el4ner_ensemble")
    prompts = Counter()
    other = make_naive(ours, nlp, StageSession, prompts)
    ours.call_counts = CallCounts()
    doc = nlp.make_doc(NEW[0])
    found = {}
    timed(ours, doc, found, "ours")
    timed(other, doc, found, "by stage")
    ours.call_counts.verification += 1
    with pytest.raises(AssertionError):
        check_calls(ours, 1, prompts)


def test_different_spans_are_reported(nlp):
    ours = nlp.get_pipe("el4ner_ensemble")
    one, other = ours.predict([nlp.make_doc(text) for text in (NEW[0], "")])
    assert one.spans and not other.spans
    assert compare(one, one) == compare(other, other) == 0.0
    with pytest.raises(AssertionError, match="the spans differ"):
        compare(one, other)
