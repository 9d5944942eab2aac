"""Start `spacy llmner serve`, ask it three questions with OpenAI's own client, print the answers with their
entities, and stop it.
"""

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from typing import Any, Dict, Iterator, List

import typer

STARTED = re.compile(r"running on (http://\S+)")
QUESTION = "Who invented the World Wide Web, and where?"
TEXT = "The physicist Marie Curie was born in Warsaw. In Paris, she met Pierre Curie, and"


def main(
    pipeline: str = typer.Argument(..., help="Pipeline with an ember_probe: a folder or package"),
    max_tokens: int = typer.Option(80, "--max-tokens", min=1, help="Maximum tokens per answer"),
) -> None:
    """Ask a server three questions: with the entities of the answers, and with entities redacted."""
    try:
        from openai import OpenAI
    except ModuleNotFoundError:
        command = 'pip install openai "spacy-llmner[serve]"'
        typer.echo(f"✘ The client is missing. Install it: {command}", err=True)
        raise typer.Exit(1) from None
    with serving(pipeline) as url:
        client = OpenAI(
            base_url=f"{url}/v1", api_key=os.environ.get("SPACY_LLMNER_API_KEY", "none")
        )
        model = next(iter(client.models.list())).id
        settings: Dict[str, Any] = {"model": model, "max_tokens": max_tokens, "stream": True}
        messages = [{"role": "user", "content": QUESTION}]
        for mode in ("annotate", "redact"):
            print(f"\n--- A chat, mode {mode}: {QUESTION}")
            asked = {"entities": {"mode": mode}}
            show(client.chat.completions.create(messages=messages, extra_body=asked, **settings))
        print(f"\n--- A text to continue, mode annotate: {TEXT}")
        asked = {"entities": {"mode": "annotate"}, "repetition_penalty": 1.2}
        show(client.completions.create(prompt=TEXT, extra_body=asked, **settings))
    print("\nThe server has stopped.")


@contextmanager
def serving(pipeline: str) -> Iterator[str]:
    """Run a server on a free port.

    pipeline (str): The pipeline.
    YIELDS (str): Its URL.
    """
    command = [sys.executable, "-m", "spacy", "llmner", "serve", pipeline, "--port", "0"]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, encoding="utf8"
    )
    assert process.stderr is not None
    try:
        log: List[str] = []
        for line in process.stderr:
            log.append(line)
            if started := STARTED.search(line):
                break
        else:
            typer.echo("".join(log), err=True)
            raise typer.Exit(1)
        yield started.group(1)
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)


def show(stream: Any) -> None:
    """Print the text of an answer while it comes, and then its entities."""
    begin, first, entities = time.monotonic(), 0.0, []
    for chunk in stream:
        choice = chunk.choices[0]
        text = choice.text if hasattr(choice, "text") else choice.delta.content
        if text and not first:
            first = time.monotonic() - begin
        print(text or "", end="", flush=True)
        entities += [ent for ent in getattr(choice, "entities", ()) if ent["status"] == "final"]
    print(f"\n({first:.1f} s until the first text, {time.monotonic() - begin:.1f} s in all)")
    for ent in entities:
        print(
            f"  {ent['start']:4d}-{ent['end']:<4d} {ent['label']:10s} {ent['score']:.2f}  {ent['text']}"
        )


if __name__ == "__main__":
    typer.run(main)
