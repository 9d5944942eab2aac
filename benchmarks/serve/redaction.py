"""Redaction over HTTP: words held back, and leaks.

    python -m benchmarks.serve.redaction

A server writes made-up texts, which are cut anywhere into pieces. `spacy llmner serve --upstream` runs in
front of it in another process, and a client asks for redacted streams. The pipeline's LLM is tiny and has
random weights: right or wrong, all that it finds must be redacted. After each piece, the words are counted
that the server in front has, but not the client. Then the pipeline annotates each text as a whole. A leak
is an entity of that Doc with a character that the client got.
"""

import json
import random
import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Set

import httpx2
import numpy as np
import spacy
import torch
import typer
from spacy.tokens import Doc
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route

from benchmarks.lib.common import save
from benchmarks.lib.overhead import made_up_texts, train
from benchmarks.serve.load import serving
from benchmarks.serve.thread import ServerThread

MARK = "⟦{label}⟧"
MAX_HOLDS = (8, 4)
# What is put between the words of some texts.
ODD = (
    "\n",
    "  ",
    "\t",
    " 🚀 ",
    " – ",
    " [PERSON] ",
    " (",
    ") ",
    " 東京 ",
    "'s ",
    " \u200b",
    "...",
    " e\u0301 ",
)


class Answer(NamedTuple):
    """What a client got.

    text (str): The redacted text.
    lengths (List[int]): Number of its characters that the client had after each piece.
    """

    text: str
    lengths: List[int]


