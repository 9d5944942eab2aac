"""RA-IT compared with plain instruction tuning: tuned on a mix of public corpora, asked for types of
others.

    python -m benchmarks.ra_it.transfer DATA --minutes 8 --docs 20 --seeds 2

DATA contains `fewnerd`, `wnut17`, `conll03`, `litbank` and `crossner` as their publishers wrote them. RA-IT
and plain tuning are tuned on the same texts in the same order: for the same CPU time, in which plain tuning
sees more texts, and on the same number of texts. All read the same test texts of the five CrossNER domains:
without examples, after the nearest tuning texts, after those of them that pass the published gate, and
after the nearest texts of the domain's own training data. The label `misc` is left out.
"""

import random
import string
from pathlib import Path
from time import process_time
from typing import Any, Dict, Iterable, List, Optional, Set, Tuple

import spacy
import typer
from spacy.language import Language
from thinc.api import Adam
from tqdm import tqdm

from benchmarks.lib.common import earlier_runs, save
from benchmarks.ra_it.corpora import DOMAINS, TUNED_ON, mix, read_docs, sample, without_entities

MODES = ("without examples", "nearest", "gated", "in-domain")
# Share of the tuning in which the learning rate rises.
WARMUP = 0.1
SAME_NUMBER = "vanilla, as many texts"
# Number of examples before each tuning text. SAME_NUMBER is tuned on as many texts as the way before it.
WAYS = {"RA-IT": 2, SAME_NUMBER: 0, "vanilla": 0}


def main(
    data: Path,
    minutes: float = 8.0,
    docs: int = 20,
    seeds: int = 1,
    first_seed: int = 0,
    pool: int = 1000,
    llm: str = "smollm2-135m-instruct",
    device: str = "cpu",
    name: str = "ra_it_transfer",
) -> None:
    """Tune and score. Runs of an earlier result with seeds below the first are reused."""
    runs = earlier_runs(name, first_seed)
    used = settings(minutes, docs, first_seed + seeds, pool)
    for seed in range(first_seed, first_seed + seeds):
        texts: Optional[int] = None
        for way, k in WAYS.items():
            limit = texts if way == SAME_NUMBER else None
            nlp, steps, texts = tune(data, k, seed, minutes, pool, llm, device, limit)
            for domain in DOMAINS:
                for mode in MODES:
                    scores = evaluate(nlp, data, domain, mode, docs, pool)
                    runs.append(
                        {"seed": seed, "way": way, "domain": domain, "mode": mode, **scores}
                    )
                    runs[-1].update({"steps": steps, "texts_tuned_on": texts})
                    save(name, {"settings": used, "runs": runs})
    summary = {way: {mode: averages(runs, way, mode) for mode in MODES} for way in WAYS}
    save(name, {"settings": used, "mean": summary, "runs": runs})


def settings(minutes: float, docs: int, seeds: int, pool: int) -> Dict[str, Any]:
    return {
        "processor_minutes_of_tuning": minutes,
        "test_texts_per_domain": docs,
        "seeds": seeds,
        "texts_to_tune_on": pool,
        "tuned_on": list(TUNED_ON),
    }


def tune(
    data: Path,
    k: int,
    seed: int,
    minutes: float,
    pool: int,
    llm: str,
    device: str,
    texts: Optional[int] = None,
) -> Tuple[Language, int, int]:
    """Tune a pipeline with `ra_it_ner`.

    k (int): Number of examples before each text.
    minutes (float): CPU minutes of tuning.
    pool (int): Number of texts to tune on.
    texts (Optional[int]): Tune until this number of texts has been seen, however long it takes.
    RETURNS (Tuple[Language, int, int]): The tuned pipeline, the number of updates, and of texts seen.
    """
    nlp = spacy.blank("en")
    shared = {"@misc": "spacy_llmner.LLM.v1", "name": llm, "device": device}
    config = {
        "llm": shared,
        "retrieval": {"@misc": "spacy_llmner.Retrieval.v1", "k": k},
        "model": {
            "@architectures": "spacy_llmner.RAIT.v1",
            "system": "",
            "rank": 16,
            "alpha": 32,
        },  # fmt: skip
    }
    nlp.add_pipe("ra_it_ner", config=config)
    examples = mix(nlp, data, pool)
    random.seed(seed)
    nlp.initialize(lambda: examples)
    order = random.Random(seed)
    sgd = Adam(0.002, L2=0.0, grad_clip=1.0, use_averages=False)
    start, steps, learnt = process_time(), 0, 0
    bar = tqdm(total=100, desc=f"k={k}", unit="%")
    share = 0.0
    while share < 1.0:
        sgd.learn_rate = 0.002 * min(share / WARMUP + 0.01, 1.0) * max(1.0 - share, 0.02)
        batch = order.sample(examples, 6)
        nlp.update(batch, sgd=sgd)
        steps, learnt = steps + 1, learnt + len(batch)
        share = learnt / texts if texts else (process_time() - start) / (60 * minutes)
        bar.update(int(100 * share) - bar.n)
    bar.close()
    return nlp, steps, learnt


