"""F1, speed and memory of each component with LLMs of different sizes, on the same small samples.

    python -m benchmarks.scaling.run ember_probe conll03 smollm2-135m-instruct --data DATA
    python -m benchmarks.scaling.run few_shot own qwen2.5-coder-0.5b-instruct
    python -m benchmarks.scaling.run el4ner_ensemble own gemma-3-270m+smollm2-135m-instruct

Each call measures one cell and writes its own result, so that a table can be filled step by step, and the
peak of the memory is that of one LLM. DATA contains `conll03` and `wnut17` as their publishers wrote them;
"own" is this project's English corpus. Samples are small: only large differences mean anything.

- ember_probe: the config of `spacy llmner init config`, 140 training, 40 dev and 100 test sentences.
- few_shot: `EmberFewShot.v2` without training, from 5 sentences for each label; 60 test sentences.
- padellm_ner: trained for `--minutes` of CPU time on the 480 training sentences; 60 test sentences.
- ra_it_ner: not tuned, and without examples; 60 test sentences. ra_it_tuned: trained like padellm_ner.
- el4ner_ensemble: the config in configs/, with the settings of the project; `--limit` test sentences.
"""

import json
import random
import resource
import statistics
import tempfile
from pathlib import Path
from time import process_time
from typing import Any, Callable, Dict, Iterator, List, Tuple

import spacy
import torch
import typer
from spacy.language import Language
from spacy.tokens import Doc, DocBin
from spacy.training import Example
from spacy.training.initialize import init_nlp
from spacy.training.loop import train as spacy_train
from spacy.util import load_config
from thinc.api import Config

from benchmarks.lib.common import ROOT, save, strict_scores
from benchmarks.padellm.recipe import fit
from benchmarks.ra_it.corpora import read_docs, without_entities
from spacy_llmner.cli.init_config import init_config
from spacy_llmner.models.catalogue import CATALOGUE

# Files of the training, dev and test parts of the public corpora.
PUBLIC = {
    "conll03": ["conll03/allanj/train.txt", "conll03/allanj/dev.txt", "conll03/allanj/test.txt"],
    "wnut17": [
        "wnut17/wnut17train.conll",
        "wnut17/emerging.dev.conll",
        "wnut17/emerging.test.annotated",
    ],
}
# For the LLMs, which read labels in lower case.
LABEL_WORDS = {
    "PERSON": "person",
    "ORG": "organization",
    "LOC": "location",
    "PRODUCT": "product",
    "EVENT": "event",
    "WORK": "work of art",
}
PARTS = ("train", "dev", "test")
OWN_TEST = 60

# What a cell measures: the run of each seed, with the pipeline of the last one.
Runs = Iterator[Tuple[Language, Dict[str, Any]]]


def main(
    component: str,
    corpus: str,
    llm: str = typer.Argument(..., help="Name of the LLM; of voters, separated by +"),
    data: Path = typer.Option(Path("data"), help="Folder of the public corpora"),
    seeds: int = 3,
    minutes: float = typer.Option(10.0, help="CPU minutes of training (padellm_ner, ra_it_tuned)"),
    limit: int = typer.Option(OWN_TEST, help="Number of test sentences of this project's corpus"),
) -> None:
    nlp = spacy.blank("en")
    docs = own_corpus(nlp, limit) if corpus == "own" else public_corpus(nlp, data, corpus)
    runs: List[Dict[str, Any]] = []
    for trained, run in CELLS[component](docs, llm, seeds, minutes):
        started = process_time()
        found = list(trained.pipe([without_annotation(trained, doc) for doc in docs["test"]]))
        seconds = process_time() - started
        scores = strict_scores(docs["test"], found)
        # Only the first run has no text in its cache.
        runs.append({**run, "test_seconds": seconds, **scores})
        print(runs[-1], flush=True)
    n_words = sum(len(doc) for doc in docs["test"])
    f1 = [run["f"] for run in runs]
    save(
        f"scaling_{component}_{corpus}_{llm}",
        {
            "component": component,
            "set": corpus,
            "llm": llm,
            "parameters": sum(CATALOGUE[name].parameters for name in llm.split("+")),
            "minutes": minutes if component in ("padellm_ner", "ra_it_tuned") else None,
            "sentences": {part: len(docs[part]) for part in PARTS},
            "entities": sum(len(doc.ents) for doc in docs["test"]),
            "f": statistics.mean(f1),
            "spread": max(f1) - min(f1),
            "words_per_second": n_words / runs[0]["test_seconds"],
            "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000,
            "runs": runs,
        },
    )


def own_corpus(nlp: Language, limit: int) -> Dict[str, List[Doc]]:
    """RETURNS (Dict[str, List[Doc]]): The parts of this project's English corpus."""
    out: Dict[str, List[Doc]] = {}
    for part in PARTS:
        lines = (ROOT / "assets" / f"en_{part}.jsonl").read_text(encoding="utf8").splitlines()
        out[part] = []
        for line in map(json.loads, lines):
            doc = nlp.make_doc(line["text"])
            spans = [doc.char_span(s["start"], s["end"], label=s["label"]) for s in line["spans"]]
            doc.set_ents([span for span in spans if span is not None])
            out[part].append(doc)
    out["test"] = out["test"][:limit]
    return out


