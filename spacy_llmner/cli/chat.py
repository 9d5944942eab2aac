"""`spacy llmner chat`: chat with an LLM, and see the entities while it answers."""

import re
import signal
import sys
from contextlib import contextmanager, nullcontext, suppress
from typing import Any, Dict, Iterator, List, Optional, Tuple

import typer
from rich.console import Console
from rich.live import Live
from rich.text import Text
from spacy import blank
from spacy.language import Language

from ..ember_probe.streaming.events import EntityEvent, TextPiece
from ..ember_probe.streaming.generation import EmberStream
from ..ember_probe.streaming.prompt import Prompt, encode_prompt
from ..errors import Errors, LLMNERError
from ._util import clean, colors_of, exit_on_error, load_pipeline

FACTORY = "ember_probe"
COMMANDS = {
    "/help": "lists the commands",
    "/labels": "looks for other labels (/labels person, city)",
    "/reset": "forgets the conversation",
    "/quit": "ends the chat",
}
COMMAND = re.compile(r"/\w+|/labels .*")

# Start and end in characters, and label.
Key = Tuple[int, int, str]


def chat_cli(
    pipeline: Optional[str] = typer.Argument(
        None,
        help="Pipeline with an ember_probe: a folder or package. Not needed with --labels and --llm",
    ),
    llm: Optional[str] = typer.Option(
        None, "--llm", help="LLM to use instead of the one in the config"
    ),
    labels: Optional[str] = typer.Option(
        None, "--labels", help='Labels in words, separated by commas: "person, award"'
    ),
    max_new_tokens: int = typer.Option(
        200, "--max-new-tokens", min=1, help="Maximum number of tokens per answer"
    ),
    system: Optional[str] = typer.Option(None, "--system", help="System message"),
    plain: bool = typer.Option(
        False, "--plain", help="Continue each text without the chat template"
    ),
    temperature: float = typer.Option(0.0, "--temperature", min=0.0, help="0 for greedy decoding"),
    once: Optional[str] = typer.Option(None, "--once", help="Answer this prompt and exit"),
) -> None:
    """
    Chat with the LLM of a pipeline, or, with --llm and --labels, without a pipeline. Entities are
    highlighted while it writes; underlined entities can still change. Ctrl-C ends an answer. /help lists
    the commands, /labels changes the labels, /reset forgets the conversation, and /quit ends the chat. If
    the input is not a terminal, each line is a prompt or a command. If the output is not a terminal, each
    answer is followed by a list of its entities.
    """
    console = Console(highlight=False)
    with exit_on_error():
        ember = load_ember(pipeline, llm, None if labels is None else _split(labels))
        chat = ChatSession(ember, console, max_new_tokens, temperature, system, plain)
        if once is not None:
            chat.ask(once)
            return
        if sys.stdin.isatty():
            commands = ", ".join(f"{name} {does}" for name, does in COMMANDS.items())
            console.print(f"Ctrl-C ends an answer. {commands}.", style="dim")
        for line in typed_lines():
            if COMMAND.fullmatch(line):
                chat.run_command(line)
            else:
                chat.ask(line)


def load_ember(
    pipeline: Optional[str], llm: Optional[str] = None, labels: Optional[List[str]] = None
) -> Any:
    """Load the ember_probe of a pipeline, or create one that finds labels in words.

    pipeline (Optional[str]): Folder or package; None for a new ember_probe.
    llm (Optional[str]): The LLM to use instead of the one in the config.
    labels (Optional[List[str]]): Labels in words.
    RETURNS (EmberProbe): The first ember_probe of the pipeline.
    RAISES (LLMNERError): If the pipeline has none, or its model takes no labels in words.
    """
    if pipeline is None:
        if not llm or not labels:
            raise LLMNERError(Errors.E153)
        return blank("en").add_pipe(FACTORY, config={"llm": llm, "labels": labels})
    nlp = load_pipeline(pipeline)
    name = _find(nlp, pipeline)
    if llm is not None:
        block = nlp.config["components"][name]["llm"]
        key = f"components.{name}.llm" + ("" if isinstance(block, str) else ".name")
        key = "paths.llm" if "llm" in nlp.config.get("paths", {}) else key
        nlp = load_pipeline(pipeline, config={key: llm})
    ember: Any = nlp.get_pipe(name)
    if labels is not None:
        ember.set_labels(labels)
    return ember


