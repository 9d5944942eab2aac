"""The page, in a browser."""

import json
import re
import threading

import httpx2
import pytest
import spacy
from spacy.language import Language
from spacy.tokens import Span

pytest.importorskip("selenium", reason="the page is not tested, since selenium is not installed")

from selenium.webdriver.common.keys import Keys

from spacy_llmner.serve.ner import NerBatcher
from spacy_llmner.serve.static_page import PAGE
from tests.ember_probe.helpers import TEXTS
from tests.serve.browser import Page, start_browser
from tests.serve.helpers import MODEL, serving, wait_until
from tests.serve.test_upstream import doc_of, redacted

TEXT = (
    "Mira Stone met Oskar Blum in Varnholm. 🚀🎉 Oskar Blum likes tea. Tea is cold in Port Ellam."
)
HARMFUL = "<img src=x onerror=\"document.title='changed'\"><b>bold</b>"


@pytest.fixture(scope="module")
def browser():
    driver = start_browser()
    yield driver
    driver.quit()


@pytest.fixture
def page(browser):
    page = Page(browser)
    page.resize()
    yield page
    page.check_console()


@pytest.fixture
def chat(page, front):
    page.open(front.url)
    return page


@pytest.fixture
def gate():
    """Answers can wait for it. It is open at the end of the test in any case."""
    gate = threading.Event()
    yield gate
    gate.set()


def answer(scripted, *steps, finish_reason="stop"):
    """Set the next answer: pieces of text, and gates to wait at."""

    def lines():
        for step in steps:
            if isinstance(step, str):
                choice = {"index": 0, "delta": {"content": step}, "finish_reason": None}
                yield scripted.line(choice)
            else:
                assert step.wait(60)
        yield scripted.line({"index": 0, "delta": {}, "finish_reason": finish_reason})
        yield "data: [DONE]\n\n"

    scripted.answer([], raw=lines())


def in_pieces(text, size=4):
    return [text[i : i + size] for i in range(0, len(text), size)]


def known_after(nlp, pieces):
    """RETURNS (List): Text, label and whether it is final, of what a reader knows after these pieces."""
    known = {}
    reader = nlp.get_pipe("ember_probe").reader()
    for piece in pieces:
        for event in reader.push(piece):
            known.pop(event.replaces, None)
            known[event.start, event.end, event.label] = event
            if event.status == "dropped":
                del known[event.start, event.end, event.label]
    reader.close()
    return [(known[key].text, key[2], known[key].status == "final") for key in sorted(known)]


def final_marks(doc):
    return [(ent.text, ent.label_, True) for ent in doc.ents]


def test_entities_light_up_while_the_answer_is_written(nlp, chat, scripted, gate):
    pieces = in_pieces(TEXT)
    n = next(
        n
        for n in range(len(pieces))
        if {is_final for _, _, is_final in known_after(nlp, pieces[:n])} == {True, False}
        and "🚀" in "".join(pieces[:n])
    )
    answer(scripted, *pieces[:n], gate, *pieces[n:])
    chat.ask("Who met whom?")
    chat.wait_until(lambda: chat.marks() == known_after(nlp, pieces[:n]))
    assert chat.answers() == ["".join(pieces[:n])] and chat.is_visible("#stop")
    gate.set()
    chat.wait_for_the_end()
    doc = doc_of(nlp, TEXT)
    assert any(ent.start_char > TEXT.index("🎉") for ent in doc.ents)
    assert chat.answers() == [TEXT] and chat.marks() == final_marks(doc)
    assert chat.texts(".user .turn-text") == ["Who met whom?"]


def test_screen_readers_hear_whole_answers(nlp, chat, scripted, gate):
    answer(scripted, TEXTS[0], gate)
    chat.ask("Who?")
    chat.wait_until(lambda: TEXTS[0] in chat.answers())
    assert chat.one("#log").get_attribute("aria-live") == "off"
    assert chat.texts("[role=status]") == ["The answer is being written."]
    gate.set()
    chat.wait_for_the_end()
    found = "; ".join(f"{ent.text}, {ent.label_}" for ent in doc_of(nlp, TEXTS[0]).ents)
    (heard,) = chat.texts("[role=status]")
    assert TEXTS[0] in heard and f"Entities: {found}." in heard


def test_stop_and_go_on(chat, front, scripted, gate):
    answer(scripted, TEXTS[0], gate, "More.")
    chat.ask("Who?")
    chat.wait_until(lambda: TEXTS[0] in chat.answers())
    chat.click("#stop")
    chat.wait_for_the_end()
    assert chat.answers() == [TEXTS[0]] and chat.texts(".turn .hint") == ["Stopped."]
    gate.set()
    wait_until(lambda: front.service.slots.running == 0)
    answer(scripted, "Yes.", finish_reason="length")
    chat.ask("Really?")
    chat.wait_until(lambda: "Yes." in chat.answers())
    chat.wait_for_the_end()
    assert "maximum length" in chat.texts(".turn .hint")[1]
    assert [turn["content"] for turn in scripted.requests[0][0]["messages"]] == [
        "Who?",
        TEXTS[0],
        "Really?",
    ]


