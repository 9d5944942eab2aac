"""Shared tokens are read once, and this doesn't change the answers (checklist 7, 10, 11)."""

import numpy as np
import pytest

from spacy_llmner.el4ner_ensemble.interfaces import NONE, Demonstration, LabelSet, Task
from spacy_llmner.el4ner_ensemble.voter import session
from spacy_llmner.el4ner_ensemble.voter.llm_voter import make_voter
from spacy_llmner.el4ner_ensemble.voter.session import TaskSession
from spacy_llmner.llm.registry import make_llm
from tests.el4ner_ensemble.helpers import words_of

TEXTS = ["Mira Stone met Oskar in Varnholm.", "Oskar likes Oskar, he says.", "tea"]
DEMOS = [
    Demonstration("Ada sings in Rome.", ((0, 3, "PER"), (13, 17, "LOC")), ((4, 9),)),
    Demonstration("Nobody came.", ()),
]
# Some labels begin with the same tokens.
ASKED = LabelSet({"PER": "person", "LOC": "place", "PET": "perso", "PLA": "plant"})
SPANS = [[(0, 4), (0, 10), (15, 20), (24, 32)], [(0, 5), (12, 17)], []]
CLAIMS = [[(0, 10, "PER"), (24, 32, "LOC")], [(0, 5, "PER"), (12, 17, "PET")], []]


def make_tasks():
    return [Task(text, words_of(text), list(DEMOS)) for text in TEXTS]


def voter_of(folder, **settings):
    voter = make_voter(make_llm(folder, device="cpu"), **settings)
    voter.register("v", 64, "el4ner_ensemble")
    return voter


def answers(voter, keep, tasks=None):
    at_work = voter.session(tasks or make_tasks(), ASKED, keep=keep)
    found = at_work.extract(), at_work.classify(SPANS), at_work.verify(SPANS, CLAIMS)
    tokens = at_work.tokens
    at_work.close()
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
    # The instruction goes through the LLM once. So do the other shared tokens if they are kept in memory.
    # Otherwise, they are read three times, and the list of spans twice.
    prompt_encoder = voter._prompt_encoder(ASKED)
    instruction = len(prompt_encoder.instruction.ids)
    shared = -instruction
    question = prompt_encoder.list_question
    for task, spans in zip(make_tasks(), SPANS):
        if spans:
            task_session = TaskSession(prompt_encoder, task, 4096)
            words = {start: k for k, (start, _) in enumerate(task.words)}
            ends = {end: k + 1 for k, (_, end) in enumerate(task.words)}
            spelt = task_session.lists.spell([(words[a], ends[b]) for a, b in spans])
            # The question for the list is read with the text, except for its last token.
            assert (
                len(task_session.ids)
                == len(prompt_encoder.shared_prompt(task.window_text, DEMOS)) + len(question) - 1
            )
            shared += (
                2 * (len(task_session.ids) - instruction)
                + 1
                + len(prompt_encoder.after_list(spelt))
            )
    assert tokens2 - tokens == shared


def test_together_is_apart(voter):
    (listed, types, true), _ = answers(voter, True)
    for k, task in enumerate(make_tasks()):
        alone = voter.session([task], ASKED, keep=True)
        assert alone.extract() == [listed[k]]
        for one, other in zip(alone.classify([SPANS[k]])[0], types[k]):
            assert np.allclose(list(one.values()), list(other.values()), atol=1e-4)
        assert np.allclose(alone.verify([SPANS[k]], [CLAIMS[k]])[0], true[k], atol=1e-4)
        alone.close()


def test_only_what_was_written_is_read(voter):
    """The published parsing returned the answer of the first demonstration. Here, spans are in the text."""
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
    prompt_encoder = voter._prompt_encoder(ASKED)
    task = make_tasks()[0]
    question = prompt_encoder.list_question

    def shown(room):
        return len(TaskSession(prompt_encoder, task, room).ids) - len(question) + 1

    lists = TaskSession(prompt_encoder, task, 4096).lists
    # After the text: a list (here as short as conftest.py makes it), and a question about all of it.
    behind = prompt_encoder.tokens_after_text + session.MAX_LIST_TOKENS + len(lists.words.ids)
    both, one, bare = (
        len(prompt_encoder.shared_prompt(task.window_text, DEMOS[k:])) for k in range(3)
    )
    assert shown(both + behind) == both
    assert shown(both + behind - 1) == one  # the most similar one stays
    assert shown(one + behind) == one
    assert shown(one + behind - 1) == shown(100) == bare  # text and question are never cut


def test_the_room_of_a_text(voter):
    room = voter.capacity(ASKED)
    assert 0 < 3 * room <= 4096
    lengths = voter.word_lengths(TEXTS[0], words_of(TEXTS[0]))
    assert len(lengths) == len(words_of(TEXTS[0])) and sum(lengths) > len(lengths)


def test_prompts_make_another_voter(roomy):
    one, other = voter_of(roomy[1]), voter_of(roomy[1], chat=False)
    assert one.llm_key == other.llm_key and one.identity != other.identity
    assert answers(one, True)[0][1] != answers(other, True)[0][1]


@pytest.mark.parametrize("keep", [True, False])
def test_a_small_context(tiny_models, monkeypatch, keep):
    """With 256 positions and the longest possible lists, no token is beyond the last position."""
    monkeypatch.setattr(session, "MAX_LIST_TOKENS", 256)
    voter = voter_of(tiny_models["gpt2"])
    asked = LabelSet({"PER": "person", "LOC": "place"})
    words = words_of("Bo , Ada , Al , Zoe , Ida and Ole saw a cat , a dog and a cow in a bus .")
    text = "Bo , Ada , Al , Zoe , Ida and Ole saw a cat , a dog and a cow in a bus ."
    room, lengths = voter.capacity(asked), voter.word_lengths(text, words)
    words = [word for k, word in enumerate(words) if sum(lengths[: k + 1]) <= room]
    assert len(words) > 10
    task = Task(text, words, list(DEMOS))
    at_work = voter.session([task], asked, keep=keep)
    assert at_work.engine.llm.max_length == 256
    decode, limits = session.decode, []
    monkeypatch.setattr(
        session,
        "decode",
        lambda *args, **kw: limits.append(kw["max_tokens"]) or decode(*args, **kw),
    )
    at_work.extract()
    assert limits == [256 - len(at_work.task_sessions[0].ids) - 1] and limits[0] < 256
    # As if many voters had listed everything.
    union = sorted((a, b) for a, _ in words for _, b in words if a < b)
    task_session = at_work.task_sessions[0]
    listed = task_session._list_tokens(union)
    assert len(task_session.lists.spell([(0, 1)])) < len(listed) < 256
    (types,) = at_work.classify([union])
    claims = [(start, end, "PER") for start, end in union]
    (true,) = at_work.verify([union], [claims])
    assert len(types) == len(true) == len(union)
    assert all(sum(by.values()) == pytest.approx(1.0) for by in types)
    assert 200 < at_work.engine.slots.positions.max() < 256
    at_work.close()
