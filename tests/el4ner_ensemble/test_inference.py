"""Voters that take turns or fail, threads, and long texts."""

import copy
import logging
import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from spacy.tokens import Doc
from spacy.util import raise_error

from spacy_llmner.errors import LLMNERError
from spacy_llmner.llm import loading
from spacy_llmner.llm import registry as pool
from tests.el4ner_ensemble.helpers import MockVoter, initialized, make_mock_nlp, make_nlp
from tests.helpers import TEXTS, assert_same, assert_valid, entities, make_examples

UNSEEN = "Yesterday Mira Stone left Port Ellam ; nobody saw Oskar Blum. Then tea in Varnholm."
MANY = [*TEXTS[:4], UNSEEN, "", " ", "Tea"]


@pytest.fixture(scope="module")
def turns(roomy):
    """The same ensemble with one LLM in memory."""
    return initialized(make_nlp({"a": roomy[0], "b": roomy[1]}, resident=1))


def test_taking_turns_changes_nothing(two, turns):
    expected = [two(text) for text in MANY]
    pool.clear()
    for one, other in zip(expected, turns.pipe(MANY)):
        assert_same(one, other)
        assert len(pool.loaded()) == 1
    # Texts and demonstrations are read again for each stage.
    both = [nlp.get_pipe("el4ner_ensemble") for nlp in (two, turns)]
    assert both[0].call_counts.verification and both[1].call_counts.verification


class InMemory(MockVoter):
    """A slow voter that records which LLMs are in memory when it is asked.

    there (Set[str]): The LLMs in memory, shared by all voters.
    """

    def __init__(self, there, llm_key):
        super().__init__({"Oskar Blum": {"PER": 0.9}}, llm_key=llm_key)
        self.there = there
        self.most = 0

    def session(self, tasks, asked, *, keep):
        self.there.add(self.llm_key)
        self.most = max(self.most, len(self.there))
        time.sleep(0.001)
        return super().session(tasks, asked, keep=keep)

    def unload(self):
        self.there.discard(self.llm_key)


def copies(pipe):
    return {
        "itself": pipe,
        "deep copy": copy.deepcopy(pipe),
        "pickle": pickle.loads(pickle.dumps(pipe)),
    }


@pytest.mark.parametrize("which", ["itself", "deep copy", "pickle"])
def test_taking_turns_in_threads(which):
    """There are never too many LLMs in memory, even if several threads use the ensemble."""
    there = set()
    nlp, pipe = make_mock_nlp({name: InMemory(there, name) for name in "abc"}, resident=1)
    pipe = copies(pipe)[which]
    there = pipe.voters["a"].there

    def use(k):
        if k == 3:
            pipe.calibrate(make_examples(nlp))
        elif k == 5:
            pipe.initialize(lambda: make_examples(nlp))
        return entities(pipe(nlp.make_doc(TEXTS[k % 2])))

    alone = [use(0), use(1)]
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(use, range(8))) == alone * 4
    assert len(there) == 1
    assert [voter.most for voter in pipe.voters.values()] == [1, 1, 1]


def test_threads_work_side_by_side_if_all_llms_fit():
    class Meeting(MockVoter):
        """Waits until another thread asks too."""

        barrier = threading.Barrier(2)

        def session(self, tasks, asked, *, keep):
            self.barrier.wait(timeout=30)
            return super().session(tasks, asked, keep=keep)

    nlp, pipe = make_mock_nlp({"a": Meeting()}, initialize=False, labels=["PER"], k=0)
    with ThreadPoolExecutor(2) as threads:
        docs = list(threads.map(lambda text: pipe(nlp.make_doc(text)), TEXTS[:2]))
    assert not any(doc._.el4ner_failed for doc in docs)


def test_long_text(two):
    """Windows of sentences; each has its demonstrations."""
    text = "\n".join(TEXTS * 4)
    doc = two(text)
    assert_valid(doc, text)
    pipe = two.get_pipe("el4ner_ensemble")
    tasks = pipe._read(two.make_doc(text)).tasks
    assert len(tasks) > 1
    words = [word for task in tasks for word in task.words]
    assert words == [(t.idx, t.idx + len(t)) for t in doc if not t.is_space]
    assert all(t.window_text.endswith((".", "!")) for t in tasks)


