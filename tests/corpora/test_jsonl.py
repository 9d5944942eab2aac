import re

import pytest
import spacy
from spacy.scorer import get_ner_prf
from spacy.tokens import Span
from spacy.training import Corpus, Example

from tests.corpora.helpers import ADA, ents, fails, fails_at, run, write


def test_jsonl(tmp_path):
    line = {
        "text": "  Ada Hale joined Orbit  Labs in Bonn.",
        "spans": [
            {"start": 2, "end": 10, "label": "PERSON"},
            {"start": 18, "end": 29, "label": "ORG"},
            {"start": 33, "end": 37, "label": "LOC"},
        ],
    }
    path = write(tmp_path / "a.jsonl", line, "", {"text": "Rain again.", "spans": []})
    result, (doc, other) = run(path)
    assert doc.text == line["text"]
    assert ents(doc) == [("Ada Hale", "PERSON"), ("Orbit  Labs", "ORG"), ("Bonn", "LOC")]
    assert other.text == "Rain again."
    assert "2 docs, 1 of them without entities" in result.stdout
    assert f"2 sentences, {len(doc) + len(other)} tokens" in result.stdout
    assert re.search(r"3 entities\n +LOC: 1\n +ORG: 1\n +PERSON: 1\n", result.stdout)
    assert "split" not in result.stdout


def test_entity_free_documents_count_for_the_scorer(tmp_path):
    path = write(tmp_path / "a.jsonl", {"text": "Rain again.", "spans": []})
    run(path)
    nlp = spacy.blank("en")
    (example,) = Corpus(tmp_path / "out.spacy")(nlp)
    assert all(token.ent_iob_ == "O" for token in example.reference)
    wrong = nlp("Rain again.")
    wrong.set_ents([Span(wrong, 0, 1, label="PERSON")])
    assert get_ner_prf([Example(wrong, example.reference)])["ents_p"] == 0.0


@pytest.mark.parametrize(
    "text,mention,words",
    [
        ("The teamorbit left.", "orbit", ["The", "team", "orbit", "left", "."]),
        ("#BonnDay2031 was fun", "Day", ["#", "Bonn", "Day", "2031", "was", "fun"]),
    ],
)
def test_token_is_split_at_the_border_of_a_mention(tmp_path, text, mention, words):
    start = text.index(mention)
    span = {"start": start, "end": start + len(mention), "label": "ORG"}
    result, (doc,) = run(write(tmp_path / "a.jsonl", {"text": text, "spans": [span]}))
    assert doc.text == text
    assert ents(doc) == [(mention, "ORG")]
    assert [token.text for token in doc] == words
    assert "1 tokens split" in result.stdout


def test_chinese(tmp_path):
    text = "林小舟去了 Bonn 大学。"
    spans = [{"start": 0, "end": 3, "label": "PERSON"}, {"start": 6, "end": 13, "label": "ORG"}]
    path = write(tmp_path / "a.jsonl", {"text": text, "spans": spans})
    _, (doc,) = run(path, lang="zh")
    assert doc.text == text
    assert ents(doc) == [("林小舟", "PERSON"), ("Bonn 大学", "ORG")]


def test_several_lines_of_a_topic_in_one_doc(tmp_path):
    lines = [{**ADA, "topic": topic} for topic in ("a", "a", "a", "b", "a")]
    path = write(tmp_path / "a.jsonl", *lines)
    result, docs = run(path, "--docs-of", "2")
    assert [doc.text for doc in docs] == ["Ada met Bo. Ada met Bo.", *["Ada met Bo."] * 3]
    assert [sent.text for sent in docs[0].sents] == ["Ada met Bo."] * 2
    assert [(e.start_char, e.end_char) for e in docs[0].ents] == [(0, 3), (12, 15)]
    assert "4 docs" in result.stdout and "5 sentences" in result.stdout


def test_nested(tmp_path):
    text = "The University of Bonn Press"
    spans = [
        {"start": 4, "end": 28, "label": "ORG"},
        {"start": 4, "end": 22, "label": "ORG"},
        {"start": 18, "end": 22, "label": "LOC"},
    ]
    path = write(tmp_path / "a.jsonl", {"text": text, "spans": spans})
    _, (doc,) = run(path, "--nested", "--spans-key", "all")
    assert [(s.text, s.label_) for s in doc.spans["all"]] == [
        ("University of Bonn Press", "ORG"),
        ("University of Bonn", "ORG"),
        ("Bonn", "LOC"),
    ]
    assert ents(doc) == [("University of Bonn Press", "ORG")]
    fails_at(path, 1, "overlap (use --nested to allow it)")


def bad(**changes):
    return {**ADA, "spans": [{"start": 0, "end": 3, "label": "PERSON", **changes}]}


