"""The cost of finding entities while the LLM writes: generation with and without `ember_probe`.

    python -m benchmarks.ember.streaming training/ember_probe/model-best

Both loops run in one process and alternate token by token, so that other load on the machine slows both.
The loop that goes first changes from pair to pair. Times are CPU times of one thread (on a GPU: wall-clock
times). For comparison, spaCy's `ner` with the efficiency config is run on each complete sentence, and on
the text so far after each token; its cost doesn't depend on its weights.
"""

import statistics
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, Iterator, List

import spacy
import torch
import typer

from benchmarks.lib.common import clock_of, save, spacy_ner
from spacy_llmner.ember_probe.streaming.events import EntityEvent, TextPiece

END = object()
PROMPT = (
    "In the spring of 1889, the engineer Amara Lindqvist left Trondheim for Valparaíso to build the "
    "observatory of the Southern Star Company. Her diary tells the story of the journey:"
)


def main(pipeline: Path, pairs: int = 10, tokens: int = 256, name: str = "ember_streaming") -> None:
    nlp = spacy.load(pipeline)
    ember: Any = nlp.get_pipe("ember_probe")
    llm = ember.shared_llm()
    clock = clock_of(llm.device)
    for _ in plain(llm, 8, []):
        pass
    times: Dict[str, List[float]] = {"plain": [], "ember": []}
    ratios = []
    n_entities = 0
    for k in range(pairs):
        plain_ids: List[int] = []
        events: List[Any] = []
        loops = {
            "plain": plain(llm, tokens, plain_ids),
            "ember": consume(ember.stream(PROMPT, max_new_tokens=tokens), events),
        }
        pair = alternate(loops if k % 2 else dict(reversed(loops.items())), clock)
        n_entities = sum(1 for e in events if isinstance(e, EntityEvent))
        text = "".join(e.text for e in events if isinstance(e, TextPiece))
        for mode, seconds in pair.items():
            times[mode].append(seconds)
        ratios.append(pair["ember"] / pair["plain"])
        print(k, pair, round(ratios[-1], 4), flush=True)
    same = llm.tokenizer.hf.decode(plain_ids) == text[len(PROMPT) :]
    plain_seconds = statistics.median(times["plain"])
    separate = {
        mode: 1 + statistics.median(seconds) / plain_seconds
        for mode, seconds in separate_ner(text, len(PROMPT), llm, plain_ids).items()
    }
    save(
        name,
        {
            "llm": llm.spec.name,
            "llm_device": str(llm.device),
            "new_tokens": tokens,
            "pairs": pairs,
            "same_text": same,
            "entity_events": n_entities,
            "plain_ms_per_token": 1000 * plain_seconds / tokens,
            "ratio_median": statistics.median(ratios),
            "ratio_min": min(ratios),
            "ratio_max": max(ratios),
            "ratios": ratios,
            "ratio_of_medians": statistics.median(times["ember"]) / plain_seconds,
            "ratio_spacy_ner_each_sentence": separate["sentence"],
            "ratio_spacy_ner_each_token": separate["token"],
        },
    )


def alternate(loops: Dict[str, Iterator[None]], clock: Callable[[], float]) -> Dict[str, float]:
    """Run loops alternately, step by step.

    RETURNS (Dict[str, float]): Seconds of each loop.
    """
    seconds = dict.fromkeys(loops, 0.0)
    running = dict(loops)
    while running:
        for mode, loop in list(running.items()):
            start = clock()
            if next(loop, END) is END:
                del running[mode]
            seconds[mode] += clock() - start
    return seconds


def consume(stream: Iterable[Any], events: List[Any]) -> Iterator[None]:
    """Collect the events of a stream. One step per piece of text."""
    for event in stream:
        events.append(event)
        if isinstance(event, TextPiece):
            yield


@torch.no_grad()
def plain(llm: Any, tokens: int, ids: List[int]) -> Iterator[None]:
    """Decode greedily with a KV cache, without a probe. One step per token."""
    inputs = llm.tokenizer.bos + llm.tokenizer.encode(PROMPT).ids
    out = llm.model(
        input_ids=torch.tensor([inputs], device=llm.device), use_cache=True, logits_to_keep=1
    )
    for k in range(tokens):
        ids.append(int(out.logits[0, -1].argmax()))
        yield
        if k + 1 < tokens:
            out = llm.model(
                input_ids=torch.tensor([ids[-1:]], device=llm.device),
                past_key_values=out.past_key_values,
                use_cache=True,
                logits_to_keep=1,
            )


def separate_ner(text: str, start: int, llm: Any, ids: List[int]) -> Dict[str, List[float]]:
    """Time spaCy's `ner` on the generated text.

    RETURNS (Dict[str, List[float]]): CPU seconds of five runs on each sentence ("sentence"), and on the
        text so far after each token ("token").
    """
    nlp = spacy_ner()
    sentencizer = spacy.blank("en")
    sentencizer.add_pipe("sentencizer")
    sentences = [s.text for s in sentencizer(text[start:]).sents]
    prefixes = [llm.tokenizer.hf.decode(ids[: k + 1]) for k in range(len(ids))]
    out: Dict[str, List[float]] = {"sentence": [], "token": []}
    for _ in range(5):
        for mode, texts in (("sentence", sentences), ("token", prefixes)):
            begin = time.process_time()
            for part in texts:
                nlp(part)
            out[mode].append(time.process_time() - begin)
    return out


if __name__ == "__main__":
    torch.set_num_threads(1)
    typer.run(main)
