"""Redaction of a text that arrives in pieces: words held back, leaks, and the cost of reading.

    python -m benchmarks.ember.redaction training/ember_probe/model-best assets/en_test.jsonl

The texts are joined to documents, and sent in pieces of a few characters, as from the API of another LLM.
After each piece, the words that have arrived but are not released yet are counted. Then each document is
read as a finished text. A leak is an entity of the finished text with a character that was released.
"""

import json
import re
from pathlib import Path
from typing import Any, Dict, List

import numpy as np
import spacy
import torch
import typer

from benchmarks.lib.common import clock_of, save
from spacy_llmner import Redactor, Restorer


def main(
    pipeline: Path,
    texts: Path,
    per_document: int = 10,
    n_documents: int = 1000,
    size: int = 4,
    name: str = "ember_redaction",
) -> None:
    nlp = spacy.load(pipeline)
    ember: Any = nlp.get_pipe("ember_probe")
    llm = ember.shared_llm()
    clock = clock_of(llm.device)
    lines = [json.loads(line)["text"] for line in texts.read_text(encoding="utf8").splitlines()]
    documents = [" ".join(lines[i : i + per_document]) for i in range(0, len(lines), per_document)]
    documents = documents[:n_documents]
    nlp(documents[0])
    seconds = {"pieces": 0.0, "finished": 0.0}
    held: List[int] = []
    n_words = n_entities = n_leaks = n_differing = 0
    for text in documents:
        start = clock()
        out = redact(ember, [text[i : i + size] for i in range(0, len(text), size)], held)
        seconds["pieces"] += clock() - start
        start = clock()
        doc = nlp(text)
        seconds["finished"] += clock() - start
        n_words += len(doc)
        n_entities += len(doc.ents)
        n_leaks += sum(leaks(out["released"], ent) for ent in doc.ents)
        n_differing += out["text"] != text or out["entities"] != entities(doc)
        print(n_words, "words", n_entities, "entities", n_leaks, "leaks", flush=True)
    save(
        name,
        {
            "llm": llm.spec.name,
            "llm_device": str(llm.device),
            "documents": len(documents),
            "words": n_words,
            "entities": n_entities,
            "characters_per_piece": size,
            "max_words": ember.predictor().probe.settings.max_words,
            "leaks": n_leaks,
            "documents_that_differ_from_finished_text": n_differing,
            "held_words_median": float(np.median(held)),
            "held_words_p95": float(np.percentile(held, 95)),
            "held_words_max": max(held),
            "ms_per_word_in_pieces": 1000 * seconds["pieces"] / n_words,
            "ms_per_word_finished": 1000 * seconds["finished"] / n_words,
        },
    )


def redact(ember: Any, pieces: List[str], held: List[int]) -> Dict[str, Any]:
    """Redact a document, and add the number of words that are held back after each piece to `held`.

    RETURNS (Dict[str, Any]): The restored text, the entities of the reader's Doc, and whether each
        character was released.
    """
    reader = ember.reader()
    redactor = Redactor(reader, placeholder="⟦{label}_{n}⟧")
    out = ""
    n_done = 0
    for piece in pieces:
        reader.push(piece)
        new = redactor.release()
        out += new
        n_done += len(restored(new, redactor.originals))
        held.append(len(reader.text[n_done:].split()))
    reader.close()
    out += redactor.release()
    hidden = re.sub("⟦[^⟧]*⟧", lambda m: "\0" * len(redactor.originals[m.group()]), out)
    return {
        "text": restored(out, redactor.originals),
        "entities": entities(reader.doc),
        "released": [char != "\0" for char in hidden],
    }


def restored(text: str, originals: Dict[str, str]) -> str:
    restorer = Restorer(originals)
    return restorer.push(text) + restorer.close()


def entities(doc: Any) -> List[Any]:
    return [(ent.start_char, ent.end_char, ent.label_) for ent in doc.ents]


def leaks(released: List[bool], ent: Any) -> bool:
    return any(released[ent.start_char : ent.end_char])


if __name__ == "__main__":
    torch.set_num_threads(1)
    typer.run(main)
