"""Offsets, confidence and deduplication."""

import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from spacy_llmner.padellm_ner.decoding import DecodedMention
from spacy_llmner.padellm_ner.postprocess import confidence, deduplicate
from spacy_llmner.pipeline.spans import Mention, assign_occurrences, filter_overlapping


def written(*places, log_probs=(-0.1,), raw=(-0.5,)):
    return DecodedMention("X", 1, list(places), list(log_probs), list(raw))


def strings(text, *found):
    """RETURNS (List[DecodedMention]): Strings of a text, with all their places."""
    out = []
    for string in found:
        starts = [k for k in range(len(text)) if text.startswith(string, k)]
        out.append(written(*((k, k + len(string)) for k in starts)))
    return out


def test_repeated_mentions_lie_on_one_place_each():
    text = "Bonn, Bern, Bonn, Bonn"
    assert assign_occurrences(strings(text, "Bonn", "Bonn", "Bonn")) == [(0, 4), (12, 16), (18, 22)]
    # A later mention is not located before an earlier one.
    assert assign_occurrences(strings(text, "Bonn", "Bern", "Bonn")) == [(0, 4), (6, 10), (12, 16)]
    assert assign_occurrences(strings(text, "Bern", "Bonn")) == [(6, 10), (12, 16)]


def test_what_has_no_place_is_dropped():
    text = "Bonn, Bern"
    assert assign_occurrences(strings(text, "Bonn", "Bonn", "Bern")) == [(0, 4), (-1, -1), (6, 10)]
    assert assign_occurrences(strings(text, "Bern", "Bonn")) == [(6, 10), (-1, -1)]
    assert assign_occurrences([written()]) == [(-1, -1)]
    assert assign_occurrences([]) == []


def test_nested_mentions_have_places():
    text = "Port Ellam Club in Port Ellam"
    found = strings(text, "Port Ellam Club", "Port Ellam", "Port Ellam")
    assert assign_occurrences(found) == [(0, 15), (0, 10), (19, 29)]


def test_places_in_any_order():
    assert assign_occurrences([written((9, 10), (2, 3)), written((9, 10), (2, 3))]) == [
        (2, 3),
        (9, 10),
    ]


TEXTS = st.lists(st.sampled_from("abc"), min_size=1, max_size=12)


@given(TEXTS, st.data())
def test_gold_goes_back_to_its_place(words, data):
    """Mentions in the order of the text get their original offsets, unless one of their strings also occurs
    between them without being a mention."""
    text = " ".join(words)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(words)), max_size=8)))
    gold = [(2 * a, 2 * b - 1) for a, b in zip(cuts[::2], cuts[1::2])]
    found = strings(text, *(text[a:b] for a, b in gold))
    for k, ((start, _), mention) in enumerate(zip(gold, found)):
        reached = gold[k - 1][0] if k else 0
        earlier = [p for p in mention.occurrences if reached <= p[0] < start]
        assume(all(p in gold[:k] for p in earlier))
    assert assign_occurrences(found) == gold


@given(TEXTS, st.lists(st.text("abc ", min_size=1, max_size=3), max_size=6))
def test_any_strings(words, found):
    """Occurrences are in order and used once, and have the decoded string."""
    text = " ".join(words)
    places = assign_occurrences(strings(text, *found))
    there = [p for p in places if p[0] >= 0]
    assert len(set(there)) == len(there) and len(places) == len(found)
    assert [p[0] for p in there] == sorted(p[0] for p in there)
    for string, (start, end) in zip(found, places):
        assert start < 0 or text[start:end] == string


def test_confidence_by_hand():
    """The product of the tokens' probabilities."""
    mention = written(log_probs=[math.log(0.5), math.log(0.8)], raw=[math.log(0.25), math.log(0.4)])
    assert confidence(mention, "product", raw=False) == pytest.approx(0.4)
    assert confidence(mention, "mean", raw=False) == pytest.approx(math.sqrt(0.4))
    assert confidence(mention, "product", raw=True) == pytest.approx(0.1)
    assert confidence(mention, "mean", raw=True) == pytest.approx(math.sqrt(0.1))
    # Nothing was left to choose.
    sure = written(log_probs=[0.0, 1e-9])
    assert confidence(sure, "product", raw=False) == 1.0
    assert confidence(written(log_probs=[]), "mean", raw=False) == 1.0


TEXT = "Bonn met Bonn in Bonn"
FIRST, SECOND, THIRD = (0, 4), (9, 13), (17, 21)
CLAIMS = [
    Mention(*FIRST, "LOC", 0.6),
    Mention(*FIRST, "PER", 0.9),
    Mention(*SECOND, "LOC", 0.95),
    Mention(*THIRD, "ORG", 0.2),
    Mention(14, 16, "ORG", 0.1),
]


def test_deduplicate_strings():
    """All occurrences of a string get the label of its most confident mention."""
    assert deduplicate(TEXT, CLAIMS, "string") == [CLAIMS[0], CLAIMS[2], CLAIMS[4]]


def test_deduplicate_spans():
    assert deduplicate(TEXT, CLAIMS, "span") == CLAIMS[1:]


def test_deduplicate_nothing():
    assert deduplicate(TEXT, CLAIMS, "none") == CLAIMS


def test_ties_go_to_the_first():
    tie = [Mention(*FIRST, "PER", 0.5), Mention(*FIRST, "LOC", 0.5)]
    for policy in ("string", "span"):
        assert deduplicate(TEXT, tie, policy) == tie[:1]
        assert deduplicate(TEXT, tie[::-1], policy) == tie[1:]


def test_strings_are_compared_exactly():
    mentions = [Mention(0, 4, "LOC", 0.5), Mention(5, 9, "PER", 0.9), Mention(10, 15, "ORG", 0.9)]
    assert deduplicate("Bonn bonn Bonns", mentions, "string") == mentions


def test_flat():
    """The best first, then what does not overlap it, in the order of the text."""
    outer, inner = Mention(0, 15, "ORG", 0.7), Mention(0, 4, "LOC", 0.8)
    beside, far = Mention(5, 15, "LOC", 0.1), Mention(20, 22, "PER", 0.05)
    assert filter_overlapping([outer, inner, beside, far]) == [inner, beside, far]
    assert filter_overlapping([outer, far]) == [outer, far]
    assert filter_overlapping([]) == []
    # If scores are equal, the longest is kept, and of equally long ones the first.
    tie = Mention(0, 4, "LOC", 0.7)
    assert filter_overlapping([tie, outer]) == [outer]
    assert filter_overlapping(
        [Mention(3, 6, "B", 0.7), Mention(0, 3, "A", 0.7), Mention(1, 4, "A", 0.7)]
    ) == [
        Mention(0, 3, "A", 0.7),
        Mention(3, 6, "B", 0.7),
    ]


SPANS = st.tuples(st.integers(0, 20), st.integers(1, 6), st.sampled_from("AB"), st.floats(0, 1))


@given(st.lists(SPANS, unique_by=lambda s: s[:3]))
def test_flat_never_overlaps(spans):
    mentions = [Mention(start, start + n, label, score) for start, n, label, score in spans]
    chosen = filter_overlapping(mentions)
    assert all(a.end <= b.start for a, b in zip(chosen, chosen[1:]))
    assert filter_overlapping(mentions[::-1]) == chosen
    for m in mentions:  # every dropped mention overlaps a better one
        rivals = [o for o in chosen if m.start < o.end and o.start < m.end]
        assert m in chosen or any(o.score >= m.score for o in rivals)
