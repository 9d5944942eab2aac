import hashlib
import importlib.util
import json
import re
import sys
from pathlib import Path

import pytest
import spacy
import srsly
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from spacy.scorer import get_ner_prf
from spacy.tokens import DocBin, Span
from spacy.training import Corpus, Example
from spacy.vocab import Vocab
from typer.testing import CliRunner

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "convert.py"
spec = importlib.util.spec_from_file_location("convert", SCRIPT)
assert spec is not None and spec.loader is not None
convert = importlib.util.module_from_spec(spec)
sys.modules["convert"] = convert
spec.loader.exec_module(convert)

app = typer.Typer()
app.command()(convert.main)
ADA = {"text": "Ada met Bo.", "spans": [{"start": 0, "end": 3, "label": "PERSON"}]}


def write(path, *lines):
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("".join(f"{text}\n" for text in texts), encoding="utf8")
    return path


def run(path, *args, lang="en"):
    """Run the command and return its result and the Docs that it wrote."""
    output = path.parent / "out.spacy"
    result = CliRunner().invoke(app, [str(path), str(output), "--lang", lang, *args])
    docs = []
    if result.exit_code == 0:
        docs = list(DocBin().from_disk(output).get_docs(Vocab()))
    return result, docs


def ents(doc):
    return [(ent.text, ent.label_) for ent in doc.ents]


def fails_at(path, line, reason, *args, lang="xx"):
    """The command exits with 1, says where and why, and leaves the output alone."""
    output = path.parent / "out.spacy"
    output.write_bytes(b"as before")
    result, _ = run(path, *args, lang=lang)
    assert result.exit_code == 1
    assert result.stdout == ""
    where = f"{path}:{line}: " if line else f"{path}: "
    assert result.stderr.startswith(where), result.stderr
    assert reason in result.stderr
    assert result.stderr.count("\n") == 1
    assert output.read_bytes() == b"as before"
    assert not [name for name in path.parent.iterdir() if name.name.startswith(".")]


# JSONL


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
    fails_at(path, 1, "overlap (allowed with --nested)")


def bad(**changes):
    return {**ADA, "spans": [{"start": 0, "end": 3, "label": "PERSON", **changes}]}


@pytest.mark.parametrize(
    "line,reason",
    [
        ('{"text": "Ada", "spans": [}', "no valid JSON"),
        ("[1, 2]", "no JSON object"),
        ({"spans": []}, 'the key "text" is missing'),
        ({"text": "Ada"}, 'the key "spans" is missing'),
        ({"text": 3, "spans": []}, 'the key "text" is no str'),
        ({"text": "Ada", "spans": {}}, 'the key "spans" is no list'),
        ({"text": " ", "spans": []}, "the text is empty"),
        ('{"text": "a \\ud800 b", "spans": []}', "surrogate"),
        ({"text": "Ada", "spans": [{"start": 0, "end": 3}]}, 'lacks "start", "end" or "label"'),
        ({"text": "Ada", "spans": [[0, 3, "PERSON"]]}, 'lacks "start", "end" or "label"'),
        (bad(start=-1), "outside of the text"),
        (bad(end=99), "outside of the text"),
        (bad(end=0), "is empty"),
        (bad(start=3, end=1), "is empty"),
        (bad(start="0"), "whole numbers"),
        (bad(end=3.0), "whole numbers"),
        (bad(start=False), "whole numbers"),
        (bad(end=4), "white space: 'Ada '"),
        (bad(start=3, end=7), "white space: ' met'"),
        (bad(label=""), "label"),
        (bad(label=None), "label"),
        ({"text": "Ada", "spans": bad()["spans"] * 2}, "listed twice"),
    ],
)
def test_bad_jsonl_line(tmp_path, line, reason):
    path = write(tmp_path / "a.jsonl", ADA, "", line, ADA)
    fails_at(path, 3, reason, "--format", "jsonl")


def test_label_that_is_not_allowed(tmp_path):
    path = write(tmp_path / "a.jsonl", ADA, bad(label="PRESON"))
    fails_at(path, 2, "the label 'PRESON' is not one of LOC, PERSON", "--labels", "PERSON, LOC")
    path = write(tmp_path / "a.conll", "Ada B-PERSON", "", "Bo B-PRESON")
    fails_at(path, 3, "the label 'PRESON' is not one of LOC, PERSON", "--labels", "PERSON, LOC")
    assert run(path)[0].exit_code == 0


# Columns


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
    assert convert.spans_of(tags.split()) == spans


@pytest.mark.parametrize("tag", ["X-PER", "B", "B-", "o", "", "O-PER", "BPER", "b-PER"])
def test_unknown_tag(tmp_path, tag):
    with pytest.raises(ValueError, match="unknown tag"):
        convert.spans_of(["O", tag])
    fails_at(write(tmp_path / "a.tsv", "Ada\tB-PER", f"Bo\t{tag}"), 2, f"unknown tag '{tag}'")


@given(st.lists(st.sampled_from(["O", *[f"{p}-{x}" for p in "BIESLU" for x in "AB"]])))
@settings(max_examples=200, deadline=None)
def test_every_tagged_token_is_in_one_span(tags):
    spans = convert.spans_of(tags)
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
    assert list(convert.read_conll(path)) == [
        [("Ada", "B-PER"), ("sings", "O")],
        [("In", "O"), ("Bonn", "I-LOC")],
        [("Rain", "O")],
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
        (" NNP O", "the first column holds no token"),
        ("Bo NNP B_PER", "unknown tag 'B_PER'"),
    ],
)
def test_bad_column_line(tmp_path, line, reason):
    fails_at(write(tmp_path / "a.txt", "Ada NNP O", "", line), 3, reason)