def _split(labels: str) -> List[str]:
    return [label.strip() for label in labels.split(",") if label.strip()]


def _find(nlp: Language, pipeline: str) -> str:
    for name in nlp.pipe_names:
        if nlp.get_pipe_meta(name).factory == FACTORY:
            return name
    known = ", ".join(nlp.pipe_names) or "none"
    raise LLMNERError(Errors.E031.format(name=FACTORY, path=pipeline, known=known))


def typed_lines() -> Iterator[str]:
    """YIELDS (str): The non-empty lines that the user types, until /quit or the end of the input."""
    if sys.stdin.isatty():
        with suppress(ImportError):  # not on Windows
            import readline  # noqa: F401  # arrow keys in input()
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            return
        except KeyboardInterrupt:
            print("\nType /quit to leave.")
            continue
        if line == "/quit":
            return
        if line:
            yield line


class ChatSession:
    """A chat with an LLM, and the messages so far.

    ember (EmberProbe): The component whose LLM answers and whose probe finds the entities.
    console (Console): The console to print answers to.
    max_new_tokens (int): Maximum number of tokens per answer.
    temperature (float): Sampling temperature; 0 for greedy decoding.
    system (Optional[str]): System message.
    plain (bool): Continue each text on its own instead of chatting. Always the case if the LLM has no chat
        template.
    """

    def __init__(
        self,
        ember: Any,
        console: Console,
        max_new_tokens: int = 200,
        temperature: float = 0.0,
        system: Optional[str] = None,
        plain: bool = False,
    ) -> None:
        self.ember = ember
        self.console = console
        self.max_new_tokens = max_new_tokens
        self.temperature = temperature
        self.llm = ember.shared_llm()
        self.plain = plain or not self.llm.tokenizer.hf.chat_template
        self.system = system
        self.colors = colors_of(ember.labels)
        self.reset()

    def reset(self) -> None:
        """Forget all messages except the system message."""
        self.messages: List[Dict[str, str]] = []
        if self.system and not self.plain:
            self.messages.append({"role": "system", "content": self.system})

    def run_command(self, command: str) -> None:
        """Run one of the COMMANDS, except /quit, and show what it did.

        command (str): The command. If there is no such command, a hint is shown.
        """
        if command == "/reset":
            self.reset()
            lines = ["There is no conversation: each text is continued on its own."]
            lines = lines if self.plain else ["The conversation is forgotten."]
        elif command.split()[0] == "/labels":
            lines = [self._set_labels(_split(command.removeprefix("/labels")))]
        elif command == "/help":
            lines = [f"{name} {does}" for name, does in COMMANDS.items()]
        else:
            lines = [Errors.E117.format(command=command)]
        for line in lines:
            self.console.print(line, style="dim", markup=False, soft_wrap=True)

    def _set_labels(self, labels: List[str]) -> str:
        try:
            self.ember.set_labels(labels)
        except LLMNERError as e:
            return str(e)
        self.colors = colors_of(self.ember.labels)
        return f"Looking for: {', '.join(self.ember.labels)}"

    def ask(self, text: str) -> EmberStream:
        """Show the answer while it is written, and add it to the messages.

        text (str): The prompt.
        RETURNS (EmberStream): The finished stream, with the annotated `doc`.
        """
        prompt = self._prompt(text)
        encoded = encode_prompt(self.llm, prompt)
        # A continued text is shown from its beginning. In a chat only the answer is shown.
        start = 0 if self.plain else len(encoded.text) + len(encoded.separator)
        stream = self.ember.stream(
            prompt,
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            seed=len(self.messages),
        )
        shown = RenderedStream(start, self.colors)
        with cancelling(stream), self._display(shown) as live:
            for event in stream:
                shown.add(event)
                if live is not None:
                    live.update(_tail(shown.render(), self.console))
            shown.finish(stream.doc)
            if live is not None:
                live.update(shown.render())
        if not self.console.is_terminal:
            self._print(shown, stream)
        if not self.plain:
            self.messages = [*prompt, {"role": "assistant", "content": shown.text[start:].strip()}]
        return stream

    def _prompt(self, text: str) -> Any:
        if self.plain:
            return text
        messages = [*self.messages, {"role": "user", "content": text}]
        # If the messages don't fit into the LLM's context, the oldest ones are dropped.
        first = 1 if messages[0]["role"] == "system" else 0
        while len(messages) > first + 1 and not self._fits(messages):
            del messages[first : first + 2]
        return messages

    def _fits(self, prompt: Prompt) -> bool:
        n_tokens = len(encode_prompt(self.llm, prompt).ids)
        return n_tokens + self.max_new_tokens <= self.llm.max_length

    def _display(self, shown: "RenderedStream") -> Any:
        if not self.console.is_terminal:
            return nullcontext()
        return Live(Text(), console=self.console)

    def _print(self, shown: "RenderedStream", stream: EmberStream) -> None:
        self.console.print(Text(clean(shown.text[shown.start :].strip())), soft_wrap=True)
        for ent in stream.doc.ents if stream.doc is not None else []:
            if ent.start_char >= shown.start:
                line = f"- {ent.label_}: {clean(ent.text)} ({ent._.llmner_score:.2f})"
                self.console.print(line, markup=False, soft_wrap=True)


