"""RA-IT against plain instruction tuning: tuned on a mix of public sets, asked for the types of others.

    python benchmarks/ra_it_transfer.py DATA --minutes 8 --docs 20 --seeds 2

DATA holds `fewnerd`, `wnut17`, `conll03`, `litbank` and `crossner` as their publishers wrote them. RA-IT
and plain tuning are tuned on the same texts in the same order: for the same processor time, in which
plain tuning sees more texts, and on as many texts. All read the same test texts of the five CrossNER
domains: without examples, behind the nearest of the tuning texts, behind those that pass the published
gate, and behind the nearest of the domain's own train part. `misc` is left out.
"""

import random
import string
import sys
from pathlib import Path
from time import process_time
from typing import Any, Dict, Iterable, Iterator, List, Optional, Set, Tuple

import spacy
import typer
from common import earlier_runs, save
from spacy.language import Language
from spacy.tokens import Doc
from spacy.training import Example
from thinc.api import Adam
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))
from corpora import conll_sentences  # noqa: E402

TUNED_ON = {
    "Few-NERD": "fewnerd/dev.txt",
    "WNUT-17": "wnut17/wnut17train.conll",
    "CoNLL-2003": "conll03/allanj/train.txt",
    "LitBank": "litbank/train.data",
}
DOMAINS = ("ai", "literature", "music", "politics", "science")
# Names that don't say what they mean, or run words together.
WORDS = {
    "PER": "person", "ORG": "organization", "LOC": "location", "MISC": "miscellaneous",
    "FAC": "facility", "GPE": "geopolitical entity", "VEH": "vehicle",
    "location_GPE": "geopolitical entity", "programlang": "programming language",
    "literarygenre": "literary genre", "musicalartist": "musical artist", "musicgenre": "music genre",
    "musicalinstrument": "musical instrument", "politicalparty": "political party",
    "astronomicalobject": "astronomical object", "chemicalcompound": "chemical compound",
    "chemicalelement": "chemical element", "academicjournal": "academic journal",
}  # fmt: skip
MODES = ("without examples", "nearest", "gated", "in-domain")
WARMUP = 0.1
AS_MANY = "vanilla, as many texts"
# How many examples each way is tuned behind. AS_MANY takes the number of texts from the way before it.
WAYS = {"RA-IT": 2, AS_MANY: 0, "vanilla": 0}


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
    """Tune and read. Of an earlier result, the runs of lower seeds than the first are kept."""
    runs = earlier_runs(name, first_seed)
    used = settings(minutes, docs, first_seed + seeds, pool)
    for seed in range(first_seed, first_seed + seeds):
        texts = None
        for way, k in WAYS.items():
            as_many = texts if way == AS_MANY else None
            nlp, steps, texts = tune(data, k, seed, minutes, pool, llm, device, as_many)
            for domain in DOMAINS:
                for mode in MODES:
                    scores = read(nlp, data, domain, mode, docs, pool)
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
    """Tune for some minutes, or on a number of texts if one is given.

    RETURNS: The tuned pipeline, its steps, and how many texts it learnt from.
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


def mix(nlp: Language, data: Path, n: int) -> List[Example]:
    """Take as many texts of each set; each knows the labels of its own set only."""
    out: List[Example] = []
    for part, path in TUNED_ON.items():
        docs = [doc for doc in read_docs(nlp, data / path) if 5 <= len(doc) <= 50]
        inventory = sorted({ent.label_ for doc in docs for ent in doc.ents})
        for doc in random.Random(part).sample(docs, n // len(TUNED_ON)):
            doc._.llmner_labels = inventory
            out.append(Example(bare(nlp, doc), doc))
    return out


def read(nlp: Language, data: Path, domain: str, mode: str, n: int, pool: int) -> Dict[str, float]:
    """Score one domain, misc left out."""
    gold = sampled(nlp, data, domain, "test", n)
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
        # Plain tuning may be read behind examples too.
        pipe.retrieval = type(strategy)(k=2, **gate)
        own_pool = strategy.k or mode == "in-domain"
        pipe.set_index(pipe.index if own_pool else tuning_pool(pipe, nlp, data, pool))
        found = list(nlp.pipe(bare(nlp, doc) for doc in gold))
    finally:
        pipe.retrieval = strategy
        pipe.set_index(index)
    shown = [len(c["examples"]) for doc in found for c in doc._.llmner_examples]
    strict = [({span(e) for e in a.ents}, {span(e) for e in b.ents}) for a, b in zip(found, gold)]
    paper = [
        (
            {text_of(e) for e in a.spans["llmner"]},
            {text_of(e) for e in b.ents if e.label_ in labels},
        )
        for a, b in zip(found, gold)
    ]
    strict = [(a, {s for s in b if s[2] in labels}) for a, b in strict]
    return {
        "f_strict": f1(strict),
        "f_strings": f1(paper),
        "examples_mean": sum(shown) / max(len(shown), 1),
    }


def sampled(nlp: Language, data: Path, domain: str, part: str, n: int) -> List[Doc]:
    """RETURNS (List[Doc]): Texts of a part of a domain, always the same."""
    docs = list(read_docs(nlp, data / "crossner" / domain / f"{part}.txt"))
    return random.Random(domain).sample(docs, n)


_POOLS: Dict[str, Any] = {}


def tuning_pool(pipe: Any, nlp: Language, data: Path, pool: int) -> Any:
    """RETURNS (ExampleIndex): The texts that were tuned on, for a component that was tuned without."""
    if "mix" not in _POOLS:
        index = type(pipe.index)(pipe.encoder)
        pipe.set_index(index)
        pipe.add_examples(eg.reference for eg in mix(nlp, data, pool))
        _POOLS["mix"] = index
    return _POOLS["mix"]


def read_docs(nlp: Language, path: Path) -> Iterator[Doc]:
    """Read a column file. Of nested mentions, the longest are kept."""
    for sentence in conll_sentences(path, nlp, labels=None, nested="litbank" in path.parts):
        doc = Doc(nlp.vocab, words=sentence.words)
        spans = [
            spacy.tokens.Span(doc, start, end, label=word_of(label))
            for start, end, label in sentence.spans
        ]
        doc.set_ents(spacy.util.filter_spans(spans))
        yield doc


def bare(nlp: Language, doc: Doc) -> Doc:
    return Doc(nlp.vocab, words=[t.text for t in doc], spaces=[bool(t.whitespace_) for t in doc])


def word_of(label: str) -> str:
    if label in WORDS:
        return WORDS[label]
    kind, _, detail = label.partition("_")
    if not detail:
        return label
    return f"other {kind}" if detail == "other" else detail


def span(ent: Any) -> Tuple[int, int, str]:
    return ent.start, ent.end, ent.label_


def text_of(ent: Any) -> Tuple[str, str]:
    """As UniversalNER compares: lower case, without punctuation and articles."""
    kept = "".join(c for c in ent.text.lower() if c not in string.punctuation)
    words = [w for w in kept.split() if w not in ("a", "an", "the")]
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
