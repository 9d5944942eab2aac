"""Strings and their offsets are read from any answer. Malformed answers raise no error (3d.13)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spacy_llmner.pipeline.spans import Mention
from spacy_llmner.ra_it_ner.postprocess import ListedString, find_strings, mentions_of, parse_list


@pytest.mark.parametrize(
    ("answer", "strings"),
    [
        ('["Ada", "Bo"]', ["Ada", "Bo"]),
        ("[]", []),
        ("", []),
        ("There is nobody.", []),
        ('The answer is ["Ada"] .', ["Ada"]),
        ('["Ada [PhD]", "Bo]"]', ["Ada [PhD]", "Bo]"]),
        ('[["Ada", ["Bo"]], "Cy"]', ["Ada", "Bo", "Cy"]),
        ('[{"Ada": "person"}, {"Bo": "person"}]', ["Ada", "Bo"]),
        ("['Ada', 'Bo']", ["Ada", "Bo"]),
        ('["Ada", "Bo', ["Ada"]),
        ('["Ada" "Bo",]', ["Ada", "Bo"]),
        ('[1, null, true, "Ada", ""," "]', ["Ada"]),
        ('["Ada", "Ada"]', ["Ada", "Ada"]),
        (r'["a \"b\" c", "\u5317\u4eac"]', ['a "b" c', "北京"]),
        ('[see] ["Ada"]', ["Ada"]),
        ("[" * 5000, []),
    ],
)
def test_parse_list(answer, strings):
    assert parse_list(answer) == strings


@given(st.text(alphabet="[]{}\",:\\'ab \n", max_size=40))
def test_parse_list_never_raises(answer):
    assert all(isinstance(s, str) and s.strip() for s in parse_list(answer))


def test_find_strings():
    text = "Bo met Bo Lund in Bonn . Bo"
    bounds = [(0, 2), (3, 6), (7, 9), (10, 14), (15, 17), (18, 22), (23, 24), (25, 27)]
    found = find_strings(text, ["Bo", "Bo  Lund", "Bon", "Ada", "(", " "], bounds)
    assert found == [[(0, 2), (7, 9), (25, 27)], [(7, 14)], [], [], [], []]


def listed(*places, p=0.0):
    return ListedString(list(places), p)


def test_ordered_answers_have_one_place_each():
    answers = [listed((0, 2), (7, 9)), listed((18, 22)), listed((0, 2), (25, 27), p=-1.0)]
    out, lost = mentions_of("X", answers, ordered=True)
    assert lost == 0
    assert [(m.start, m.end) for m in out] == [(0, 2), (18, 22), (25, 27)]
    assert out[0] == Mention(0, 2, "X", 1.0) and out[2].score == pytest.approx(0.3679, abs=1e-4)
    # Strings without a free occurrence are dropped.
    out, lost = mentions_of("X", [listed((0, 2)), listed((0, 2))], ordered=True)
    assert (len(out), lost) == (1, 1)


def test_other_answers_stand_for_all_occurrences():
    answers = [listed((0, 2), (7, 9)), listed((0, 2), p=-1.0), listed()]
    out, lost = mentions_of("X", answers, ordered=False)
    assert lost == 1 and out == [Mention(0, 2, "X", 1.0), Mention(7, 9, "X", 1.0)]