def test_one_column(tmp_path):
    fails_at(write(tmp_path / "a.txt", "Ada"), 1, "wrong number of columns: 1, expected at least 2")


# Files


def test_format_is_told_by_the_content(tmp_path):
    assert len(run(write(tmp_path / "a.txt", "", ADA))[1]) == 1
    assert run(write(tmp_path / "b.txt", "{ O", "} O"))[1][0].text == "{ }"
    fails_at(write(tmp_path / "c.txt", "Ada B-PER"), 1, "no valid JSON", "--format", "jsonl")


@pytest.mark.parametrize("content", [b"", b"\n \n"])
@pytest.mark.parametrize("format", ["auto", "jsonl", "conll"])
def test_empty_file(tmp_path, content, format):
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    fails_at(path, 1, "the file is empty", "--format", format)


@pytest.mark.parametrize("first", ["Ada B-PER", json.dumps(ADA)])
def test_broken_utf8(tmp_path, first):
    path = tmp_path / "a.txt"
    path.write_bytes(first.encode() + b"\n\nJos\xe9 B-PER\n")
    fails_at(path, 3, "not UTF-8 (byte 0xe9")


def test_missing_input_bad_output_and_language(tmp_path):
    fails_at(tmp_path / "none.jsonl", 0, "there is no such file")
    path = write(tmp_path / "a.jsonl", ADA)
    fails_at(path, 0, "no tokenizer for the language 'xx-none'", lang="xx-none")
    output = tmp_path / "out.bin"
    result = CliRunner().invoke(app, [str(path), str(output), "--lang", "en"])
    assert result.exit_code == 1 and "must end in .spacy" in result.stderr
    assert not output.exists()


def test_output_is_replaced_and_its_folder_made(tmp_path):
    path = write(tmp_path / "a.jsonl", ADA)
    output = tmp_path / "deep" / "er" / "out.spacy"
    for _ in range(2):
        result = CliRunner().invoke(app, [str(path), str(output), "--lang", "en"])
        assert result.exit_code == 0
    assert [file_.name for file_ in output.parent.iterdir()] == ["out.spacy"]


def test_checksum(tmp_path, monkeypatch):
    path = write(tmp_path / "a.jsonl", ADA)
    md5 = hashlib.md5(path.read_bytes()).hexdigest()
    project = tmp_path / "project.yml"
    config = {
        "vars": {"name": "a"},
        "assets": [{"dest": "other"}, {"dest": "${vars.name}.jsonl", "checksum": md5}],
    }
    srsly.write_yaml(project, config)
    assert run(path, "--project", str(project))[0].exit_code == 0
    write(path, ADA, ADA)
    fails_at(path, 0, f"says {md5}", "--project", str(project))
    # Without the option, the project.yml of the working directory counts.
    assert run(path)[0].exit_code == 0
    monkeypatch.chdir(tmp_path)
    fails_at(path, 0, f"says {md5}")
    # A file that the project does not list is not checked.
    assert run(write(tmp_path / "b.jsonl", ADA))[0].exit_code == 0


def test_broken_project_file(tmp_path):
    path = write(tmp_path / "a.jsonl", ADA)
    project = tmp_path / "p.yml"
    for content in ("assets: [", "- 1", "assets: [{checksum: x}]"):
        project.write_text(content)
        result, _ = run(path, "--project", str(project))
        assert result.exit_code == 1
        assert result.stderr.startswith(f"{project}: can't read the assets of the project")
    result, _ = run(path, "--project", str(tmp_path / "none.yml"))
    assert result.exit_code == 1 and "none.yml: can't read the assets" in result.stderr


# The corpora of the project

ASSETS = sorted((ROOT / "assets").glob("*.jsonl"))


@pytest.mark.parametrize("path", ASSETS, ids=lambda path: path.stem)
def test_corpora_of_the_project_are_converted_without_loss(path, tmp_path):
    lang = "zh" if path.stem.startswith("zh") else "en"
    output = tmp_path / "out.spacy"
    nested = path.stem.startswith("nested")
    labels = {"PERSON", "ORG", "LOC", "PRODUCT", "EVENT", "WORK"}
    convert.convert(path, output, lang, nested=nested, labels=labels)
    docs = list(DocBin().from_disk(output).get_docs(Vocab()))
    lines = list(srsly.read_jsonl(path))
    assert [doc.text for doc in docs] == [line["text"] for line in lines]
    for doc, line in zip(docs, lines):
        spans = doc.spans["sc"] if nested else doc.ents
        found = [(span.start_char, span.end_char, span.label_) for span in spans]
        assert found == [(s["start"], s["end"], s["label"]) for s in line["spans"]]


@pytest.mark.parametrize("corpus", ["en", "zh", "nested"])
def test_parts_of_a_corpus_share_neither_topics_nor_names(corpus):
    topics, names = {}, {}
    for part in ("train", "dev", "test"):
        lines = list(srsly.read_jsonl(ROOT / "assets" / f"{corpus}_{part}.jsonl"))
        topics[part] = {line["topic"] for line in lines}
        names[part] = {
            line["text"][span["start"] : span["end"]].casefold()
            for line in lines
            for span in line["spans"]
        }
        if corpus != "nested":
            free = sum(not line["spans"] for line in lines) / len(lines)
            assert 0.22 <= free <= 0.28
    for one, other in (("train", "dev"), ("train", "test"), ("dev", "test")):
        assert not topics[one] & topics[other]
        assert not names[one] & names[other]


def test_readme_lists_the_checksums():
    readme = (ROOT / "assets" / "README.md").read_text(encoding="utf8")
    for path in ASSETS:
        assert f"| `{path.name}` | `{hashlib.sha256(path.read_bytes()).hexdigest()}` |" in readme
