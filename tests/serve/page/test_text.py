"""The page's part for texts that are pasted, in a browser."""

import json

import pytest
import spacy
from spacy.language import Language
from spacy.tokens import Span

pytest.importorskip("selenium", reason="the page is not tested, since selenium is not installed")

from selenium.webdriver.common.keys import Keys

from spacy_llmner.serve.ner import NerBatcher
from tests.serve.helpers import serving
from tests.serve.page.helpers import HARMFUL, find

SPANS = [(0, 5, "band", 0.9), (1, 2, "artist", 0.5), (1, 4, HARMFUL, None), (7, 8, "city", 0.25)]


@Language.component("overlapping_spans")
def find_overlapping_spans(doc):
    """Finds SPANS, of which the first and the last are entities."""
    spans = [Span(doc, start, end, label) for start, end, label, _ in SPANS]
    doc.spans["all"] = spans
    doc.spans["all"].attrs["scores"] = [score for *_, score in SPANS]
    doc.ents = [spans[0], spans[3]]
    return doc


@pytest.fixture
def spans_page(page):
    nlp = spacy.blank("en")
    nlp.add_pipe("overlapping_spans")
    with serving(nlp) as running:
        page.open(running.url, "#text")
        yield page


OVERLAPPING = "The 🎸 Mira Stone Band played in Varnholm <b>twice</b>."


def test_overlapping_spans(spans_page):
    page = spans_page
    assert not page.is_visible("#chat, #tabs, #modes")
    assert "LLMNER155" in page.texts("#refusal")[0]
    find(page, OVERLAPPING)
    assert page.texts("#summary") == ["4 entities found"]
    doc = find_overlapping_spans(spacy.blank("en")(OVERLAPPING))
    expected = [
        [
            span.text,
            span.label_,
            "" if score is None else f"{score:.2f}",
            f"{span.start_char}–{span.end_char}",
        ]
        for span, score in zip(doc.spans["all"], [score for *_, score in SPANS])
    ]
    rows = page.texts("#found tbody td")
    rows = [rows[i : i + 4] for i in range(0, len(rows), 4)]
    assert sorted(rows) == sorted(expected)
    # The text is complete, and the bars of each span are under each other.
    script = """
        return [...document.querySelectorAll("#marked .bar")].filter((bar) => bar.textContent).map(
          (bar) => [bar.textContent, bar.getBoundingClientRect().top])
    """
    top = dict(page.run(script))
    assert top["band"] < top[HARMFUL] < top["artist"] and top["city"] == top["band"]
    page.run("document.querySelectorAll('#marked .bar').forEach((bar) => bar.textContent = '')")
    assert page.texts("#marked") == [OVERLAPPING]
    shown = json.loads(page.texts("#json")[0])
    assert shown["text"] == OVERLAPPING and len(shown["spans"]) == 4
    assert [ent["text"] for ent in shown["entities"]] == [ent.text for ent in doc.ents]


def test_filter_and_copy(spans_page):
    page = spans_page
    granted = ["clipboardReadWrite", "clipboardSanitizedWrite"]
    page.driver.execute_cdp_cmd("Browser.grantPermissions", {"permissions": granted})
    find(page, OVERLAPPING)
    page.click(".chip input")
    assert page.texts("#summary") == ["3 entities found"]
    page.click("#copy")
    page.wait_until(lambda: page.texts("#copy") == ["Copied"])
    copied = page.driver.execute_async_script(
        "navigator.clipboard.readText().then(arguments[arguments.length - 1])"
    )
    assert copied == page.texts("#json")[0] and "band" not in {
        span["label"] for span in json.loads(copied)["spans"]
    }
    # Without the permission to copy, the JSON is selected.
    page.run("navigator.clipboard.writeText = () => Promise.reject(new Error())")
    page.click("#copy")
    page.wait_until(lambda: page.texts("#copy") == ["Press Ctrl+C"])
    assert page.run("return getSelection().toString()") == copied


def test_an_error_about_a_text(page, nlp):
    page.expected = ["status of 400"]
    with serving(nlp, max_chars=5) as running:
        page.open(running.url)
        page.click("#text-tab")
        find(page, "Hello there.")
        assert "LLMNER158" in page.texts("#text-error")[0] and not page.is_visible("#result")
        page.one("#source").clear()
        page.one("#source").send_keys("Mira", Keys.CONTROL, Keys.ENTER, Keys.NULL)
        page.wait_for("#result")
        assert not page.is_visible("#text-error")


@Language.component("words_named_like_labels")
def find_words_named_like_labels(doc):
    """Finds each label, if it is a word of the text."""
    labels = doc._.llmner_labels or []
    doc.ents = [Span(doc, word.i, word.i + 1, word.text) for word in doc if word.text in labels]
    return doc


def test_labels_in_words(page, monkeypatch):
    monkeypatch.setattr(NerBatcher, "takes_any_labels", lambda self: True)
    nlp = spacy.blank("en")
    nlp.add_pipe("words_named_like_labels")
    with serving(nlp) as running:
        page.open(running.url, "#text")
        find(page, "tea and milk and sugar")
        assert page.texts("#text-error") == ["Choose at least one label."]
        page.one("#new-label").send_keys("tea, milk,, tea", Keys.ENTER)
        page.one("#new-label").send_keys(HARMFUL, Keys.ENTER)
        assert page.texts(".chip label") == ["tea", "milk", HARMFUL]
        find(page, "tea and milk and sugar")
        assert page.texts("#found tbody td:first-child") == ["tea", "milk"]
        page.click("[aria-label='Remove tea']")
        page.click("#find")
        page.wait_until(lambda: page.texts("#found tbody td:first-child") == ["milk"])
