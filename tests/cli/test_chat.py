import io
import shutil
import signal
from types import SimpleNamespace

import pytest
import spacy
import typer
from rich.console import Console
from transformers import AutoTokenizer
from typer.testing import CliRunner

from spacy_llmner.cli import chat as module
from spacy_llmner.cli.chat import ChatSession, RenderedStream, chat_cli, load_ember
from spacy_llmner.ember_probe.streaming.events import EntityEvent, TextPiece

app = typer.Typer()
app.command()(chat_cli)

FIT = [
    ("Ada Hale met Bo Lund in Bonn.", {"entities": [(0, 8, "PER"), (13, 20, "PER")]}),
    ("Nobody came to the meeting in Rome.", {"entities": [(30, 34, "LOC")]}),
]
TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)


@pytest.fixture(scope="module")
def chat_llm(tiny_llm, tmp_path_factory):
    """The tiny LLM with a chat template."""
    path = tmp_path_factory.mktemp("chat") / "llm"
    shutil.copytree(tiny_llm, path)
    tokenizer = AutoTokenizer.from_pretrained(path)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def pipelines(tiny_llm, chat_llm, tmp_path_factory):
    root = tmp_path_factory.mktemp("pipelines")
    for name, llm in (("plain", tiny_llm), ("chat", chat_llm)):
        nlp = spacy.blank("en")
        model = {"@architectures": "spacy_llmner.EmberFewShot.v2"}
        config = {"llm": {"name": llm, "device": "cpu"}, "model": model, "threshold": 0.1}
        nlp.add_pipe("ember_probe", name="probe", config=config).fit(FIT)
        nlp.to_disk(root / name)
    return {name: str(root / name) for name in ("plain", "chat")}


@pytest.fixture
def ember(pipelines):
    return load_ember(pipelines["chat"])


def run(*args, **kwargs):
    return CliRunner().invoke(app, [str(arg) for arg in args], **kwargs)


def piped():
    return Console(file=io.StringIO(), width=80)


def terminal():
    return Console(
        file=io.StringIO(), force_terminal=True, width=60, height=10, color_system="truecolor"
    )


def test_text_and_list_of_entities_without_a_terminal(pipelines):
    result = run(pipelines["plain"], "--once", "Ada Hale met", "--max-new-tokens", 15)
    assert result.exit_code == 0, result.output
    assert result.output.startswith("Ada Hale met")
    listed = [line for line in result.output.splitlines() if line.startswith("- ")]
    doc = load_ember(pipelines["plain"]).stream("Ada Hale met", max_new_tokens=15)
    list(doc)
    ents = doc.doc.ents
    assert ents
    assert listed[0].startswith(f"- {ents[0].label_}: {ents[0].text} (0.")
    assert "\x1b[" not in result.output


def test_lines_until_quit(pipelines):
    args = (pipelines["chat"], "--max-new-tokens", 3)
    result = run(*args, "--plain", input="One\n\nTwo\n/quit\nThree\n")
    assert result.exit_code == 0, result.output
    assert "One" in result.output and "Two" in result.output and "Three" not in result.output
    assert run(*args, input="One\n").exit_code == 0


def test_conversation_is_remembered(ember):
    chat = ChatSession(ember, piped(), max_new_tokens=5, system="Be nice.")
    stream = chat.ask("Who came?")
    answer = stream.text.removeprefix("Who came?\n\n").strip()
    system, user = {"role": "system", "content": "Be nice."}, "Who came?"
    expected = [system, {"role": "user", "content": user}]
    assert chat.messages == [*expected, {"role": "assistant", "content": answer}]
    assert chat.console.file.getvalue().startswith(answer[:5])
    chat.ask("And then?")
    assert [m["role"] for m in chat.messages] == ["system"] + 2 * ["user", "assistant"]


def test_reset(pipelines, ember):
    args = (pipelines["chat"], "--max-new-tokens", 5, "--system", "Be nice.")
    once = run(*args, input="Who came?\n").output
    again = run(*args, input="Who came?\n/reset\nWho came?\n").output
    assert again == f"{once}The conversation is forgotten.\n{once}"
    assert run(*args, input="Who came?\nWho came?\n").output != once + once
    chat = ChatSession(ember, piped(), max_new_tokens=5, system="Be nice.")
    chat.ask("Who came?")
    chat.run_command("/reset")
    assert chat.messages == [{"role": "system", "content": "Be nice."}]
    plain = run(*args, "--plain", input="/reset\n")
    assert plain.output == "There is no conversation: each text is continued on its own.\n"


def test_help_and_unknown_commands(pipelines, monkeypatch):
    asked = []
    monkeypatch.setattr(ChatSession, "ask", lambda self, text: asked.append(text))
    result = run(pipelines["chat"], input="/help\n/rest\n/etc/hosts\n/quit\nOne\n")
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert [line.split()[0] for line in lines[:4]] == ["/help", "/labels", "/reset", "/quit"]
    assert lines[4:] == [
        "[LLMNER117] Unknown command '/rest'. Type /help to see the commands.",
    ]
    assert asked == ["/etc/hosts"]


def test_greeting_names_the_commands(pipelines, monkeypatch):
    monkeypatch.setattr(module, "typed_lines", lambda: [])
    monkeypatch.setattr(module, "sys", SimpleNamespace(stdin=SimpleNamespace(isatty=lambda: True)))
    greeting = " ".join(run(pipelines["chat"]).output.split())
    assert greeting == (
        "Ctrl-C ends an answer. /help lists the commands, /labels looks for other labels (/labels person, "
        "city), /reset forgets the conversation, /quit ends the chat."
    )


