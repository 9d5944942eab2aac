"""The web page of `spacy llmner evaluate`."""

import re
from html.parser import HTMLParser

import pytest
import spacy
from spacy.language import Language
from spacy.tokens import DocBin, Span, SpanGroup
from typer.testing import CliRunner

from spacy_llmner.cli import app
from spacy_llmner.cli.evaluate import evaluate
from spacy_llmner.cli.evaluate_page import evaluation_page

# Each text with its entities, and those that the component finds, by tokens.
DOCS = [
    ("Nobody came.", [], []),
    (
        "Ada Hale lives in Port Ellam.",
        [(0, 2, "PER"), (4, 6, "LOC")],
        [(0, 2, "PER"), (4, 6, "EVENT")],
    ),
    ("Rain fell on Bonn.", [(3, 4, "LOC")], [(3, 4, "LOC")]),
    ("Bo saw <script>alert(1)</script> & Rome.", [(0, 1, "PER")], []),
    ("The river near Port Ellam is cold.", [(3, 5, "LOC")], [(4, 5, "LOC")]),
    ("Tea is cold.", [], [(0, 1, 'A"<b>')]),
]
FOUND = {text: found for text, _, found in DOCS}


@Language.component("test_evaluate_page_found")
def find(doc):
    spans = [Span(doc, start, end, label=label) for start, end, label in FOUND[doc.text]]
    scores = [0.875 - k / 2 for k in range(len(spans))]
    doc.spans["llmner"] = SpanGroup(doc, name="llmner", spans=spans, attrs={"scores": scores})
    doc.set_ents(spans, default="outside")
    return doc


