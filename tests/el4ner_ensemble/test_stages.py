"""The stages with voters that know their answers (checklist 1, 6, 8, 10, 12, 15)."""

import json

import numpy as np
import pytest

from spacy_llmner.el4ner_ensemble.interfaces import NONE, Task
from spacy_llmner.el4ner_ensemble.provenance import trace
from spacy_llmner.errors import LLMMismatchError, LLMNERError
from tests.el4ner_ensemble.helpers import MockVoter, decide, make_ensemble, words_of

TEXT = "Mira Stone met Oskar in Varnholm."
MIRA, OSKAR, VARNHOLM = "Mira Stone", "Oskar", "Varnholm"


def three():
    """Three voters that find different spans."""
    return {
        "a": MockVoter({MIRA: {"PER": 0.9}, VARNHOLM: {"LOC": 0.6, "PER": 0.4}}),
        "b": MockVoter({MIRA: {"PER": 0.7}, OSKAR: {"PER": 0.8}}),
        "c": MockVoter({MIRA: {"ORG": 0.9}, OSKAR: {"PER": 0.6}, VARNHOLM: {"LOC": 0.9}}),
    }


def test_union_then_majority():
    voters = three()
    found = decide(make_ensemble(voters), TEXT)[0]
    assert {s: d.label for s, d in found.items()} == {MIRA: "PER", OSKAR: "PER", VARNHOLM: "LOC"}
    # Every voter is asked about the union.
    union = [(0, 10), (15, 20), (24, 32)]
    for voter in voters.values():
        assert ("classification", [union]) in [asked[:2] for asked in voter.asked]
    assert found[OSKAR].proposed == ["b", "c"]
    assert found[OSKAR].votes == {"a": (NONE, 1.0), "b": ("PER", 0.8), "c": ("PER", 0.6)}
    assert found[MIRA].score == pytest.approx((0.9 + 0.7) / 3 * 0.9)
    assert [(d.start, d.end) for d in found.values()] == union


def test_removing_a_voter_changes_only_its_votes():
    full = decide(make_ensemble(three(), verifier="a"), TEXT)[0]
    voters = three()
    del voters["c"]
    less = decide(make_ensemble(voters), TEXT)[0]
    for string, decision in less.items():
        votes = {k: v for k, v in full[string].votes.items() if k != "c"}
        assert decision.votes == votes


def test_the_verifier_removes_a_wrong_claim():
    voters = three()
    voters["b"].true = {(MIRA, "PER"): 0.95, (OSKAR, "PER"): 0.2}
    voters["a"].true = {(MIRA, "PER"): 0.1}
    by_b = decide(make_ensemble(voters, verifier="b"), TEXT)[0]
    assert set(by_b) == {MIRA, VARNHOLM} and by_b[MIRA].verified == 0.95
    assert set(decide(make_ensemble(voters, verifier="a"), TEXT)[0]) == {OSKAR, VARNHOLM}
    low = make_ensemble(voters, verifier="b", verify_threshold=0.15)
    assert set(decide(low, TEXT)[0]) == {MIRA, OSKAR, VARNHOLM}


def test_without_verification():
    voters = three()
    voters["a"].true = {(MIRA, "PER"): 0.0}
    ensemble = make_ensemble(voters, verifier=None)
    found = decide(ensemble, TEXT)[0]
    assert set(found) == {MIRA, OSKAR, VARNHOLM} and found[MIRA].verified is None
    assert ensemble.call_counts.verification == 0
    assert not any(stage == "verification" for stage, _, _ in voters["a"].asked)


def test_unanimous_spans_may_skip_it():
    voters = {name: MockVoter({MIRA: {"PER": 0.9}}) for name in "abc"}
    voters["b"].knows[OSKAR] = {"PER": 1.0}
    voters["c"].knows[OSKAR] = {"PER": 1.0}
    voters["a"].true = {(MIRA, "PER"): 0.0, (OSKAR, "PER"): 0.8}
    found = decide(make_ensemble(voters, skip_unanimous=True), TEXT)[0]
    assert found[MIRA].verified is None and found[OSKAR].verified == 0.8
    assert set(decide(make_ensemble(voters), TEXT)[0]) == {OSKAR}