def test_a_text_longer_than_the_smallest_context(roomy, tiny_models):
    """With 256 positions, windows are as short as necessary, and demonstrations are left out."""
    nlp = initialized(make_nlp({"a": roomy[0], "b": tiny_models["gpt2"]}))
    text = " ".join(TEXTS)
    assert_valid(nlp(text), text)
    tasks = nlp.get_pipe("el4ner_ensemble")._read(nlp.make_doc(text)).tasks
    assert len(tasks) > 2


@pytest.fixture
def failing():
    """Both voters fail on texts about tea."""
    bad = {text for text in TEXTS if "ea" in text}
    voters = {
        name: MockVoter({"Mira Stone": {"PER": 0.9}}, fails={"extraction": bad}) for name in "ab"
    }
    return (*make_mock_nlp(voters, initialize=False, labels=["PER"], k=0), bad)


def test_one_bad_document(failing, caplog):
    nlp, pipe, bad = failing
    errors = []
    pipe.set_error_handler(lambda name, proc, docs, e: errors.append((docs[0].text, str(e))))
    docs = list(pipe.pipe(map(nlp.make_doc, TEXTS), batch_size=4))
    assert [doc.text for doc in docs] == [text for text in TEXTS if text not in bad]
    assert {text for text, _ in errors} == bad
    assert all("All voters of 'el4ner_ensemble' failed on a document" in e for _, e in errors)
    assert any(doc.ents for doc in docs)
    pipe.set_error_handler(raise_error)
    with pytest.raises(ValueError, match="All voters of 'el4ner_ensemble' failed"):
        pipe(nlp.make_doc("Oskar Blum likes tea."))


class NoSession(MockVoter):
    """A voter that can't open a session."""

    def session(self, tasks, asked, *, keep):
        raise RuntimeError("no session")


def test_a_voter_that_never_works():
    voters = {"a": NoSession(), "b": MockVoter({"Mira Stone": {"PER": 0.9}})}
    nlp, pipe = make_mock_nlp(voters, provenance=True)
    doc = pipe(nlp.make_doc(UNSEEN))
    (ent,) = doc.ents
    assert ent.text == "Mira Stone" and ent._.el4ner["proposed"] == ["b"]
    assert ent._.el4ner["failed"] == {"a": "pre_extraction: RuntimeError: no session"}


def test_the_only_voter_never_works():
    with pytest.raises(
        LLMNERError, match="All voters of 'el4ner_ensemble' failed .*RuntimeError: no session"
    ):
        make_mock_nlp({"a": NoSession()})
    nlp, pipe = make_mock_nlp({"a": NoSession()}, pre_extract="gold")
    with pytest.raises(
        LLMNERError, match="All voters of 'el4ner_ensemble' failed .*pre_extraction: .*no session"
    ):
        pipe(nlp.make_doc(UNSEEN))


def test_empty_texts_ask_nobody():
    voters = {"a": MockVoter(), "b": NoSession()}
    nlp, pipe = make_mock_nlp(voters, pre_extract="gold")
    docs = list(pipe.pipe([nlp.make_doc(text) for text in ("", " ", "\n")]))
    assert len(docs) == 3 and not voters["a"].kept


class NoRoom(MockVoter):
    """A voter that fails before its first answer, like an LLM that doesn't fit into memory."""

    def __init__(self, method, *args):
        super().__init__(*args)
        self.method = method

    def _fail(self, method):
        if method == self.method:
            raise MemoryError("no room")

    def capacity(self, asked):
        self._fail("capacity")
        return super().capacity(asked)

    def word_lengths(self, text, words):
        self._fail("word_lengths")
        return super().word_lengths(text, words)[self.method == "few lengths" :]

    def count_tokens(self, task, asked):
        self._fail("count_tokens")
        return super().count_tokens(task, asked)


@pytest.mark.parametrize("method", ["capacity", "word_lengths", "few lengths", "count_tokens"])
def test_a_voter_that_fails_before_it_is_asked(method):
    mira = {"Mira Stone": {"PER": 0.9}}
    voters = {"a": NoRoom(method, mira), "b": MockVoter(mira)}
    nlp, pipe = make_mock_nlp(voters, provenance=True)
    for doc in pipe.pipe(map(nlp.make_doc, [UNSEEN, "", "Mira Stone naps."])):
        assert [ent.text for ent in doc.ents] == ["Mira Stone"] * bool(doc.text)
        for ent in doc.ents:
            assert ent._.el4ner["failed"]["a"].startswith("reading: ")
            assert set(ent._.el4ner["votes"]) == {"b"}
    nlp, pipe = make_mock_nlp({"a": NoRoom(method, mira)}, labels=["PER"], k=0)
    with pytest.raises(
        LLMNERError, match="All voters of 'el4ner_ensemble' failed on a document .a: reading: "
    ):
        pipe(nlp.make_doc(UNSEEN))


