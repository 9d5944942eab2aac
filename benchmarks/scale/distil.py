"""Distil ember_probe to spaCy's `ner` on CoNLL-2003: F1 on its test part, and words per second.

    python -m benchmarks.scale.distil trained CONLL WORK --seeds 3
    python -m benchmarks.scale.distil words CONLL WORK

CONLL is a folder with conll_train.spacy and conll_test.spacy, one sentence per Doc. From the training part,
500 sentences are drawn as labelled texts, and others without their labels. `trained` uses ember_probe
trained on the labelled texts as the teacher, `words` ember_probe with three labels in words and nothing
trained. WORK keeps the teacher, its annotation and its scores, so that a run can be continued.

All students are spaCy's efficiency config. "labelled alone" is the same student on the labelled texts, of
which a fifth is its dev data. "nothing unknown" learns from all of the teacher's entities. The teacher is
the same for all seeds.
"""

import json
import random
import time
from pathlib import Path
from statistics import mean
from typing import Any, Callable, Dict, List

import spacy
import torch
import typer
from spacy.language import Language
from spacy.tokens import Doc, DocBin

from benchmarks.lib.common import save
from spacy_llmner.cli.distil import ANNOTATIONS, prepare, score, train_pipeline
from spacy_llmner.cli.distil_data import DistilData, read_annotated, read_labelled, write_data
from spacy_llmner.cli.distil_student import student_config
from spacy_llmner.cli.init_config import init_config
from spacy_llmner.scale.distil_selection import select

LABELLED = 500
LLM = "smollm2-135m-instruct"
# The fourth label, MISC, can't be found by its name.
WORDS = {"PER": "person", "ORG": "organization", "LOC": "location"}
# Sentences with which the speed is measured.
TIMED = 100
# Only with the first seed.
ABLATION = "nothing unknown"
app = typer.Typer()


@app.command()
def trained(
    conll: Path,
    work: Path,
    sentences: int = 5000,
    seeds: int = 3,
    max_steps: int = 20000,
    unmarked: bool = True,
) -> None:
    """The teacher is ember_probe, trained on the labelled texts."""
    torch.set_num_threads(1)
    _draw(conll, work, sentences)
    teacher = work / "probe" / "model-best"
    if not teacher.exists():
        docs = _read(work / "labelled.spacy")
        _write(work / "probe_train.spacy", [doc for i, doc in enumerate(docs) if i % 5 != 4])
        _write(work / "probe_dev.spacy", docs[4::5])
        config, *_ = init_config(work / "probe_train.spacy", work / "probe_dev.spacy", llm=LLM)
        train_pipeline(config, work / "probe")
    test = conll / "conll_test.spacy"
    results = _compare(
        str(teacher), work, work / "trained", test, seeds, max_steps, unmarked, gold=True
    )
    save("scale_distil_trained", {"sentences": sentences, "labelled": LABELLED, **results})


@app.command()
def words(
    conll: Path, work: Path, sentences: int = 5000, seeds: int = 1, max_steps: int = 20000
) -> None:
    """The teacher is ember_probe with labels in words. No labelled text is used."""
    torch.set_num_threads(1)
    _draw(conll, work, sentences)
    teacher = work / "words_teacher"
    if not teacher.exists():
        nlp = spacy.blank("en")
        model = {"@architectures": "spacy_llmner.EmberMatch.v1", "label_words": WORDS}
        nlp.add_pipe("ember_probe", config={"llm": LLM, "labels": list(WORDS), "model": model})
        nlp.to_disk(teacher)
    test = work / "words_test.spacy"
    docs = _read(conll / "conll_test.spacy")
    for doc in docs:
        doc.ents = [ent for ent in doc.ents if ent.label_ in WORDS]  # type: ignore[misc]
    _write(test, docs)
    results = _compare(
        str(teacher), work, work / "words", test, seeds, max_steps, unmarked=False, gold=False
    )
    save("scale_distil_words", {"sentences": sentences, "labels": WORDS, **results})