def test_calls_equal_the_formula():
    """n for each of three stages and each text, and one for each claim."""
    voters = three()
    ensemble = make_ensemble(voters)
    texts = [TEXT, "Oskar sings.", "Nobody sings."]
    tasks = [Task(text, words_of(text)) for text in texts]
    ensemble.pre_extract(tasks)
    ensemble.decide(tasks)
    work = ensemble.call_counts
    # Nothing was found in the last text, so that there is nothing to classify.
    assert (work.pre_extraction, work.extraction, work.classification) == (9, 9, 6)
    assert work.verification == 4  # three entities and one
    assert work.calls == 9 + 9 + 6 + 4
    # Every session counts 10 tokens for each text and stage.
    assert work.tokens == 90 + 90 + 90 + 30


def test_one_text_calls():
    ensemble = make_ensemble(three())
    task = Task(TEXT, words_of(TEXT))
    ensemble.pre_extract([task])
    ensemble.decide([task])
    assert ensemble.call_counts.calls == 3 + 3 + 3 + 3


class Nonsense(MockVoter):
    """A voter that returns spans outside the text, and types that were not requested."""

    def session(self, tasks, asked, *, keep):
        session = super().session(tasks, asked, keep=keep)
        session.extract = lambda: [[(0, 3), (-5, 10), (7, 2), (5, 900), (0, 10)] for _ in tasks]
        session.classify = lambda spans: [[{"CITY": 0.9, "PER": 0.1} for _ in s] for s in spans]
        return session


def test_nonsense_is_dropped_and_counted():
    ensemble = make_ensemble({"a": Nonsense()})
    found = decide(ensemble, TEXT)[0]
    assert {s: d.label for s, d in found.items()} == {MIRA: "PER"}
    assert ensemble.call_counts.dropped == 4 + 1


def test_punctuation_is_trimmed():
    voter = MockVoter({'"Oskar",': {"PER": 1.0}, "!": {"PER": 1.0}, "Oskar": {"PER": 1.0}})
    found = decide(make_ensemble({"a": voter}), 'Nobody saw "Oskar", he said!')[0]
    assert set(found) == {"Oskar"}


NO_SPANS = {
    "None": None,
    "a number": [5],
    "three": [(1, 2, 3)],
    "strings": ["Oskar", "ab"],
    "fractions": [(0.0, 10.0)],
    "nothing": [None],
}


class Broken(MockVoter):
    """A voter whose answers are not one per question, or are not probabilities."""

    def __init__(self, how):
        super().__init__({MIRA: {"PER": 1.0}})
        self.how = how

    def session(self, tasks, asked, *, keep):
        session = super().session(tasks, asked, keep=keep)
        if self.how == "few":
            session.classify = lambda spans: [[] for _ in tasks]
        elif self.how == "short":
            session.extract = lambda: []
        elif self.how in NO_SPANS:
            session.extract = lambda: [NO_SPANS[self.how] for _ in tasks]
        elif self.how == "no answer":
            session.extract = lambda: None
        elif self.how == "nan":
            session.classify = lambda spans: [[{"PER": float("nan")} for _ in s] for s in spans]
        else:
            session.verify = lambda spans, claims: [[7.0 for _ in c] for c in claims]
        return session


@pytest.mark.parametrize("how", ["few", "short", "nan", "much", "no answer", *NO_SPANS])
def test_a_voter_that_answers_nonsense_is_left_out(how):
    found = decide(make_ensemble({"a": Broken(how), "b": three()["b"]}), TEXT)[0]
    assert set(found[MIRA].failed) == {"a"}
    if how == "much":  # its votes count, but it can't verify
        assert found[MIRA].verified is None and set(found[MIRA].votes) == {"a", "b"}
    else:
        assert set(found) == {MIRA, OSKAR} and set(found[MIRA].votes) == {"b"}


@pytest.mark.parametrize("stage", ["extraction", "classification", "verification"])
@pytest.mark.parametrize("resident", [None, 1])
def test_a_voter_that_fails_is_left_out_for_that_text(stage, resident, caplog):
    bad = "Oskar sings loudly."
    voters = three()
    for k, voter in enumerate(voters.values()):
        voter.llm_key = k
    voters["b"].fails = {stage: {bad}}
    texts = [TEXT, bad, "Mira Stone and Oskar sing.", "Oskar likes tea."]
    good = decide(make_ensemble(three(), verifier="b"), *texts)
    found = decide(make_ensemble(voters, resident=resident, verifier="b"), *texts)
    for k in (0, 2, 3):  # other texts have all three votes
        assert {s: d.votes for s, d in found[k].items()} == {s: d.votes for s, d in good[k].items()}
        assert not any(d.failed for d in found[k].values())
    assert "voter 'b' is left out for the text 'Oskar sings loudly.'" in caplog.text
    if stage == "verification":
        assert found[1]["Oskar"].verified is None
        assert found[1]["Oskar"].failed["b"] == "verification: MemoryError: no room"
    else:
        # a says none, c says PER: the sum decides.
        assert not found[1] or "b" not in found[1]["Oskar"].votes