def test_stop_before_there_is_an_answer(chat, scripted, gate):
    """The question can be changed and sent again."""
    answer(scripted, gate)
    chat.ask("Who?")
    chat.wait_for("#stop")
    chat.click("#stop")
    chat.wait_for_the_end()
    assert not chat.all(".turn") and chat.one("#question").get_property("value") == "Who?"


def test_clear(chat, scripted, gate):
    answer(scripted, TEXTS[0], gate)
    chat.ask("Who?")
    chat.wait_until(lambda: TEXTS[0] in chat.answers())
    chat.click("#clear")
    chat.wait_for_the_end()
    assert not chat.all(".turn") and chat.is_visible("#hello")
    gate.set()
    answer(scripted, "Yes.")
    chat.ask("Really?")
    chat.wait_until(lambda: chat.answers() == ["Yes."])
    assert [turn["content"] for turn in scripted.requests[0][0]["messages"]] == ["Really?"]


def test_redact(nlp, chat, scripted):
    answer(scripted, *in_pieces(TEXT))
    chat.click("#modes label:last-of-type")
    chat.ask("Who?")
    chat.wait_until(lambda: chat.answers() == [redacted(doc_of(nlp, TEXT))])
    chat.wait_for_the_end()
    doc = doc_of(nlp, TEXT)
    assert chat.marks() == [(f"[{ent.label_}]", ent.label_, True) for ent in doc.ents]
    assert "Mira Stone" not in chat.driver.page_source


def test_chosen_labels(nlp, chat, scripted):
    """They are shown or hidden at once, also in earlier answers. Only they are redacted."""
    doc = doc_of(nlp, TEXT)
    assert chat.texts(".chip") == ["LOC", "PER"]
    answer(scripted, TEXT)
    chat.ask("Who?")
    chat.wait_until(lambda: chat.marks() == final_marks(doc))
    chat.wait_for_the_end()
    chat.click(".chip:last-child input")
    assert chat.marks() == [mark for mark in final_marks(doc) if mark[1] == "LOC"]
    assert chat.answers() == [TEXT]
    chat.click("#modes label:last-of-type")
    answer(scripted, TEXT)
    chat.ask("Who?")
    chat.wait_until(lambda: len(chat.answers()) == 2 and "tea" in chat.answers()[1])
    chat.wait_for_the_end()
    assert "Mira Stone" in chat.answers()[1] and "[LOC]" in chat.answers()[1]
    chat.click(".chip:last-child input")
    assert [mark for mark in chat.marks() if "[" not in mark[0]] == final_marks(doc)
    for box in chat.all(".chip input"):
        box.click()
    chat.ask("Who?")
    chat.wait_for("#chat-error")
    assert chat.texts("#chat-error") == ["Choose at least one label."]


def test_errors_of_the_server(chat, scripted):
    chat.expected = ["status of 404"]
    chat.run("document.querySelector('#models').append(new Option('other'))")
    chat.run("document.querySelector('#models').value = 'other'")
    chat.ask("Who?")
    chat.wait_for("#chat-error")
    assert chat.texts("#chat-error") == ["No such model"]
    assert not chat.all(".turn") and chat.one("#question").get_property("value") == "Who?"

    chat.run("document.querySelector('#models').value = 'scripted'")
    first = scripted.line({"index": 0, "delta": {"content": TEXTS[0]}, "finish_reason": None})
    error = json.dumps({"error": {"message": "It burns", "code": "fire"}})
    scripted.answer([], raw=[first, f"data: {error}\n\n"])
    chat.click("#send")
    chat.wait_until(lambda: chat.texts("#chat-error") == ["It burns"])
    assert TEXTS[0].startswith(chat.answers()[0]) and chat.texts(".turn .hint") == ["Not complete."]
    scripted.answer([], raw=[first])
    chat.ask("Who?")
    chat.wait_until(lambda: "ended its answer too early" in chat.texts("#chat-error")[0])


def test_a_server_that_is_gone(page, nlp):
    page.expected = ["ERR_CONNECTION_REFUSED"]
    with serving(nlp) as running:
        page.open(running.url)
    page.ask("Who?")
    page.wait_for("#chat-error")
    assert "can't be reached" in page.texts("#chat-error")[0]


def test_own_llm(page, server):
    """What the pipeline's LLM writes is shown as it is."""
    messages = [{"role": "user", "content": "Mira Stone met Oskar Blum in Varnholm."}]
    options = {"model": MODEL, "messages": messages}
    written = server.client().chat.completions.create(**options).choices[0].message.content
    page.open(server.url)
    page.ask(messages[0]["content"])
    page.wait_until(lambda: page.answers() in ([written], [written.replace("\r", "\n")]))
    page.wait_for_the_end()