def public_corpus(nlp: Language, data: Path, name: str) -> Dict[str, List[Doc]]:
    """RETURNS (Dict[str, List[Doc]]): A sample of each part of a public corpus, the same at each call."""
    sizes = dict(zip(PARTS, (140, 40, 100)))
    out = {}
    for part, file in zip(PARTS, PUBLIC[name]):
        docs = [doc for doc in read_docs(nlp, data / file) if 5 <= len(doc) <= 50]
        out[part] = random.Random(part).sample(docs, sizes[part])
    return out


def without_annotation(nlp: Language, doc: Doc) -> Doc:
    return Doc(nlp.vocab, words=[t.text for t in doc], spaces=[bool(t.whitespace_) for t in doc])


def examples_of(nlp: Language, docs: List[Doc]) -> List[Example]:
    return [Example(without_entities(nlp, doc), doc) for doc in docs]


def ember_probe(docs: Dict[str, List[Doc]], llm: str, seeds: int, minutes: float) -> Runs:
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{part}.spacy" for part in ("train", "dev")]
        for path in paths:
            DocBin(docs=docs[path.stem]).to_disk(path)
        for seed in range(seeds):
            config = Config(init_config(*paths, llm=llm)[0])
            # Not from the words of the labels, for which only some LLMs have weights.
            model = {"@architectures": "spacy_llmner.EmberProbe.v1"}
            config["components"]["ember_probe"]["model"] = model
            config["system"]["seed"] = seed
            for part in ("train", "dev"):
                config["corpora"][part]["gold_preproc"] = True  # with the words of the corpus
            started = process_time()
            (Path(folder) / "out").mkdir(exist_ok=True)
            spacy_train(init_nlp(config), Path(folder) / "out")
            seconds = process_time() - started
            nlp = spacy.load(Path(folder) / "out" / "model-best")
            ember: Any = nlp.get_pipe("ember_probe")
            ember._start_training()  # so that the test sentences are in the cache for the next seed
            yield nlp, {"seed": seed, "train_seconds": seconds}


def few_shot(docs: Dict[str, List[Doc]], llm: str, seeds: int, minutes: float) -> Runs:
    for seed in range(seeds):
        nlp = spacy.blank("en")
        model = {"@architectures": "spacy_llmner.EmberFewShot.v2"}
        ember: Any = nlp.add_pipe("ember_probe", config={"llm": {"name": llm}, "model": model})
        pool = examples_of(nlp, docs["train"])
        random.Random(seed).shuffle(pool)
        started = process_time()
        ember.fit(pool)
        seconds = process_time() - started
        ember._start_training()
        yield nlp, {"seed": seed, "train_seconds": seconds}


def padellm_ner(docs: Dict[str, List[Doc]], llm: str, seeds: int, minutes: float) -> Runs:
    nlp = spacy.blank("en")
    model = {"@architectures": "spacy_llmner.PaDeLLM.v1", "label_words": LABEL_WORDS}
    config = {"llm": {"name": llm}, "model": model, "max_batch_tokens": 1024}
    nlp.add_pipe("padellm_ner", config=config)
    run = fit(nlp, examples_of(nlp, docs["train"]), minutes, 8, 0.003, seed=0)
    yield nlp, {"seed": 0, **run}


def ra_it_ner(docs: Dict[str, List[Doc]], llm: str, seeds: int, minutes: float) -> Runs:
    nlp = _ra_it_pipeline(llm)
    pipe: Any = nlp.get_pipe("ra_it_ner")
    pipe.set_labels(sorted({ent.label_ for doc in docs["train"] for ent in doc.ents}))
    yield nlp, {"seed": 0}


def ra_it_tuned(docs: Dict[str, List[Doc]], llm: str, seeds: int, minutes: float) -> Runs:
    nlp = _ra_it_pipeline(llm)
    run = fit(nlp, examples_of(nlp, docs["train"]), minutes, 8, 0.003, seed=0)
    yield nlp, {"seed": 0, **run}


def _ra_it_pipeline(llm: str) -> Language:
    nlp = spacy.blank("en")
    model = {"@architectures": "spacy_llmner.RAIT.v1", "label_words": LABEL_WORDS}
    config = {"llm": {"name": llm}, "use_examples": "never", "model": model}
    nlp.add_pipe("ra_it_ner", config=config)
    return nlp


def el4ner_ensemble(docs: Dict[str, List[Doc]], llm: str, seeds: int, minutes: float) -> Runs:
    config = load_config(ROOT / "configs" / "el4ner_ensemble.cfg", interpolate=False)
    settings = dict(config["components"]["el4ner_ensemble"])
    voter = settings.pop("llms").popitem()[1]
    names = llm.split("+")
    settings["llms"] = {name: {**voter, "llm": {**voter["llm"], "name": name}} for name in names}
    settings["verifier"] = names[-1]
    settings["encoder"]["name"] = "all-minilm-l6-v2"
    del settings["factory"]
    nlp = spacy.blank("en")
    pipe: Any = nlp.add_pipe("el4ner_ensemble", config=settings)
    started = process_time()
    pipe.initialize(lambda: examples_of(nlp, docs["train"]), nlp=nlp)
    yield nlp, {"seed": 0, "train_seconds": process_time() - started}


CELLS: Dict[str, Callable[[Dict[str, List[Doc]], str, int, float], Runs]] = {
    cell.__name__: cell
    for cell in (ember_probe, few_shot, padellm_ner, ra_it_ner, ra_it_tuned, el4ner_ensemble)
}


if __name__ == "__main__":
    torch.set_num_threads(1)
    typer.run(main)