@pytest.mark.parametrize("error", [MemoryError(), OSError("Cannot allocate memory (os error 12)")])
def test_an_llm_that_does_not_fit_into_memory(two, roomy, error, monkeypatch):
    expected = two(UNSEEN)
    pool.clear()
    load = loading.AutoModelForCausalLM.from_pretrained

    def no_room(path, **settings):
        if path == roomy[1]:
            raise error
        return load(path, **settings)

    monkeypatch.setattr(loading.AutoModelForCausalLM, "from_pretrained", no_room)
    monkeypatch.setitem(two.get_pipe("el4ner_ensemble").cfg, "provenance", True)
    for voter in two.get_pipe("el4ner_ensemble").voters.values():
        monkeypatch.setattr(voter, "_limits", None)
        monkeypatch.setattr(voter, "_prompt_encoders", {})
    doc = two(UNSEEN)
    assert doc.spans["llmner"]
    for span in doc.spans["llmner"]:
        assert set(span._.el4ner["votes"]) == {"a"}
        assert "no room for the LLM" in span._.el4ner["failed"]["b"]
    monkeypatch.undo()
    assert_same(expected, two(UNSEEN))


def test_labelled_texts_on_which_all_fail(caplog):
    """They are dropped. If this applies to all texts, there is an error."""
    fails = {"extraction": {TEXTS[1]}}
    voters = {name: MockVoter({"tea": {"LOC": 1.0}}, fails=fails) for name in "ab"}
    _, pipe = make_mock_nlp(voters)
    assert TEXTS[1] not in [example.text for example in pipe.pool.index.examples]
    assert len(pipe.pool) == len(pipe.pool.spans) == len(TEXTS) - 1
    assert "drops 1 of 6 labelled texts: all voters failed on them" in caplog.text
    fails["extraction"] = set(TEXTS)
    with pytest.raises(LLMNERError, match="All voters of 'el4ner_ensemble' failed"):
        make_mock_nlp({name: MockVoter(fails=fails) for name in "ab"})


def test_work_in_vain_is_counted(failing):
    nlp, pipe, bad = failing
    pipe.set_error_handler(lambda *args: None)
    docs = list(pipe.pipe(map(nlp.make_doc, TEXTS), batch_size=len(TEXTS)))
    assert 0 < len(docs) < len(TEXTS)
    # The first try of the whole batch, in halves down to the bad ones, and then the batch in halves.
    once = sum(2 * (text not in bad) for text in TEXTS)
    assert pipe.call_counts.extraction > once and pipe.call_counts.tokens > 0


def test_work_is_logged(two, caplog):
    with caplog.at_level(logging.DEBUG, "spacy_llmner"):
        two(UNSEEN)
    assert "el4ner_ensemble: " in caplog.text and "LLM calls for 1 texts" in caplog.text
    assert f"LLM calls for the text {UNSEEN[:40]!r}" in caplog.text
    assert "tokens" in caplog.text


def test_a_failed_voter_is_flagged_on_the_doc():
    """This applies even if nothing was found."""
    bad = "Nobody here."
    voters = {"a": MockVoter({"Mira": {"PER": 1.0}}, fails={"extraction": {bad}}), "b": MockVoter()}
    nlp, pipe = make_mock_nlp(voters)
    docs = [nlp.make_doc(bad), nlp.make_doc("Mira sings."), nlp.make_doc("")]
    for doc in pipe.pipe(docs):
        assert doc.spans["llmner"] or doc is not docs[1]
    reason = "pre_extraction: MemoryError: no room"
    assert [doc._.el4ner_failed for doc in docs] == [{"a": reason}, None, None]
    assert {key[1] for key in docs[1].user_data} == {"llmner_found"}
    again = Doc(nlp.vocab).from_bytes(docs[0].to_bytes())
    assert again._.el4ner_failed == {"a": reason}
    voters["a"].fails = {}
    assert pipe(docs[0])._.el4ner_failed is None
