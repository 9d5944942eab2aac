"""Words per second of `nlp.pipe`, compared with forward passes of the LLM alone on the same batches.

    python -m benchmarks.ember.throughput training/ember_probe/model-best

The texts are from this project's English corpus, five sentences per text. The methods alternate in one
process. Times are CPU times of one thread (on a GPU: wall-clock times).
"""

import json
import statistics
from pathlib import Path
from typing import Any, Dict, List

import spacy
import torch
import typer

from benchmarks.lib.common import ROOT, clock_of, save, spacy_ner
from spacy_llmner.llm.views import reading_view
from spacy_llmner.util import batches_by_length

ASSETS = ROOT / "assets"


def main(pipeline: Path, rounds: int = 5, texts: int = 40, name: str = "ember_throughput") -> None:
    lines = (ASSETS / "en_train.jsonl").read_text(encoding="utf8").splitlines()
    sentences = [json.loads(line)["text"] for line in lines]
    documents = [" ".join(sentences[i : i + 5]) for i in range(0, 5 * texts, 5)]
    nlp = spacy.load(pipeline)
    ember: Any = nlp.get_pipe("ember_probe")
    llm = ember.shared_llm()
    n_words = sum(len(nlp.make_doc(text)) for text in documents)
    ids = [llm.tokenizer.bos + llm.tokenizer.encode(text).ids for text in documents]
    batches = [
        padded([ids[i] for i in batch], llm.device)
        for batch in batches_by_length([len(x) for x in ids], ember.max_batch_tokens)
    ]
    probed = ember.word_reader.probed
    view = reading_view(llm, probed.layers, probed.end(llm))
    clock = clock_of(llm.device)
    baseline = spacy_ner()
    seconds: Dict[str, List[float]] = {"pipe": [], "whole": [], "used": [], "spacy": []}
    for k in range(rounds + 1):
        for mode in ("pipe", "whole", "used", "spacy"):
            start = clock()
            if mode == "pipe":
                list(nlp.pipe(documents, batch_size=len(documents)))
            elif mode == "spacy":
                list(baseline.pipe(documents))
            else:
                forward(llm.model if mode == "whole" else view, batches)
            if k:  # the first round warms up
                seconds[mode].append(clock() - start)
    speed = {mode: n_words / statistics.median(values) for mode, values in seconds.items()}
    save(
        name,
        {
            "llm": llm.spec.name,
            "llm_device": str(llm.device),
            "words": n_words,
            "rounds": rounds,
            "words_per_second": speed,
            "pipe_over_whole_llm": speed["pipe"] / speed["whole"],
            "pipe_over_used_layers": speed["pipe"] / speed["used"],
            "spacy_ner_over_pipe": speed["spacy"] / speed["pipe"],
        },
    )
    print(speed)


def padded(texts: List[List[int]], device: torch.device) -> torch.Tensor:
    longest = max(len(ids) for ids in texts)
    return torch.tensor([ids + [0] * (longest - len(ids)) for ids in texts], device=device)


@torch.no_grad()
def forward(model: Any, batches: List[torch.Tensor]) -> None:
    for batch in batches:
        model(input_ids=batch, use_cache=False)


if __name__ == "__main__":
    torch.set_num_threads(1)
    typer.run(main)