@pytest.mark.parametrize(
    "line,reason",
    [
        ('{"text": "Ada", "spans": [}', "not valid JSON"),
        ("[1, 2]", "not a JSON object"),
        ({"spans": []}, 'the key "text" is missing'),
        ({"text": "Ada"}, 'the key "spans" is missing'),
        ({"text": 3, "spans": []}, 'the key "text" is not a string'),
        ({**ADA, "answer": "yes"}, "the answer 'yes' is not"),
        ({"text": "Ada", "spans": {}}, 'the key "spans" is not a list'),
        ({"text": " ", "spans": []}, "the text is empty"),
        ('{"text": "a \\ud800 b", "spans": []}', "surrogate"),
        ({"text": "Ada", "spans": [{"start": 0, "end": 3}]}, 'lacks "start", "end" or "label"'),
        ({"text": "Ada", "spans": [[0, 3, "PERSON"]]}, 'lacks "start", "end" or "label"'),
        (bad(start=-1), "is outside the text"),
        (bad(end=99), "is outside the text"),
        (bad(end=0), "is empty"),
        (bad(start=3, end=1), "is empty"),
        (bad(start="0"), "whole numbers"),
        (bad(end=3.0), "whole numbers"),
        (bad(start=False), "whole numbers"),
        (bad(label=""), "label"),
        (bad(label=None), "label"),
    ],
)
def test_bad_jsonl_line(tmp_path, line, reason):
    path = write(tmp_path / "a.jsonl", ADA, "", line, ADA)
    fails_at(path, 3, reason, "--format", "jsonl")


def test_prodigy_answers(tmp_path):
    """Only accepted texts are gold."""
    rows = [
        {**ADA, "answer": "accept", "_view_id": "ner_manual", "_input_hash": 1},
        {**ADA, "answer": "reject", "_view_id": "ner_manual", "_input_hash": 2},
        {"text": "Bo met Ada.", "answer": "ignore", "_input_hash": 3},
        {"text": "Rain again.", "answer": "accept", "_input_hash": 4},
        {**ADA, "answer": "accept", "_view_id": "ner", "_input_hash": 5},
        {**ADA, "answer": "accept", "_view_id": "ner", "_is_binary": True, "_input_hash": 6},
        {**ADA, "answer": "accept", "_session_id": "of someone else", "_input_hash": 1},
    ]
    for row in rows:  # as Prodigy writes them
        row["tokens"] = [{"text": "Ada", "start": 0, "end": 3, "id": 0, "ws": True}]
    path = write(tmp_path / "a.jsonl", *rows)
    result, docs = run(path)
    assert [(doc.text, ents(doc)) for doc in docs] == [
        ("Ada met Bo.", [("Ada", "PERSON")]),
        ("Rain again.", []),
    ]
    assert all(token.ent_iob_ == "O" for token in docs[1])
    for line in (
        '1 texts left out: rejected ("answer": "reject")',
        '1 texts left out: ignored ("answer": "ignore")',
        "2 texts left out: the answer is only about one suggestion",
        "1 annotations left out: the text was annotated before",
    ):
        assert line in result.stdout
    fails(write(path, *rows[1:3]), "contains no texts that can be used: 1 texts left out: rejected")


def test_overlapping_spans_of_prodigy(tmp_path):
    spans = [{"start": 0, "end": 12, "label": "ORG"}, {"start": 8, "end": 12, "label": "LOC"}]
    row = {"text": "Bank of Bonn", "spans": spans, "answer": "accept", "_view_id": "spans_manual"}
    path = write(tmp_path / "a.jsonl", row)
    _, (doc,) = run(path, "--nested")
    assert [(s.text, s.label_) for s in doc.spans["sc"]] == [
        ("Bank of Bonn", "ORG"),
        ("Bonn", "LOC"),
    ]
    fails_at(path, 1, "overlap (use --nested to allow it)")


def test_white_space_and_duplicates(tmp_path):
    spans = [(0, 3), (0, 4), (3, 8), (7, 8), (3, 4), (12, 14)]
    spans = [{"start": start, "end": end, "label": "X"} for start, end in spans]
    path = write(tmp_path / "a.jsonl", {"text": "Ada met\u200b Bo.\n\n", "spans": spans})
    result, (doc,) = run(path)
    assert ents(doc) == [("Ada", "X"), ("met", "X")]
    assert "2 spans trimmed" in result.stdout
    assert "1 spans left out: they are annotated twice" in result.stdout
    assert "3 spans left out: they contain only white space" in result.stdout


def test_label_that_is_not_allowed(tmp_path):
    path = write(tmp_path / "a.jsonl", ADA, bad(label="PRESON"))
    fails_at(path, 2, "the label 'PRESON' is not one of LOC, PERSON", "--labels", "PERSON, LOC")
    path = write(tmp_path / "a.conll", "Ada B-PERSON", "", "Bo B-PRESON")
    fails_at(path, 3, "the label 'PRESON' is not one of LOC, PERSON", "--labels", "PERSON, LOC")
    assert run(path)[0].exit_code == 0
