"""Answers for the page, and what it does with texts."""

TEXT = (
    "Mira Stone met Oskar Blum in Varnholm. 🚀🎉 Oskar Blum likes tea. Tea is cold in Port Ellam."
)
HARMFUL = "<img src=x onerror=\"document.title='changed'\"><b>bold</b>"


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


def find(page, text):
    page.one("#source").clear()
    page.run("document.querySelector('#source').value = arguments[0]", text)
    page.click("#find")
    page.wait_for("#result, #text-error")