@pytest.mark.parametrize("how", ["short", "no answer", *NO_SPANS])
def test_nonsense_in_the_first_stage(how):
    ensemble = make_ensemble({"a": Broken(how), "b": three()["b"]})
    task = Task(TEXT, words_of(TEXT))
    assert ensemble.pre_extract([task]) == [{"b": [(0, 10), (15, 20)]}]
    assert task.failed["a"].startswith("pre_extraction: ")
    # It is not asked again about this text.
    assert {d.label for d in ensemble.decide([task])[0]} == {"PER"}


def test_answers_may_be_numpy():
    """Decisions contain plain Python values, so that they can be saved."""

    class Numpy(MockVoter):
        def session(self, tasks, asked, *, keep):
            session = super().session(tasks, asked, keep=keep)
            session.extract = lambda: [np.array([[0, 10]]) for _ in tasks]
            session.classify = lambda spans: [np.array([{"PER": np.float32(0.5)}]) for _ in tasks]
            session.verify = lambda spans, claims: np.full((len(tasks), 1), 0.5, dtype=np.float32)
            return session

    (decision,) = decide(make_ensemble({"a": Numpy()}), TEXT)[0].values()
    assert decision.score == 0.25 and decision.votes == {"a": ("PER", 0.5)}
    json.dumps(trace(decision))
    assert (type(decision.start), type(decision.end)) == (int, int)


def test_a_voter_that_cannot_say_how_long_a_text_is():
    class NoSize(MockVoter):
        def count_tokens(self, task, asked):
            if task.text == TEXT:
                raise MemoryError("no room")
            return super().count_tokens(task, asked)

    found = decide(
        make_ensemble({"a": NoSize(three()["a"].knows), "b": three()["b"]}),
        TEXT,
        "Mira Stone naps.",
    )
    assert found[0][MIRA].failed == {"a": "reading: MemoryError: no room"}
    assert set(found[0][MIRA].votes) == {"b"} and not found[1][MIRA].failed


def test_all_voters_fail():
    voters = {name: MockVoter(fails={"extraction": {TEXT}}) for name in "ab"}
    with pytest.raises(
        LLMNERError,
        match="All voters of 'el4ner_ensemble' failed on a document .a: extraction: Mem.*max_batch_tokens",
    ):
        decide(make_ensemble(voters), TEXT)


def test_a_wrong_llm_is_no_failure_of_a_text():
    class Wrong(MockVoter):
        def session(self, tasks, asked, *, keep):
            raise LLMMismatchError("other weights")

    with pytest.raises(LLMMismatchError):
        decide(make_ensemble({"a": Wrong(), "b": three()["b"]}), TEXT)


def test_taking_turns():
    """With one LLM in memory, each reads all texts before the next is loaded. The answers are the same."""
    expected = decide(make_ensemble(three()), TEXT, "Oskar sings.")
    voters = three()
    for k, voter in enumerate(voters.values()):
        voter.llm_key = k
    found = decide(make_ensemble(voters, resident=1), TEXT, "Oskar sings.")
    assert found == expected
    for voter in voters.values():
        assert voter.kept == [False] * len(voter.kept)
        assert [len(demos) for _, _, demos in voter.asked] == [2] * len(voter.asked)
    # a, b and c extract; c, a and b classify; a verifies. Each change unloads one LLM.
    assert [voter.unloaded for voter in voters.values()] == [2, 2, 1]
    together = three()
    for voter in together.values():
        voter.llm_key = "shared"
    assert decide(make_ensemble(together, resident=1), TEXT, "Oskar sings.") == expected
    assert not any(voter.unloaded for voter in together.values())
    assert together["a"].kept == [True]


def test_nested_spans_are_kept():
    voter = MockVoter({"Bank of Varnholm": {"ORG": 0.9}, VARNHOLM: {"LOC": 0.8}})
    found = decide(make_ensemble({"a": voter}), "The Bank of Varnholm is old.")[0]
    assert set(found) == {"Bank of Varnholm", VARNHOLM}