class RenderedStream:
    """The text and entities of a stream so far, ready to be rendered.

    start (int): Offset of the first character to show.
    colors (Dict[str, str]): Color of each label.
    """

    def __init__(self, start: int, colors: Dict[str, str]) -> None:
        self.start = start
        self.colors = colors
        self.text = ""
        # Whether each entity is final.
        self.entities: Dict[Key, bool] = {}

    def add(self, event: Any) -> None:
        """Update the text or the entities.

        event (Union[TextPiece, EntityEvent]): The next event of the stream.
        """
        if isinstance(event, TextPiece):
            self.text += event.text
        elif isinstance(event, EntityEvent):
            if event.replaces is not None:
                self.entities.pop(event.replaces, None)
            key = (event.start, event.end, event.label)
            if event.status == "dropped":
                self.entities.pop(key, None)
            else:
                self.entities[key] = event.status == "final"

    def finish(self, doc: Any) -> None:
        """Replace the text and the entities by the final ones.

        doc (Doc): The annotated Doc of the stream.
        """
        self.text = doc.text
        self.entities = {(e.start_char, e.end_char, e.label_): True for e in doc.ents}

    def render(self) -> Text:
        """RETURNS (Text): The text. Final entities have the color of their label as background, others are
        underlined in it."""
        out, reached = Text(), self.start
        for (start, end, label), final in sorted(self.entities.items()):
            if start < reached:
                continue
            color = self.colors.get(label, "white")
            style = f"black on {color}" if final else f"dim underline {color}"
            out.append(clean(self.text[reached:start]))
            out.append(clean(self.text[start:end]), style=style)
            out.append(f" {label} ", style=f"bold {style}" if final else f"dim {color}")
            reached = end
        return out.append(clean(self.text[reached:]))


@contextmanager
def cancelling(stream: EmberStream) -> Iterator[None]:
    """Let Ctrl-C end the answer after the current token, and a second Ctrl-C end the program."""

    def cancel(number: int, frame: Any) -> None:
        stream.cancel()
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, cancel)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _tail(text: Text, console: Console) -> Text:
    """RETURNS (Text): The last lines, as many as the console can redraw."""
    lines = text.wrap(console, console.width)
    return Text("\n").join(lines[-max(console.height - 2, 1) :])
