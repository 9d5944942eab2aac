"""An LLM at work: what is shared is read once, and nothing else changes (checklist 7, 10, 11)."""

import numpy as np
import pytest
from el4ner_helpers import words_of

from spacy_llmner.el4ner_ensemble.session import Desk
from spacy_llmner.el4ner_ensemble.tasks import NONE, Asked, Demonstration, Task
from spacy_llmner.el4ner_ensemble.voters import make_voter
from spacy_llmner.llm.pool import make_llm

TEXTS = ["Mira Stone met Oskar in Varnholm.", "Oskar likes Oskar, he says.", "tea"]
DEMOS = [
    Demonstration("Ada sings in Rome.", ((0, 3, "PER"), (13, 17, "LOC")), ((4, 9),)),
    Demonstration("Nobody came.", ()),
]
# Some labels begin with the same tokens.
ASKED = Asked({"PER": "person", "LOC": "place", "PET": "perso", "PLA": "plant"})
SPANS = [[(0, 4), (0, 10), (15, 20), (24, 32)], [(0, 5), (12, 17)], []]
CLAIMS = [[(0, 10, "PER"), (24, 32, "LOC")], [(0, 5, "PER"), (12, 17, "PET")], []]


def make_tasks():
    return [Task(text, words_of(text), list(DEMOS)) for text in TEXTS]


def voter_of(folder, **settings):
    voter = make_voter(make_llm(folder, device="cpu"), **settings)
    voter.join("v", 64)
    return voter


def answers(voter, keep, tasks=None):
    session = voter.session(tasks or make_tasks(), ASKED, keep=keep)
    found = session.extract(), session.classify(SPANS), session.verify(SPANS, CLAIMS)
    tokens = session.tokens
    session.close()
    return found, tokens


@pytest.fixture(params=[0, 1], ids=["base", "chat"])
def voter(request, roomy):
    return voter_of(roomy[request.param])


def test_keeping_changes_nothing_but_the_work(voter):
    (listed, types, true), tokens = answers(voter, True)
    (listed2, types2, true2), tokens2 = answers(voter, False)
    assert listed == listed2
    for one, other in zip(sum(types, []), sum(types2, [])):
        assert one.keys() == other.keys() == {"PER", "LOC", "PET", "PLA", NONE}
        assert sum(one.values()) == pytest.approx(1.0)
        assert np.allclose(list(one.values()), list(other.values()), atol=1e-4)
    assert np.allclose(sum(true, []), sum(true2, []), atol=1e-4)
    # What is shared goes through the LLM once: without keeping three times, the list of spans two times.
    shared = 0
    wording = voter._wording(ASKED)
    for task, spans in zip(make_tasks(), SPANS):
        if spans:
            desk = Desk(wording, task, 4096)
            words = {start: k for k, (start, _) in enumerate(task.words)}
            ends = {end: k + 1 for k, (_, end) in enumerate(task.words)}
            spelt = desk.lists.spell([(words[a], ends[b]) for a, b in spans])
            shared += 2 * len(desk.ids)
            shared += len(wording.list_question) + len(wording.behind_list(spelt))
    assert tokens2 - tokens == shared


def test_together_is_apart(voter):
    (listed, types, true), _ = answers(voter, True)
    for k, task in enumerate(make_tasks()):
        session = voter.session([task], ASKED, keep=True)
        assert session.extract() == [listed[k]]
        for one, other in zip(session.classify([SPANS[k]])[0], types[k]):
            assert np.allclose(list(one.values()), list(other.values()), atol=1e-4)
        assert np.allclose(session.verify([SPANS[k]], [CLAIMS[k]])[0], true[k], atol=1e-4)
        session.close()


def test_only_what_was_written_is_read(voter):
    """The published parsing returned the first demonstration's answer: here the text decides."""
    listed = answers(voter, True)[0][0]
    for text, spans in zip(TEXTS, listed):
        assert spans == sorted(set(spans))
        words = words_of(text)
        for start, end in spans:
            assert start in dict(words) and end in {e for _, e in words}
            assert "Ada" not in text[start:end] and "Rome" not in text[start:end]
    assert any(listed)  # random weights list something


def test_the_same_string_has_one_answer(voter):
    types, true = answers(voter, True)[0][1:]
    assert types[1][0] == types[1][1]
    assert true[1][0] != true[1][1]  # other types


def test_demonstrations_are_cut_first(voter):
    wording = voter._wording(ASKED)
    task = make_tasks()[0]
    whole = Desk(wording, task, 4096)
    bare = len(wording.stem(task.shown, []))
    assert len(whole.ids) == len(wording.stem(task.shown, DEMOS))
    around = wording.longest() + 2 * len(whole.lists.words.ids)
    one = len(wording.stem(task.shown, DEMOS[1:]))
    assert len(Desk(wording, task, one + around).ids) == one  # the most similar one stays
    assert len(Desk(wording, task, around).ids) == bare  # the question is never cut


def test_the_room_of_a_text(voter):
    room = voter.room(ASKED)
    assert 0 < 3 * room <= 4096
    lengths = voter.lengths(TEXTS[0], words_of(TEXTS[0]))
    assert len(lengths) == len(words_of(TEXTS[0])) and sum(lengths) > len(lengths)


def test_prompts_make_another_voter(roomy):
    one, other = voter_of(roomy[1]), voter_of(roomy[1], chat=False)
    assert one.memory == other.memory and one.manner != other.manner
    assert answers(one, True)[0][1] != answers(other, True)[0][1]
