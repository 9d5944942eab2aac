"""The page's chat, in a browser."""

import json
import re

import pytest

pytest.importorskip("selenium", reason="the page is not tested, since selenium is not installed")

from selenium.webdriver.common.keys import Keys

from tests.ember_probe.helpers import TEXTS
from tests.serve.helpers import MODEL, serving, wait_until
from tests.serve.page.helpers import TEXT, answer, in_pieces
from tests.serve.test_upstream import doc_of, redacted


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