def test_keyboard(chat, scripted):
    answer(scripted, TEXTS[0])
    chat.ask("Who?")
    chat.wait_until(lambda: chat.all(".entity.final"))
    chat.wait_for_the_end()
    mark = chat.one(".turn .entity")
    chat.run("arguments[0].focus()", mark)
    assert chat.is_visible("#tip")
    assert re.fullmatch(r"PER, score [01]\.\d\d", chat.one("#tip").text)
    assert mark.get_attribute("aria-description") == chat.one("#tip").text
    mark.send_keys(Keys.ESCAPE)
    assert not chat.is_visible("#tip")
    chat.one("#chat-tab").send_keys(Keys.ARROW_RIGHT)
    assert chat.is_visible("#text") and not chat.is_visible("#chat")
    assert chat.driver.switch_to.active_element.get_attribute("aria-selected") == "true"
    chat.driver.switch_to.active_element.send_keys(Keys.ARROW_LEFT)
    assert chat.is_visible("#chat") and chat.answers()
    chat.one("#question").send_keys("one", Keys.SHIFT, Keys.ENTER, Keys.NULL, "two")
    assert chat.one("#question").get_property("value") == "one\ntwo"


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


def find(page, text):
    page.one("#source").clear()
    page.run("document.querySelector('#source').value = arguments[0]", text)
    page.click("#find")
    page.wait_for("#result, #text-error")


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


def test_api_key(page, nlp):
    page.expected = ["status of 401"]
    with serving(nlp, api_key="kéy") as running:
        page.open(running.url, "#key-form")
        assert not page.is_visible("#settings, #chat, #text, #notice")
        page.one("#key").send_keys("wrong", Keys.ENTER)
        page.wait_for("#notice")
        assert "LLMNER160" in page.texts("#notice")[0]
        page.one("#key").send_keys("kéy", Keys.ENTER)
        page.wait_for("#settings")
        assert not page.is_visible("#key-form, #notice")
        page.click("#text-tab")
        find(page, "Mira")
        assert page.is_visible("#result")
        assert page.run("return localStorage.length + sessionStorage.length") == 0
        assert "kéy" not in page.driver.page_source and not page.driver.get_cookies()
        page.open(running.url, "#key-form")


def test_harmful_text(chat, scripted):
    """Whatever comes from users and LLMs is shown as text."""
    answer(scripted, HARMFUL)
    chat.ask(HARMFUL)
    chat.wait_until(lambda: chat.answers() == [HARMFUL])
    chat.wait_for_the_end()
    chat.click("#text-tab")
    find(chat, HARMFUL)
    assert not chat.all("img, b") and chat.driver.title == "spacy-llmner"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_small_screens_and_contrast(chat, scripted, scheme):
    chat.resize(380, 740, scheme)
    answer(scripted, f"{TEXT} {'x' * 200}")
    chat.ask("y" * 200)
    chat.wait_until(lambda: chat.all(".entity.final"))
    chat.wait_for_the_end()
    assert fits(chat)
    chat.click("#text-tab")
    find(chat, f"{TEXT} {'x' * 200}")
    assert fits(chat)
    # Every pair of colours of text and background.
    ratios = chat.run(CONTRASTS)
    assert len(ratios) > 40 and min(ratios.values()) >= 4.5, ratios


def fits(page):
    """RETURNS (bool): Whether nothing is wider than the screen."""
    return page.run("""
        const wide = (element) => element.scrollWidth > element.clientWidth;
        return ![document.documentElement, ...document.querySelectorAll("#log, #text, #marked")]
          .some(wide);
    """)


CONTRASTS = """
const context = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
const luminance = (color) => {
  context.fillStyle = color;
  context.fillRect(0, 0, 1, 1);
  const [r, g, b] = [...context.getImageData(0, 0, 1, 1).data].map((value) => value / 255).map(
    (value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const probe = document.body.appendChild(document.createElement("span"));
const value = (name) => {
  probe.style.color = `var(${name})`;
  return getComputedStyle(probe).color;
};
const ratios = {};
const compare = (ink, back) => {
  const [low, high] = [luminance(value(ink)), luminance(value(back))].sort((a, b) => a - b);
  ratios[`${probe.className} ${ink} on ${back}`] = (high + 0.05) / (low + 0.05);
};
for (const back of ["--page", "--card"]) for (const ink of ["--ink", "--soft"]) compare(ink, back);
compare("--ink", "--user");
compare("--error", "--error-back");
compare("--on-accent", "--accent");
compare("--page", "--ink");
for (let i = 0; i < 10; i += 1) {
  probe.className = `color-${i}`;
  for (const back of ["--card", "--fill"]) compare("--strong", back);
  compare("--ink", "--fill");
  compare("--ink", "--card");
}
probe.remove();
return ratios;
"""


def test_files(server):
    """All are served, with headers that allow nothing else, and refer to nothing outside."""
    for path in PAGE.iterdir():
        reply = httpx2.get(f"{server.url}/{path.name}")
        assert reply.status_code == 200 and reply.content == path.read_bytes()
        policy = reply.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy
        assert "//" not in re.sub(
            r"(^|\s)//.*|http://www.w3.org/2000/svg", "", path.read_text("utf8"), flags=re.M
        )
    assert "text/html" in httpx2.get(server.url).headers["content-type"]
    assert httpx2.get(f"{server.url}/missing.js").status_code == 404