def test_oldest_messages_are_forgotten(ember):
    chat = ChatSession(ember, piped(), max_new_tokens=5, system="Be nice.")
    old = [{"role": "user", "content": "old " * 30}, {"role": "assistant", "content": "new " * 30}]
    chat.messages += 5 * old
    chat.ask("Who came?")
    assert chat.messages[0]["content"] == "Be nice."
    assert len(chat.messages) < 13
    assert chat.messages[-2]["content"] == "Who came?"
    assert [m["role"] for m in chat.messages[1:3]] == ["user", "assistant"]


def test_no_template_is_plain(pipelines):
    chat = ChatSession(load_ember(pipelines["plain"]), piped(), system="Be nice.", max_new_tokens=3)
    assert chat.plain
    chat.ask("Ada Hale")
    assert chat.messages == []


def test_entities_are_coloured_in_a_terminal(ember):
    chat = ChatSession(ember, terminal(), max_new_tokens=20, plain=True)
    stream = chat.ask("Ada Hale met Bo Lund in")
    assert stream.doc.ents
    out = chat.console.file.getvalue()
    assert " PER " in out
    assert "\x1b[30;48;2;" in out
    assert "- PER" not in out


def test_ctrl_c_ends_the_answer_only(ember, monkeypatch):
    chat = ChatSession(ember, piped(), max_new_tokens=50, plain=True)
    before = signal.getsignal(signal.SIGINT)
    pieces = []

    def add(self, event, original=RenderedStream.add):
        pieces.append(event)
        if len(pieces) == 3:
            signal.raise_signal(signal.SIGINT)
        original(self, event)

    monkeypatch.setattr(RenderedStream, "add", add)
    stream = chat.ask("Ada Hale met")
    assert stream.stop_reason == "cancelled"
    assert stream.doc is not None
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_at_the_prompt_does_not_leave(monkeypatch, capsys):
    answers = iter([KeyboardInterrupt, "One", EOFError])

    def fake_input(prompt):
        answer = next(answers)
        if isinstance(answer, str):
            return answer
        raise answer

    monkeypatch.setattr("builtins.input", fake_input)
    assert list(module.typed_lines()) == ["One"]
    assert "/quit" in capsys.readouterr().out


def event(start, end, label, status, replaces=None):
    return EntityEvent(start, end, label, 0.9, "", status, replaces)


def test_shown():
    shown = RenderedStream(3, {"PER": "#aa9cfc", "LOC": "#ff9561"})
    shown.add(TextPiece("Hi Ada Hale \x1b[31m[red]Bonn"))
    shown.add(event(0, 2, "PER", "final"))
    shown.add(event(3, 6, "LOC", "found"))
    shown.add(event(3, 11, "PER", "revised", (3, 6, "LOC")))
    shown.add(event(22, 26, "LOC", "found"))
    text = shown.render()
    assert text.plain == "Ada Hale PER  \ufffd[31m[red]Bonn LOC "
    assert "underline" in str(text.spans[0].style)
    shown.add(event(3, 11, "PER", "final"))
    shown.add(event(22, 26, "LOC", "dropped"))
    text = shown.render()
    assert text.plain == "Ada Hale PER  \ufffd[31m[red]Bonn"
    assert str(text.spans[0].style) == "black on #aa9cfc"


def test_long_answers_show_their_end():
    console = terminal()
    text = module._tail(
        RenderedStream(0, {}).render() + "".join(f"{i}\n" for i in range(50)), console
    )
    assert text.plain.splitlines()[-1].strip() == "49"
    assert len(text.plain.splitlines()) <= 8


def test_llm_is_repointed(pipelines, tiny_llm, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(tiny_llm, moved)
    assert load_ember(pipelines["plain"], str(moved)).llm.spec.name == str(moved)
    nlp = spacy.load(pipelines["plain"])
    nlp.config["paths"]["llm"] = tiny_llm
    nlp.config["components"]["probe"]["llm"]["name"] = "${paths.llm}"
    nlp.to_disk(tmp_path / "nlp")
    assert load_ember(str(tmp_path / "nlp"), str(moved)).llm.spec.name == str(moved)


def test_messages(pipelines, tmp_path):
    nlp = spacy.blank("en")
    nlp.add_pipe("sentencizer")
    nlp.to_disk(tmp_path / "other")

    def fails(message, *args):
        result = run(*args, "--once", "Hi")
        assert result.exit_code == 1
        assert message in result.output

    fails("no component 'ember_probe'", tmp_path / "other")
    fails("It has: sentencizer", tmp_path / "other")
    fails("Can't find the pipeline", tmp_path / "none")
    fails("Can't find the LLM", pipelines["plain"], "--llm", tmp_path / "none")


def test_labels_at_the_prompt(ember, monkeypatch):
    asked = []
    monkeypatch.setattr(ember, "set_labels", asked.append)
    chat = ChatSession(ember, piped())
    chat.run_command("/labels person, big city,")
    assert asked == [["person", "big city"]]
    assert chat.console.file.getvalue().startswith("Looking for: ")


def test_labels_need_a_model_that_reads_words(pipelines):
    refused = run(pipelines["chat"], "--labels", "person", "--once", "One")
    assert refused.exit_code == 1 and "LLMNER149" in refused.output
    assert "LLMNER149" in run(pipelines["chat"], input="/labels person\n/quit\n").output
    assert "LLMNER153" in run("--labels", "person").output
    assert "LLMNER153" in run("--llm", "x").output


def test_labels_without_a_pipeline(tiny_llm):
    # The package has no weights for the tiny LLM.
    result = run("--llm", tiny_llm, "--labels", "person, city", "--once", "Ada Hale met")
    assert result.exit_code == 1 and "LLMNER147" in result.output