def main(texts: int = 3000, seed: int = 0) -> None:
    """Send all texts without `max_hold`, and some of them with it. Save what was held back or leaked."""
    torch.set_num_threads(1)
    rng = random.Random(seed)
    # One sentence of each text, which ends with a space and a full stop.
    sentences = [text.split(" .")[0] + " ." for text, _ in made_up_texts(texts, seed=seed + 2)]
    all_pieces = [cut(rng, odd(rng, text)) for text in sentences]
    with TemporaryDirectory() as folder:
        sgd = {"learn_rate": 0.003, "L2": 0.0}
        config = {"feature_cache": "off"}
        path = Path(folder)
        train(path, "ember_probe", config, n_texts=200, n_steps=40, sgd=sgd, drop=0.3)
        nlp = spacy.load(path / "pipeline")
        docs = [nlp("".join(pieces)) for pieces in all_pieces]
        upstream = ServerThread(upstream_app(all_pieces))
        try:
            with serving(str(path / "pipeline"), "--upstream", upstream.url) as (url, _):
                rows = [measure(url, all_pieces, docs, None)]
                some = all_pieces[: texts // 6], docs[: texts // 6]
                rows += [measure(url, *some, max_hold) for max_hold in MAX_HOLDS]
        finally:
            upstream.stop()
        ember: Any = nlp.get_pipe("ember_probe")
        max_words = ember.predictor().probe.settings.max_words
    counts = {
        "texts": texts,
        "pieces": sum(map(len, all_pieces)),
        "words": sum(map(len, docs)),
        "entities": sum(len(doc.ents) for doc in docs),
        "max_words_of_an_entity": max_words,
    }
    save("serve_redaction", {**counts, "rows": rows})


def measure(
    url: str, all_pieces: List[List[str]], docs: List[Doc], max_hold: Optional[int]
) -> Dict[str, Any]:
    """RETURNS (Dict[str, Any]): What was held back and what leaked, with or without `max_hold`."""
    held: List[int] = []
    n_leaks = n_differing = n_too_long = 0
    with httpx2.Client(timeout=300) as client:
        for i, (pieces, doc) in enumerate(zip(all_pieces, docs)):
            answer = ask(client, url, i, max_hold)
            parts = re.split("(⟦[^⟧]*⟧)", answer.text)
            n_too_long += parts.count(MARK.format(label="REDACTED"))
            n_differing += max_hold is None and answer.text != redacted(doc)
            ends = align(hidden(doc), parts)
            if ends is None:
                n_leaks += 1
                print("LEAK", repr(doc.text), repr(answer.text), flush=True)
            else:
                held += held_words(pieces, parts, ends, answer.lengths)
            if i % 500 == 499:
                print(max_hold, i + 1, "texts", n_leaks, "leaks", flush=True)
    return {
        "max_hold": max_hold,
        "texts": len(docs),
        "texts_with_leaks": n_leaks,
        "texts_that_differ_from_finished_text": None if max_hold else n_differing,
        "replaced_because_held_for_too_long": n_too_long,
        "held_words_median": float(np.median(held)),
        "held_words_p95": float(np.percentile(held, 95)),
        "held_words_max": max(held),
    }


def odd(rng: random.Random, text: str) -> str:
    """RETURNS (str): A text with odd characters between some of its words."""
    if rng.random() < 0.5:
        return text
    return "".join(rng.choice(ODD) if c == " " and rng.random() < 0.2 else c for c in text)


def cut(rng: random.Random, text: str) -> List[str]:
    """RETURNS (List[str]): The text in pieces of random sizes: of a few characters, or of up to 60."""
    pieces, longest = [], rng.choice([6, 20, 60])
    while text:
        size = rng.randint(1, longest)
        pieces.append(text[:size])
        text = text[size:]
    return pieces


def upstream_app(all_pieces: List[List[str]]) -> Starlette:
    """RETURNS (Starlette): A server that answers a number with the pieces of the text of this number. Each
    chunk counts the pieces so far in its `usage`, which the server in front passes on at once."""

    def lines(pieces: List[str]) -> Iterator[str]:
        for k, piece in enumerate(pieces, 1):
            yield line({"delta": {"content": piece}, "finish_reason": None}, k)
        yield line({"delta": {}, "finish_reason": "stop"}, 0)
        yield "data: [DONE]\n\n"

    def line(choice: Dict[str, Any], k: int) -> str:
        usage = {"prompt_tokens": 0, "completion_tokens": k, "total_tokens": k}
        chunk = {"id": "x", "choices": [{"index": 0, **choice}], "usage": usage}
        return f"data: {json.dumps(chunk)}\n\n"

    async def chat(request: Request) -> StreamingResponse:
        body = await request.json()
        pieces = all_pieces[int(body["messages"][0]["content"])]
        return StreamingResponse(lines(pieces), media_type="text/event-stream")

    return Starlette(routes=[Route("/chat/completions", chat, methods=["POST"])])


def ask(client: httpx2.Client, url: str, number: int, max_hold: Optional[int]) -> Answer:
    """RETURNS (Answer): A text as the client gets it."""
    body = {
        "model": "made-up",
        "messages": [{"role": "user", "content": str(number)}],
        "stream": True,
        "entities": {"mode": "redact", "placeholder": MARK, "max_hold": max_hold},
    }
    text, lengths = "", []
    reply = client.post(f"{url}/v1/chat/completions", json=body).raise_for_status()
    for line in reply.text.split("\n"):
        if not line.startswith("data: {"):
            continue
        chunk = json.loads(line.removeprefix("data: "))
        assert "error" not in chunk, chunk
        for choice in chunk["choices"]:
            text += choice["delta"].get("content") or ""
        if (chunk.get("usage") or {}).get("completion_tokens"):
            lengths.append(len(text))
    return Answer(text, lengths)


def redacted(doc: Doc) -> str:
    """RETURNS (str): The text that the client must get without `max_hold`."""
    out, end = "", 0
    for ent in doc.ents:
        out += doc.text[end : ent.start_char] + MARK.format(label=ent.label_)
        end = ent.end_char
    return out + doc.text[end:]


def hidden(doc: Doc) -> str:
    """RETURNS (str): The text, with NUL instead of the characters of entities."""
    text = doc.text
    for ent in doc.ents:
        size = ent.end_char - ent.start_char
        text = text[: ent.start_char] + "\0" * size + text[ent.end_char :]
    return text


def align(text: str, parts: List[str]) -> Optional[List[int]]:
    """Find which characters of a text the parts of the redacted text stand for.

    text (str): The text, with NUL instead of what must not leave.
    parts (List[str]): Parts of the text that left, and placeholders, in turns.
    RETURNS (Optional[List[int]]): Where in the text each part ends. None if something that left is nowhere
        in the text where it could be.
    """
    reached: List[Set[int]] = [{0}]
    for i, part in enumerate(parts):
        if i % 2 == 0:
            now = {at + len(part) for at in reached[-1] if text.startswith(part, at)}
        else:
            now = set(range(min(reached[-1]) + 1, len(text) + 1))
        if not now:
            return None
        reached.append(now)
    if len(text) not in reached[-1]:
        return None
    ends, at = [], len(text)
    for i, part in reversed(list(enumerate(parts))):
        ends.append(at)
        at = at - len(part) if i % 2 == 0 else max(k for k in reached[i] if k < at)
    return ends[::-1]


def held_words(
    pieces: List[str], parts: List[str], ends: List[int], lengths: List[int]
) -> List[int]:
    """RETURNS (List[int]): The number of words that were held back after each piece."""
    text, out, n_arrived = "".join(pieces), [], 0
    for piece, length in zip(pieces, lengths, strict=True):
        n_arrived += len(piece)
        at, done = 0, 0
        for i, (part, end) in enumerate(zip(parts, ends)):
            at += len(part)
            if at >= length:
                # A part that left is complete only up to here; a placeholder stands for all of its words.
                done = end - (at - length) if i % 2 == 0 else end
                break
        out.append(len(text[done:n_arrived].split()))
    return out


if __name__ == "__main__":
    typer.run(main)