class Outline(HTMLParser):
    """Collects the documents of a page: their number, kinds of errors, and marks."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.documents, self.marks, self.opened = [], [], [], []
        self.feed(page)
        assert not self.opened  # everything is closed

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "input"):
            self.opened.append(tag)
        if tag == "article":
            self.documents.append(dict(attrs)["class"].split())
        if tag == "mark":
            self.marks.append({**dict(attrs), "text": "", "document": len(self.documents)})

    def handle_endtag(self, tag):
        assert self.opened.pop() == tag

    def handle_data(self, data):
        if "mark" in self.opened:
            self.marks[-1]["text"] += data + "|"


def save(folder, lang="en"):
    nlp = spacy.blank(lang)
    nlp.add_pipe("test_evaluate_page_found")
    nlp.to_disk(folder)
    docs = []
    for text, gold, _ in DOCS:
        doc = nlp.make_doc(text)
        doc.set_ents([Span(doc, *ent[:2], label=ent[2]) for ent in gold], default="outside")
        docs.append(doc)
    DocBin(docs=docs).to_disk(folder.parent / "test.spacy")
    return str(folder), folder.parent / "test.spacy"


@pytest.fixture
def paths(tmp_path):
    (tmp_path / "probe").mkdir()
    return save(tmp_path / "probe" / "model-best")


@pytest.fixture
def page(paths, tmp_path):
    html = tmp_path / "new" / "page.html"
    result = CliRunner().invoke(app, ["evaluate", *map(str, paths), "--html", str(html)])
    assert result.exit_code == 0 and f"Saved {html}" in result.output
    return html.read_text(encoding="utf8")


def test_title_and_scores(page):
    assert page.startswith("<!DOCTYPE html>") and '<meta charset="utf-8">' in page
    assert "<title>Evaluation of probe/model-best</title>" in page
    assert "<h1>probe/model-best</h1>" in page
    assert "<dt>Components</dt><dd>test_evaluate_page_found</dd>" in page
    assert "<dt>Data</dt><dd>test.spacy</dd>" in page
    assert "<dt>LLM</dt>" not in page  # this pipeline has none
    assert "<b>40.0</b> precision" in page and "<b>40.0</b> recall" in page
    rows = re.findall(r'<tr><th scope="row">(.*?)</th>(.*?)</tr>', page)
    cells = {label: re.findall("<td>(.*?)</td>", row) for label, row in rows}
    assert cells["LOC"] == ["50.0", "33.3", "40.0", "3", "2"]
    assert cells["all"] == ["40.0", "40.0", "40.0", "5", "5"]
    assert list(cells) == ["A&quot;&lt;b&gt;", "EVENT", "LOC", "PER", "all"]


def test_name_of_the_llm(pipelines, tiny_llm, tmp_path):
    pipelines("ember_probe").to_disk(tmp_path / "nlp")
    result = evaluate(str(tmp_path / "nlp"), save(tmp_path / "other")[1])
    assert "<dt>LLM</dt><dd>llama</dd>" in evaluation_page(result, 9)
    assert tiny_llm.endswith("/llama") and tiny_llm not in evaluation_page(result, 9)


def test_documents_with_errors_come_first(page):
    numbers = re.findall(r"<h3>Document (\d)</h3>", page)
    assert numbers == ["2", "4", "5", "6", "1", "3"]
    assert Outline(page).documents == [
        ["errors", "wrong-label"],
        ["errors", "missed"],
        ["errors", "wrong-boundary"],
        ["errors", "extra"],
        ["no-errors"],
        ["no-errors"],
    ]


def test_limit(paths):
    page = evaluation_page(evaluate(*paths), 5)
    assert len(Outline(page).documents) == 5 and "5 of 6 documents, those with errors first" in page
    assert "no errors (1)" in page


def test_select_by_kind(page):
    """Each kind that occurs has a radio button, and CSS that hides the documents without it."""
    buttons = dict(re.findall(r'id="show-([\w-]+)".*?> ([^<]+)</label>', page))
    assert buttons == {
        "all": "all (6)",
        "errors": "errors (4)",
        "missed": "missed (1)",
        "extra": "extra (1)",
        "wrong-label": "wrong label (1)",
        "wrong-boundary": "wrong boundary (1)",
        "no-errors": "no errors (2)",
    }
    for name in set(buttons) - {"all"}:
        rule = f"body:has(#show-{name}:checked) article:not(.{name}) {{ display: none; }}"
        assert rule in page


def test_marks(page):
    marks = [(m["class"], m["text"]) for m in Outline(page).marks]
    assert marks == [
        ("right", "Ada |Hale|PER|"),
        ("wrong-label", "Port |Ellam|LOC -> EVENT|"),
        ("missed", "Bo|missed PER|"),
        ("wrong-boundary", "Ellam|boundary LOC|"),
        ("extra", 'Tea|extra A"<b>|'),
        ("right", "Bonn|LOC|"),
    ]
    assert "<b>wrong label</b> Port Ellam (LOC -&gt; EVENT)" in page
    assert "<b>wrong boundary</b> Port Ellam -&gt; Ellam (LOC)" in page
    assert "--label: #ff9561" in page  # displaCy's LOC


def test_scores_on_hover_and_focus(page):
    marks = [m for m in Outline(page).marks if m["class"] != "missed"]
    assert [m["title"] for m in marks[:2]] == ["PER, score 0.88", "EVENT, score 0.38"]
    assert all(m["tabindex"] == "0" for m in marks)
    assert 'class="tag" data-score="0.38"' in page and "content: attr(data-score)" in page
    (missed,) = [m for m in Outline(page).marks if m["class"] == "missed"]
    assert "title" not in missed and "tabindex" not in missed


def test_labels_stay_with_their_entities(page):
    ends = re.findall(r'<span class="end">(.*?)<span class="tag"', page)
    assert ends == ["Hale", "Ellam", "Bo", "Ellam", "Tea", "Bonn"]
    assert ".end { white-space: nowrap; }" in page


def test_text_is_escaped(page):
    assert "<script" not in page and '<b>"' not in page
    assert "saw &lt;script&gt;alert(1)&lt;/script&gt; &amp; Rome." in page


def test_page_needs_nothing_else(page):
    tags = Outline(page).tags
    assert not {tag for tag, _ in tags} & {"script", "link", "img", "iframe", "object"}
    assert not any({"src", "href", "onclick"} & set(attrs) for _, attrs in tags)
    assert "url(" not in page and "@import" not in page and "//" not in page
    assert "Content-Security-Policy\" content=\"default-src 'none'" in page
    assert "prefers-color-scheme: dark" in page and "width=device-width" in page


def test_same_page_each_time(paths, page):
    assert evaluation_page(evaluate(*paths), 40) + "\n" == page


def test_writing_direction(tmp_path):
    page = evaluation_page(evaluate(*save(tmp_path / "nlp", "ar")), 1)
    assert '<html lang="en">' in page and '<div class="text" lang="ar" dir="rtl">' in page


def test_control_characters(tmp_path, monkeypatch):
    text = "Tea\x00\x1b is\r\ncold"
    monkeypatch.setattr("tests.cli.test_evaluate_page.DOCS", [(text, [(1, 2, "LOC")], [])])
    monkeypatch.setitem(FOUND, text, [])
    page = evaluation_page(evaluate(*save(tmp_path / "nlp")), 1)
    assert "\ufffd\ufffd" in page and "</mark>\ncold" in page
    assert not re.search(r"[\x00\x1b\r]", page)


def test_nested_and_crossing_spans(tmp_path, monkeypatch):
    text = "Mira of Port Ellam sings"
    spans = [(0, 4, "PER"), (2, 4, "LOC"), (3, 5, "WORK")]
    monkeypatch.setattr("tests.cli.test_evaluate_page.DOCS", [(text, [(0, 4, "PER")], spans)])
    monkeypatch.setitem(FOUND, text, spans[:1])
    paths = save(tmp_path / "nlp")
    result = evaluate(*paths)
    for doc, ents in (
        (result.examples[0].predicted, spans),
        (result.examples[0].reference, spans[:2]),
    ):
        doc.spans["all"] = [Span(doc, start, end, label=label) for start, end, label in ents]
    result.spans_key = "all"
    result.scores.update(spans_all_p=1, spans_all_r=1, spans_all_f=1, spans_all_per_type={})
    page = evaluation_page(result, 1)
    outline = Outline(page)  # well-formed
    assert [m["class"] for m in outline.marks] == ["right", "right"]
    assert page.index("Mira of ") < page.index('>LOC</span></span></mark><span class="end">')
    # It crosses another one, so it is only listed.
    assert "<b>extra</b> Ellam sings (WORK)" in page
    assert "doc.spans[&#x27;all&#x27;]" in page
