"""The variants of the ablation benchmark, and its scores."""

from dataclasses import replace

import pytest
import spacy
import srsly

from benchmarks.el4ner import ablation
from benchmarks.el4ner.caching_voter import CachingVoter
from spacy_llmner.el4ner_ensemble.component import EL4NER
from tests.el4ner_ensemble.helpers import FakeEncoder, MockVoter, make_mock_nlp
from tests.helpers import TRAIN, make_examples

ONE, OTHER = "gemma", "smollm2"
MIRA = {"Mira Stone": {"PER": 0.8}}


def voters():
    """One voter finds "tea", the other one "cold". Both find "Mira"."""
    return {
        ONE: MockVoter({**MIRA, "tea": {"PER": 0.9}}, true={("Mira Stone", "PER"): 0.0}),
        OTHER: MockVoter({**MIRA, "cold": {"PER": 0.9}}),
    }


def make(llms, **settings):
    return EL4NER(spacy.blank("en"), {name: voters()[name] for name in llms}, FakeEncoder())


def test_a_single_llm_only_uses_its_own_spans(monkeypatch):
    monkeypatch.setattr(ablation, "make_ensemble", make)
    nlp, full = make_mock_nlp(voters())
    labelled = make_examples(nlp)
    alone = ablation.make_variant(full, {}, labelled, llms=[OTHER])
    assert alone.pool.index.examples == full.pool.index.examples
    shown = {}
    for pool in (full.pool, alone.pool):
        others = [pool.demonstration(k, full.labels) for k in range(len(TRAIN))]
        shown[pool] = {demo.text[a:b] for demo in others for a, b in demo.others}
        assert len(pool.vectors) == sum(pool.sizes)
    assert {"tea", "cold"} <= shown[full.pool]
    assert "tea" not in shown[alone.pool] and "cold" in shown[alone.pool]
    # The same as a new ensemble of this LLM.
    pipe = make([OTHER])
    pipe.initialize(lambda: labelled)
    assert alone.pool.spans == pipe.pool.spans


def test_verification():
    """Mentions with probability 0 are dropped, but not without verification. Mentions for which the
    verifier failed are not dropped."""
    text = "Mira Stone sings in Port Ellam."
    nlp, pipe = make_mock_nlp(voters(), verify_threshold=0.0)
    data = [(text, [(0, 10, "PER")]), ("Mira Stone naps.", [(0, 10, "PER")])]
    examples = make_examples(nlp, data)
    found = ablation.run(pipe, examples)
    assert [(of[0].verified, of[0].mention.score) for of in found] == [(0.0, 0.8)] * 2
    assert ablation.score(examples, found, 0.0)["f"] == pytest.approx(100.0)
    assert ablation.score(examples, found, 0.5)["f"] == 0.0
    failing = voters()
    failing[ONE].fails = {"verification": {text}}
    _, pipe = make_mock_nlp(failing, verify_threshold=0.0)
    found = ablation.run(pipe, examples)
    assert found[0][0].verified is None
    assert ablation.score(examples, found, 0.5)["r"] == pytest.approx(50.0)


def test_variants_are_added_to_an_earlier_result(monkeypatch, tmp_path):
    monkeypatch.setattr(ablation, "RESULTS", tmp_path)
    limits = {"set": "toy", "texts": 4, "labels": ["PER"], "seconds_pool": 1.0}
    assert ablation.earlier_variants("toy", limits) == {}
    srsly.write_json(tmp_path / "toy.json", {**limits, "variants": {"ensemble": {"f": 50.0}}})
    later = {**limits, "seconds_pool": 2.0}
    assert ablation.earlier_variants("toy", later) == {"ensemble": {"f": 50.0}}
    with pytest.raises(ValueError, match=r"toy.json was measured with other values of: texts"):
        ablation.earlier_variants("toy", {**limits, "texts": 5})


def test_caching_voter_asks_each_question_once():
    """Other ways to count the same votes only verify new claims."""
    texts = ["Mira Stone drinks cold tea.", "Mira Stone sings in Port Ellam."]
    usual, cached = voters(), voters()
    _, expected = make_mock_nlp(usual)
    nlp, pipe = make_mock_nlp(cached)
    pipe.voters = {name: CachingVoter(voter) for name, voter in pipe.voters.items()}
    pipe._residency = None
    docs = [nlp.make_doc(text) for text in texts]
    assert pipe.predict(docs) == expected.predict(docs)
    asked = [list(voter.asked) for voter in cached.values()]
    assert asked == [voter.asked for voter in usual.values()]
    assert pipe.predict(docs) == expected.predict(docs)
    assert [voter.asked for voter in cached.values()] == asked
    for each in (pipe, expected):
        each.cfg["factors"] = {OTHER: {"": 0.1, "PER": 0.1, "LOC": 9.0}}
        each.cfg["vote"] = "probability"
    cached[OTHER].knows["cold"] = {"LOC": 1.0}  # has no effect: the answer is cached
    assert pipe.predict(docs) == expected.predict(docs)
    new = [voter.asked[len(before) :] for voter, before in zip(cached.values(), asked)]
    assert {stage for of_voter in new for stage, *_ in of_voter} <= {"verification"}


def test_fitted_on_held_out_texts(monkeypatch):
    """The threshold is the best one on these texts. The calibration does not remain."""
    nlp, pipe = make_mock_nlp(voters(), verify_threshold=0.0)
    held_out = make_examples(nlp, [("Mira Stone drinks tea.", [(0, 10, "PER")])])
    test = make_examples(nlp, [("Mira Stone naps.", [(0, 10, "PER")])])
    row = ablation.fitted(pipe, held_out, test)
    # The verifier rejects Mira Stone, so no verification is best.
    assert row["threshold"] == 0.0 and row["each"] == [(1, 1, 1)]
    assert pipe.cfg["factors"] == {}


def test_scores_of_stages():
    nlp, pipe = make_mock_nlp(voters(), verify_threshold=0.0)
    data = [
        ("Mira Stone drinks cold tea.", [(0, 10, "PER"), (23, 26, "LOC")]),
        ("Nobody naps.", []),
    ]
    examples = make_examples(nlp, data)
    known = ablation.stages(pipe, examples)
    assert known["found"] == {ONE: [2, 2], OTHER: [1, 2], "union": [2, 3]}
    assert known["types"][ONE] == 1
    ((right,), _) = ablation.run(pipe, examples)
    wrong = replace(right.mention, label="LOC")
    for p, q, share in ((0.8, 0.2, 1.0), (0.5, 0.5, 0.5), (0.1, 0.2, 0.0)):
        found = [[ablation.Voted(right.mention, p), ablation.Voted(wrong, q)], []]
        assert ablation.auc(examples, found) == share
