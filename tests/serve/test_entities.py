"""What clients are told about entities."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spacy_llmner.ember_probe.streaming.events import EntityEvent
from spacy_llmner.serve.entities import EntityView, final_entities, stop_limit

TEXT = "abcdefghijklmnop"


def event(start, end, status="found", label="PER", score=0.9, replaces=None):
    return EntityEvent(start, end, label, score, TEXT[start:end], status, replaces)


def seen(view, *events, until=len(TEXT)):
    """RETURNS (List): What a client is told: status, start, end, label, and what is replaced."""
    sent = view.push(events, until)
    return [(e["status"], e["start"], e["end"], e["label"], e["replaces"]) for e in sent]


def test_offsets_begin_with_the_answer():
    view = EntityView(4, None, 0.0)
    assert seen(view, event(0, 3)) == []
    assert seen(view, event(6, 8)) == [("found", 2, 4, "PER", None)]
    # Of an entity that begins in the prompt, only the part in the answer counts.
    sent = view.push([event(2, 5, "final")], len(TEXT))
    assert [(e["start"], e["end"], e["text"]) for e in sent] == [(0, 1, "e")]
    sent = view.push([EntityEvent(0, 8, "PER", 0.9, "Ada  Lee", "final")], len(TEXT))
    assert [(e["start"], e["end"], e["text"]) for e in sent] == [(1, 4, "Lee")]


def test_events_wait_for_the_text():
    view = EntityView(0, None, 0.0)
    assert seen(view, event(0, 5), event(1, 3), until=4) == []
    assert seen(view, until=5) == [("found", 0, 5, "PER", None), ("found", 1, 3, "PER", None)]


def test_entities_end_with_the_text():
    view = EntityView(0, None, 0.0)
    assert seen(view, event(2, 6), event(7, 9), until=4) == []
    assert [(e["start"], e["end"], e["text"]) for e in view.close()] == [(2, 4, "cd")]


def test_revisions_of_what_the_client_has_not_seen():
    view = EntityView(0, ["PER"], 0.5)
    assert seen(view, event(0, 2, label="LOC")) == []
    revised = event(0, 3, "revised", replaces=(0, 2, "LOC"))
    assert seen(view, revised) == [("found", 0, 3, "PER", None)]
    again = event(0, 4, "revised", replaces=(0, 3, "PER"))
    assert seen(view, again) == [("revised", 0, 4, "PER", [0, 3, "PER"])]
    hidden = event(0, 4, "final", label="LOC", replaces=(0, 4, "PER"))
    assert seen(view, hidden) == [("dropped", 0, 4, "PER", None)]
    assert seen(view, event(0, 4, "dropped", label="LOC")) == []


def test_scores_that_fall():
    view = EntityView(0, None, 0.5)
    assert seen(view, event(0, 2)) == [("found", 0, 2, "PER", None)]
    assert seen(view, event(0, 2, "final", score=0.4)) == [("dropped", 0, 2, "PER", None)]


def test_dropped():
    view = EntityView(0, None, 0.0)
    sent = view.push([event(0, 2), event(4, 6), event(0, 2, "dropped"), event(4, 6, "final")], 16)
    assert [e["status"] for e in sent] == ["found", "found", "dropped", "final"]
    assert [(e["start"], e["status"]) for e in final_entities(sent)] == [(4, "final")]


@pytest.mark.parametrize(
    "text, ended, limit",
    [
        ("one two", False, 7),
        ("one END", False, 4),
        ("one EN", False, 4),
        ("one EN", True, 6),
        ("one END two STOP", True, 4),
        ("one ST", False, 4),
        ("", False, 0),
    ],
)
def test_stop_limit(text, ended, limit):
    assert stop_limit(text, ["STOP", "END"], 0, ended) == limit


@given(
    text=st.text("ab", max_size=20),
    stop=st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
    cuts=st.lists(st.integers(0, 20)),
)
def test_nothing_of_a_stop_string_is_sent(text, stop, cuts):
    limit, so_far = 0, ""
    for end in sorted({min(cut, len(text)) for cut in cuts}):
        so_far = text[:end]
        before, limit = limit, stop_limit(so_far, stop, limit, ended=False)
        assert before <= limit
        if any(s in so_far for s in stop):
            break  # the LLM stops here
    whole = stop_limit(so_far, stop, limit, ended=True)
    assert limit <= whole and not any(s in so_far[:whole] for s in stop)
    assert whole == len(so_far) or so_far.startswith(tuple(stop), whole)
