"""The ablation benchmark leaves out what it says, and nothing else."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import spacy
import srsly

from tests.el4ner_ensemble.helpers import FakeEncoder, MockVoter, make_mock_nlp
from tests.helpers import TRAIN, make_examples

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import el4ner_ablation as ablation  # noqa: E402
from remembering import Remembering  # noqa: E402

from spacy_llmner.el4ner_ensemble.component import EL4NER

ONE, OTHER = "gemma", "smollm2"
MIRA = {"Mira Stone": {"PER": 0.8}}


def voters():
    """One takes tea for an entity, the other one cold; both know Mira."""
    return {
        ONE: MockVoter({**MIRA, "tea": {"PER": 0.9}}, true={("Mira Stone", "PER"): 0.0}),
        OTHER: MockVoter({**MIRA, "cold": {"PER": 0.9}}),
    }


def make(llms, **settings):
    return EL4NER(spacy.blank("en"), {name: voters()[name] for name in llms}, FakeEncoder())


def test_a_single_llm_sees_nothing_of_the_other(monkeypatch):
    monkeypatch.setattr(ablation, "make", make)
    nlp, full = make_mock_nlp(voters())
    labelled = make_examples(nlp)
    alone = ablation.changed(full, {}, labelled, llms=[OTHER])
    assert alone.pool.index.examples == full.pool.index.examples
    shown = {}
    for pool in (full.pool, alone.pool):
        others = [pool.demonstration(k, full.labels) for k in range(len(TRAIN))]
        shown[pool] = {demo.text[a:b] for demo in others for a, b in demo.others}
        assert len(pool.vectors) == sum(pool.sizes)
    assert {"tea", "cold"} <= shown[full.pool]
    assert "tea" not in shown[alone.pool] and "cold" in shown[alone.pool]
    # What it would have been from the start.
    pipe = make([OTHER])
    pipe.initialize(lambda: labelled)
    assert alone.pool.spans == pipe.pool.spans


def test_what_is_kept():
    """What the verifier could not answer stays; what it gave 0 goes, and is there without it."""
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
    with pytest.raises(ValueError, match=r"toy.json was measured with other texts"):
        ablation.earlier_variants("toy", {**limits, "texts": 5})


def test_nothing_is_asked_twice():
    """Other ways to count the same votes only ask whether new claims are true."""
    texts = ["Mira Stone drinks cold tea.", "Mira Stone sings in Port Ellam."]
    usual, remembering = voters(), voters()
    _, expected = make_mock_nlp(usual)
    nlp, pipe = make_mock_nlp(remembering)
    pipe.voters = {name: Remembering(voter) for name, voter in pipe.voters.items()}
    pipe._residency = None
    docs = [nlp.make_doc(text) for text in texts]
    assert pipe.predict(docs) == expected.predict(docs)
    asked = [list(voter.asked) for voter in remembering.values()]
    assert asked == [voter.asked for voter in usual.values()]
    assert pipe.predict(docs) == expected.predict(docs)
    assert [voter.asked for voter in remembering.values()] == asked
    for each in (pipe, expected):
        each.cfg["factors"] = {OTHER: {"": 0.1, "PER": 0.1, "LOC": 9.0}}
        each.cfg["vote"] = "probability"
    remembering[OTHER].knows["cold"] = {"LOC": 1.0}  # it is not asked again
    assert pipe.predict(docs) == expected.predict(docs)
    new = [voter.asked[len(before) :] for voter, before in zip(remembering.values(), asked)]
    assert {stage for of_voter in new for stage, *_ in of_voter} <= {"verification"}


def test_fitted_on_held_out_texts(monkeypatch):
    """The threshold is the best one there, and nothing of it stays."""
    nlp, pipe = make_mock_nlp(voters(), verify_threshold=0.0)
    held_out = make_examples(nlp, [("Mira Stone drinks tea.", [(0, 10, "PER")])])
    test = make_examples(nlp, [("Mira Stone naps.", [(0, 10, "PER")])])
    row = ablation.fitted(pipe, held_out, test)
    # It says that Mira Stone is no entity: better to ask nobody.
    assert row["threshold"] == 0.0 and row["each"] == [(1, 1, 1)]
    assert pipe.cfg["factors"] == {}


def test_what_each_stage_knows():
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
