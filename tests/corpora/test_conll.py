import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spacy_llmner.corpora.conll import read_tagged, spans_of
from tests.corpora.helpers import ents, fails_at, run, write


@pytest.mark.parametrize(
    "tags,spans",
    [
        ("O O", []),
        ("B-A I-A O B-A", [(0, 2, "A"), (3, 4, "A")]),
        ("I-A I-A B-A I-A", [(0, 2, "A"), (2, 4, "A")]),  # IOB1
        ("I-A I-B", [(0, 1, "A"), (1, 2, "B")]),
        ("B-A I-B I-B", [(0, 1, "A"), (1, 3, "B")]),
        ("S-A B-A I-A E-A S-B", [(0, 1, "A"), (1, 4, "A"), (4, 5, "B")]),  # BIOES
        ("U-A B-A L-A U-A", [(0, 1, "A"), (1, 3, "A"), (3, 4, "A")]),  # BILUO
        ("B-A E-A I-A", [(0, 2, "A"), (2, 3, "A")]),
        ("S-A I-A", [(0, 1, "A"), (1, 2, "A")]),
        ("E-A O L-A", [(0, 1, "A"), (2, 3, "A")]),
        ("B-x-y I-x-y", [(0, 2, "x-y")]),
    ],
)
def test_spans_of(tags, spans):
    assert spans_of(tags.split()) == spans


@pytest.mark.parametrize("tag", ["X-PER", "B", "B-", "o", "", "O-PER", "BPER", "b-PER"])
def test_unknown_tag(tmp_path, tag):
    with pytest.raises(ValueError, match="unknown tag"):
        spans_of(["O", tag])
    fails_at(write(tmp_path / "a.tsv", "Ada\tB-PER", f"Bo\t{tag}"), 2, f"unknown tag '{tag}'")


@given(st.lists(st.sampled_from(["O", *[f"{p}-{x}" for p in "BIESLU" for x in "AB"]])))
@settings(max_examples=200, deadline=None)
def test_every_tagged_token_is_in_one_span(tags):
    spans = spans_of(tags)
    covered = [(i, label) for start, end, label in spans for i in range(start, end)]
    assert covered == [(i, tag[2:]) for i, tag in enumerate(tags) if tag != "O"]


COLUMNS = """-DOCSTART- -X- O O

Ada NNP B-NP B-PER
sings VBZ B-VP O
  \t
In IN B-PP O
Bonn NNP B-NP I-LOC

-DOCSTART- -X- O O
Rain NN B-NP O
"""


@pytest.mark.parametrize("separator", [" ", "\t", "  "])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_conll(tmp_path, separator, end):
    text = re.sub(r"(?<=\w) (?=[\w-])|(?<=-) (?=-)", separator, COLUMNS)
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", end).encode())
    result, docs = run(path)
    assert [doc.text for doc in docs] == ["Ada sings", "In Bonn", "Rain"]
    assert [ents(doc) for doc in docs] == [[("Ada", "PER")], [("Bonn", "LOC")], []]
    assert all(token.ent_iob_ for doc in docs for token in doc)
    assert "3 docs, 1 of them without entities" in result.stdout
    assert list(read_tagged(path)) == [
        (1, [("Ada", "B-PER"), ("sings", "O")]),
        (1, [("In", "O"), ("Bonn", "I-LOC")]),
        (2, [("Rain", "O")]),
    ]


def test_sentences_are_joined_but_not_across_documents(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text(COLUMNS)
    result, docs = run(path, "--docs-of", "10")
    assert [doc.text for doc in docs] == ["Ada sings In Bonn", "Rain"]
    assert [sent.text for sent in docs[0].sents] == ["Ada sings", "In Bonn"]
    assert ents(docs[0]) == [("Ada", "PER"), ("Bonn", "LOC")]
    assert "2 docs" in result.stdout and "3 sentences" in result.stdout


def test_chinese_columns_have_no_spaces(tmp_path):
    path = write(tmp_path / "a.txt", "波 B-LOC", "恩 I-LOC", "下 O", "雨 O", "", "好 O")
    _, docs = run(path, "--docs-of", "2", lang="zh")
    assert [doc.text for doc in docs] == ["波恩下雨好"]
    assert ents(docs[0]) == [("波恩", "LOC")]


@pytest.mark.parametrize(
    "line,reason",
    [
        ("Bo", "wrong number of columns: 1, expected 3"),
        ("Bo NNP X B-PER", "wrong number of columns: 4, expected 3"),
        (" NNP O", "there is no token in the first column"),
        ("Bo NNP B_PER", "unknown tag 'B_PER'"),
    ],
)
def test_bad_column_line(tmp_path, line, reason):
    fails_at(write(tmp_path / "a.txt", "Ada NNP O", "", line), 3, reason)


def test_one_column(tmp_path):
    fails_at(write(tmp_path / "a.txt", "Ada"), 1, "wrong number of columns: 1, expected at least 2")


def test_layers_of_nested_columns(tmp_path):
    rows = ["The\tO\tO", "Bank\tB-ORG\tO", "of\tI-ORG\tO", "Bonn\tI-ORG\tB-LOC", "fell\tO\tO"]
    path = write(tmp_path / "a.tsv", *rows)
    result, (doc,) = run(path, "--nested")
    assert result.exit_code == 0
    found = [(span.text, span.label_) for span in doc.spans["sc"]]
    assert found == [("Bank of Bonn", "ORG"), ("Bonn", "LOC")]
    assert ents(doc) == [("Bank of Bonn", "ORG")]


def test_without_nested_the_last_column_is_the_tag(tmp_path):
    _, (doc,) = run(write(tmp_path / "a.tsv", "Bonn\tB-ORG\tB-LOC"))
    assert ents(doc) == [("Bonn", "LOC")]


def test_nested_columns_are_all_tags(tmp_path):
    path = write(tmp_path / "a.tsv", "The\tO\tO", "Bonn\tNNP\tB-LOC")
    fails_at(path, 2, "unknown tag 'NNP'", "--nested")


def test_a_span_in_two_layers_counts_once(tmp_path):
    _, (doc,) = run(write(tmp_path / "a.tsv", "Bonn\tB-LOC\tB-LOC"), "--nested")
    assert len(doc.spans["sc"]) == 1
