"""Many streams side by side: tokens per second, and the cost of finding entities in them.

    python -m benchmarks.ember.many_streams training/ember_probe/model-best

For 1, 4 and 8 streams, rounds with and without `ember_probe` alternate in one process. A round adds one
token to every stream. Times are CPU times of one thread. The same is done for streams with a context of
1,000 tokens.
"""

import statistics
from pathlib import Path
from typing import Any, Dict, List

import spacy
import torch
import typer

from benchmarks.lib.common import clock_of, save
from spacy_llmner.ember_probe.streaming.events import TextPiece
from spacy_llmner.ember_probe.streaming.rounds import RoundStream, StreamRounds
from spacy_llmner.llm.growing_texts import GrowingTexts
from spacy_llmner.llm.hidden_states import FeatureSpec
from spacy_llmner.llm.tree_attention import run_decoder

PROMPT = (
    "In the spring of {year}, the engineer Amara Lindqvist left Trondheim for Valparaíso to build the "
    "observatory of the Southern Star Company. Her diary tells the story of the journey:"
)
CONTEXT = 1000


class Collected(RoundStream):
    """A stream that counts its rounds until the first new text."""

    n_texts = 0
    ended = False

    def flush(self) -> None:
        self.n_texts += sum(isinstance(event, TextPiece) for event in self.take_events())

    def end(self, error: Any) -> None:
        if error is not None:
            raise error
        self.ended = True


class PlainTexts(GrowingTexts):
    """Growing texts whose hidden states are not recorded."""

    @torch.no_grad()
    def _pass(self, ids: Any, positions: Any, tree_pass: Any) -> Any:
        last = run_decoder(self.llm.decoder, ids, positions, tree_pass)
        return self.llm.logits(last[:, -1]), [None] * len(ids)


class Plain:
    """Generates the same texts without a probe."""

    def __init__(self, llm: Any, prompts: List[List[int]]) -> None:
        self.texts = PlainTexts(llm, FeatureSpec(layers=()))
        self.tokens = {
            k: int(self.texts.read_prompt(k, ids, True)[0].argmax())
            for k, ids in enumerate(prompts)
        }

    def round(self) -> None:
        read = self.texts.step(self.tokens)
        self.tokens = {k: int(logits.argmax()) for k, (logits, _) in read.items()}


def main(
    pipeline: Path,
    rounds: int = 128,
    long_rounds: int = 32,
    repeats: int = 3,
    name: str = "ember_many_streams",
) -> None:
    nlp = spacy.load(pipeline)
    ember: Any = nlp.get_pipe("ember_probe")
    rows = []
    for context, n_rounds in ((None, rounds), (CONTEXT, long_rounds)):
        for n in (1, 4, 8):
            measured = [compare(ember, n, context, n_rounds, k) for k in range(repeats)]
            row = {
                "streams": n,
                "context": context or len(ember.shared_llm().tokenizer.encode(prompt_of(0)).ids),
                "rounds": n_rounds,
                **{key: statistics.median(m[key] for m in measured) for key in measured[0]},
                "ratios": [m["ratio"] for m in measured],
            }
            row["tokens_per_s"] = 1000 * n / row["ember_ms"]
            rows.append(row)
            print(row, flush=True)
    save(
        name,
        {
            "llm": ember.shared_llm().spec.name,
            "rows": rows,
            "speed_up_8_over_1": rows[2]["tokens_per_s"] / rows[0]["tokens_per_s"],
            "speed_up_8_over_1_long": rows[5]["tokens_per_s"] / rows[3]["tokens_per_s"],
        },
    )


def prompt_of(k: int, words: int = 0) -> str:
    text = PROMPT.format(year=1880 + k)
    return " ".join((text.split() * (1 + words // len(text.split())))[:words]) if words else text


def compare(ember: Any, n: int, context: Any, rounds: int, repeat: int) -> Dict[str, float]:
    """RETURNS (Dict[str, float]): Milliseconds per round without and with the probe (medians), their
    ratio, MB per stream of keys and values and of what the probe keeps, and the number of rounds until
    the first new text.
    """
    predictor = ember.predictor()
    llm = predictor.llm
    clock = clock_of(llm.device)
    prompts = [prompt_of(k) for k in range(n)]
    encoded = [llm.tokenizer.bos + llm.tokenizer.encode(p).ids for p in prompts]
    if context:
        prompts = [prompt_of(k, context) for k in range(n)]
        encoded = [llm.tokenizer.bos + llm.tokenizer.encode(p).ids[:context] for p in prompts]
        prompts = [llm.tokenizer.hf.decode(ids[len(llm.tokenizer.bos) :]) for ids in encoded]
    streams = StreamRounds(llm, predictor.reader.probed)
    collected = [Collected(predictor, p, max_new_tokens=4 * rounds) for p in prompts]
    for stream in collected:
        streams.add(stream)
    first = 0
    while min(stream.n_texts for stream in collected) < 2:
        streams.round()
        first += 1
    plain = Plain(llm, encoded)
    times: Dict[str, List[float]] = {"plain": [], "ember": []}
    loops = {"plain": plain.round, "ember": streams.round}
    for k in range(rounds):
        if any(stream.ended for stream in collected):
            break
        for mode in loops if (k + repeat) % 2 else reversed(loops):
            start = clock()
            loops[mode]()
            times[mode].append(clock() - start)
    kept = streams.texts._rows
    tensors = [*kept.keys.values(), *kept.values.values()]
    hidden = [h for stream in collected for h in stream._live.hidden]
    return {
        "plain_ms": 1000 * statistics.median(times["plain"]),
        "ember_ms": 1000 * statistics.median(times["ember"]),
        "ratio": statistics.median(times["ember"]) / statistics.median(times["plain"]),
        "cache_mb_per_stream": sum(t.nbytes for t in tensors) / n / 1e6,
        "features_mb_per_stream": sum(h.nbytes for h in hidden) / n / 1e6,
        "rounds_to_first_text_per_stream": first / n,
        "rounds_measured": len(times["plain"]),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    typer.run(main)