def _compare(
    teacher: str,
    work: Path,
    out: Path,
    test: Path,
    seeds: int,
    max_steps: int,
    unmarked: bool,
    gold: bool,
) -> Dict[str, Any]:
    labelled = work / "labelled.spacy" if gold else None
    texts = str(work / "unlabelled.jsonl")
    prepared = prepare(teacher, texts, out, labelled=labelled, test=test)
    nlp, data = prepared.teacher, prepared.data
    files = {"student": (data.train, data.dev)}
    if data.labelled_train is not None and data.labelled_dev is not None:
        files["labelled alone"] = (data.labelled_train, data.labelled_dev)
    if unmarked:
        other = _with_nothing_unknown(nlp, out, labelled, test)
        files[ABLATION] = (other.train, other.dev)
    runs: Dict[str, List[Dict[str, float]]] = {name: [] for name in files}
    for seed in range(seeds):
        for name, (train, dev) in files.items():
            if name == ABLATION and seed:
                continue
            folder = out / f"{name.replace(' ', '_')}_{seed}"

            def measure(
                folder: Path = folder, train: Path = train, dev: Path = dev, seed: int = seed
            ) -> Any:
                started = time.process_time()
                config = student_config("ner", nlp, train, dev, seed)
                config["training"]["max_steps"] = max_steps
                train_pipeline(config, folder)
                seconds = time.process_time() - started
                return {**_measured(str(folder / "model-best"), test), "training": seconds}

            runs[name].append(_cached(folder / "scores.json", measure))
            print(name, seed, runs[name][-1], flush=True)
    of_teacher = _cached(out / "teacher_scores.json", lambda: _measured(teacher, test))
    f1 = {name: 100 * mean(run["f"] for run in found) for name, found in runs.items()}
    return {
        "test_sentences": len(_read(test)),
        "seeds": seeds,
        "max_steps": max_steps,
        "counts": prepared.counts,
        "teacher": of_teacher,
        "runs": runs,
        "f1": {"teacher": 100 * of_teacher["f"], **f1},
        "share_of_the_teachers_f1": f1["student"] / 100 / of_teacher["f"],
    }


def _with_nothing_unknown(nlp: Language, out: Path, labelled: Any, test: Path) -> DistilData:
    """RETURNS (DistilData): Data from the same annotation. Every span is an entity or not."""
    shards = sorted((out / ANNOTATIONS / "shards").iterdir())
    gold = read_labelled(nlp, labelled)
    known = [doc.text for doc in (*gold, *read_labelled(nlp, test))]
    selection = select(read_annotated(nlp, shards), 0.5, 0.5, known)
    folder = out / "nothing_unknown"
    folder.mkdir(exist_ok=True)
    return write_data(selection.docs, gold, folder, 0.5)


def _measured(model: str, test: Path) -> Dict[str, float]:
    """RETURNS (Dict[str, float]): Precision, recall and F1, and words per CPU second of one thread."""
    scores = score(model, test)
    prf = {key: scores[key] for key in "prf"}
    return {**prf, "words_per_cpu_second": _speed(spacy.load(model), test)}


def _speed(nlp: Language, test: Path) -> float:
    texts = [doc.text for doc in _read(test)][: TIMED + 1]
    list(nlp.pipe(texts[:1]))  # loads the LLM
    times = []
    for _ in range(3):
        started = time.process_time()
        n_words = sum(len(doc) for doc in nlp.pipe(texts[1:]))
        times.append(time.process_time() - started)
    return n_words / min(times)


def _draw(conll: Path, work: Path, sentences: int) -> None:
    """Draw labelled and unlabelled sentences from the training part."""
    work.mkdir(parents=True, exist_ok=True)
    docs = _read(conll / "conll_train.spacy")
    random.Random(0).shuffle(docs)
    _write(work / "labelled.spacy", docs[:LABELLED])
    rows = [json.dumps({"text": doc.text}) for doc in docs[LABELLED : LABELLED + sentences]]
    (work / "unlabelled.jsonl").write_text("".join(row + "\n" for row in rows))


def _cached(path: Path, compute: Callable[[], Any]) -> Any:
    if not path.exists():
        content = json.dumps(compute())
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return json.loads(path.read_text())


def _read(path: Path) -> List[Doc]:
    return list(DocBin().from_disk(path).get_docs(spacy.blank("en").vocab))


def _write(path: Path, docs: List[Doc]) -> None:
    DocBin(docs=docs).to_disk(path)


if __name__ == "__main__":
    app()