def evaluate(
    nlp: Language, data: Path, domain: str, mode: str, n: int, pool: int
) -> Dict[str, float]:
    """Score a domain without the label misc.

    mode (str): One of MODES.
    n (int): Number of test texts.
    pool (int): Number of texts that were tuned on.
    RETURNS (Dict[str, float]): Strict F1, F1 of strings, and the mean number of examples.
    """
    gold = sample(nlp, data, domain, "test", n)
    train = list(read_docs(nlp, data / "crossner" / domain / "train.txt"))
    pipe: Any = nlp.get_pipe("ra_it_ner")
    labels = sorted({ent.label_ for doc in train for ent in doc.ents} - {"misc"})
    pipe.set_labels(labels)
    index, strategy = pipe.index, pipe.retrieval
    try:
        pipe.cfg["use_examples"] = "never" if mode == "without examples" else "always"
        gate = {"gate": "bm25", "threshold": 20.0} if mode == "gated" else {}
        if mode == "in-domain":
            own = type(index)(pipe.encoder)
            pipe.set_index(own)
            pipe.add_examples(train)
        # After plain tuning, texts are read after examples, too.
        pipe.retrieval = type(strategy)(k=2, **gate)
        own_pool = strategy.k or mode == "in-domain"
        pipe.set_index(pipe.index if own_pool else tuning_pool(pipe, nlp, data, pool))
        found = list(nlp.pipe(without_entities(nlp, doc) for doc in gold))
    finally:
        pipe.retrieval = strategy
        pipe.set_index(index)
    shown = [len(c["examples"]) for doc in found for c in doc._.llmner_examples]
    strict = [
        ({span(e) for e in a.ents}, {span(e) for e in b.ents if e.label_ in labels})
        for a, b in zip(found, gold)
    ]
    strings = [
        (
            {normalized(e) for e in a.spans["llmner"]},
            {normalized(e) for e in b.ents if e.label_ in labels},
        )
        for a, b in zip(found, gold)
    ]
    return {
        "f_strict": f1(strict),
        "f_strings": f1(strings),
        "examples_mean": sum(shown) / max(len(shown), 1),
    }


_POOLS: Dict[str, Any] = {}


def tuning_pool(pipe: Any, nlp: Language, data: Path, pool: int) -> Any:
    """RETURNS (ExampleIndex): The texts that were tuned on, for a component that was tuned without
    examples."""
    if "mix" not in _POOLS:
        index = type(pipe.index)(pipe.encoder)
        pipe.set_index(index)
        pipe.add_examples(eg.reference for eg in mix(nlp, data, pool))
        _POOLS["mix"] = index
    return _POOLS["mix"]


def span(ent: Any) -> Tuple[int, int, str]:
    return ent.start, ent.end, ent.label_


def normalized(ent: Any) -> Tuple[str, str]:
    """RETURNS (Tuple[str, str]): Text and label as UniversalNER compares them: the text in lower case,
    without punctuation and articles."""
    text = "".join(c for c in ent.text.lower() if c not in string.punctuation)
    words = [w for w in text.split() if w not in ("a", "an", "the")]
    return " ".join(words), ent.label_


def f1(pairs: Iterable[Tuple[Set[Any], Set[Any]]]) -> float:
    pairs = list(pairs)
    right = sum(len(a & b) for a, b in pairs)
    total = sum(len(a) + len(b) for a, b in pairs)
    return 200 * right / total if total else 0.0


def averages(runs: List[Dict[str, Any]], way: str, mode: str) -> Dict[str, float]:
    mine = [r for r in runs if r["way"] == way and r["mode"] == mode]
    return {key: sum(r[key] for r in mine) / len(mine) for key in ("f_strict", "f_strings")}


if __name__ == "__main__":
    typer.run(main)
