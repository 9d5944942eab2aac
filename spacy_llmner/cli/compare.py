"""`spacy llmner compare`: run pipelines on the same texts, in one process with one copy of each LLM."""

import json
from pathlib import Path
from time import perf_counter
from typing import Any, Dict, List, Optional, Tuple

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text
from spacy.cli._util import import_code
from spacy.scorer import get_ner_prf
from spacy.tokens import SpanGroup
from spacy.training import Example
from tqdm import tqdm

from ..pipeline.combine import Combine
from ..pipeline.scorers import looked_for, trim_example
from ._util import check_data_path, exit_on_error, percent, read_examples
from .compare_page import comparison_page
from .compare_ways import COMBINED, Way, load_ways
from .peak import gpu_peak_mb, peak_mb, reset_peak


def compare_cli(
    data_path: Path = typer.Argument(..., metavar="DATA", help="Test data, in .spacy format"),
    models: List[str] = typer.Argument(..., help="Pipelines: folders or names of packages"),
    output: Optional[Path] = typer.Option(None, "--output", "-o", help="JSON file for the scores"),
    html: Optional[Path] = typer.Option(None, "--html", help="Web page showing the entities"),
    limit: int = typer.Option(0, "--limit", min=0, help="Maximum number of docs; 0 for all"),
    min_votes: int = typer.Option(
        2, "--min-votes", min=1, help="Pipelines that must find an entity for the combined result"
    ),
    gpu_id: int = typer.Option(
        -1,
        "--gpu-id",
        "-g",
        help="GPU for spaCy's own arrays, or -1 for none. The LLM uses its own `device` setting",
    ),
    code_path: Optional[Path] = typer.Option(None, "--code", "-c", help="Python file to import"),
) -> None:
    """
    Compare the entities, speed and memory of several pipelines, alone and combined. They can have any
    components: those of this package are compared one by one, other pipelines as a whole.
    """
    import_code(code_path)
    console = Console(highlight=False)
    with exit_on_error():
        check_data_path(data_path)
        ways = load_ways(models, gpu_id)
        for way in ways.values():
            console.print(_described(way), markup=False, soft_wrap=True)
        results = compare(ways, data_path, limit=limit, min_votes=min_votes)
        nlp = next(iter(ways.values())).nlp
        for path, text in (
            (output, lambda: json.dumps(summary(results), indent=2)),
            (html, lambda: comparison_page(nlp, data_path, results)),
        ):
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text() + "\n", encoding="utf8")
    console.print(_table(results))
    for path in (output, html):
        if path is not None:
            console.print(f"Saved {path}", markup=False, soft_wrap=True)


def _described(way: Way) -> str:
    llms = f"LLM {', '.join(way.llms)}" if way.llms else "no LLM"
    return f"{way.name[0]}: {way.source}; {', '.join(way.pipes)}; {llms}"


def compare(
    ways: Dict[str, Way], data_path: Path, *, limit: int = 0, min_votes: int = 2
) -> Dict[str, Dict[str, Any]]:
    """Run each way alone, and combine what they found.

    Each pipeline splits the texts into words with its own tokenizer. What was found is compared and
    combined by characters.

    ways (Dict[str, Way]): From `load_ways`.
    data_path (Path): The annotated texts.
    limit (int): Maximum number of texts; 0 for all.
    min_votes (int): Number of ways that must find an entity for the combined result.
    RETURNS (Dict[str, Dict[str, Any]]): By way, and for "combined": the way's `facts`; "examples", the Docs
        and references; the scores; "docs_per_second" and "words_per_second" (words of the references);
        "n_failed", the number of texts that the pipeline dropped; "peak_mb", the peak memory of the whole
        process while it read the texts; and "gpu_peak_mb", the peak memory on the GPU. The peaks are None
        if they can't be measured, and include all LLMs loaded so far.
    RAISES (LLMNERError): If the texts can't be read.
    """
    results: Dict[str, Dict[str, Any]] = {}
    found: Dict[str, List[Tuple[List[List[Any]], List[float]]]] = {}
    empty: List[Example] = []
    total = 0.0
    for key, way in ways.items():
        examples = read_examples(way.nlp, data_path)
        examples = examples[:limit] if limit else examples
        empty = empty or [Example(eg.predicted.copy(), eg.reference) for eg in examples]
        seconds, n_failed = _run(way, examples)
        total += seconds
        found[key] = [way.found(eg.predicted) for eg in examples]
        results[key] = {
            **way.facts,
            **_scored(examples, seconds),
            "n_failed": n_failed,
            "peak_mb": peak_mb(),
            "gpu_peak_mb": gpu_peak_mb(),
        }
    vote = Combine(COMBINED, list(ways), min(min_votes, len(ways)), COMBINED)
    for k, eg in enumerate(empty):
        doc = eg.predicted
        for key, spans in found.items():
            offsets, scores = spans[k]
            doc.spans[key] = SpanGroup(doc, name=key, attrs={"chars": offsets, "scores": scores})
        vote(doc)
    results[COMBINED] = {
        "name": [COMBINED],
        "source": f"found by at least {vote.min_votes} of {len(ways)}",
        "components": [],
        "llms": list(dict.fromkeys(llm for way in ways.values() for llm in way.llms)),
        **_scored(empty, total),
        "n_failed": 0,
        "peak_mb": _highest(results, "peak_mb"),
        "gpu_peak_mb": _highest(results, "gpu_peak_mb"),
    }
    return results


def _run(way: Way, examples: List[Example]) -> Tuple[float, int]:
    """Annotate the predicted Docs. RETURNS (Tuple[float, int]): Seconds, and the number of failed texts."""
    with way.nlp.select_pipes(enable=way.pipes):
        list(
            way.nlp.pipe([examples[0].predicted.copy()])
        )  # loads the LLM, which is not part of the speed
        reset_peak()
        start = perf_counter()
        # A Doc that fails is dropped by spaCy's error handler. It stays empty, and shifts no others.
        copies = ((eg.predicted.copy(), eg) for eg in examples)
        stream = way.nlp.pipe(copies, as_tuples=True)
        bar = tqdm(stream, total=len(examples), desc=way.name[0], leave=False, disable=None)
        n_done = 0
        for doc, eg in bar:
            eg.predicted = doc
            n_done += 1
        return perf_counter() - start, len(examples) - n_done


def _scored(examples: List[Example], seconds: float) -> Dict[str, Any]:
    examples = [trim_example(looked_for(eg)) for eg in examples]
    return {
        "examples": examples,
        **get_ner_prf(examples),
        "docs_per_second": len(examples) / max(seconds, 1e-9),
        "words_per_second": sum(len(eg.reference) for eg in examples) / max(seconds, 1e-9),
    }


def _highest(results: Dict[str, Dict[str, Any]], key: str) -> Optional[float]:
    known = [r[key] for r in results.values() if r[key] is not None]
    return max(known) if known else None


def summary(results: Dict[str, Dict[str, Any]]) -> Dict[str, Any]:
    """RETURNS (Dict[str, Any]): The results without the Docs."""
    return {name: {k: v for k, v in r.items() if k != "examples"} for name, r in results.items()}


def _table(results: Dict[str, Dict[str, Any]]) -> Table:
    """Create the table of results. It has one column per component, so that many labels fit."""
    ways = list(results.values())
    table = Table(title="F1", box=box.SIMPLE)
    table.add_column()
    for r in ways:
        table.add_column(Text("\n".join(r["name"])), justify="right", overflow="fold")
    for label in sorted({x for r in ways for x in r["ents_per_type"] or {}}):
        by_label = [(r["ents_per_type"] or {}).get(label, {}).get("f") for r in ways]
        table.add_row(Text(label), *map(percent, by_label))
    table.add_row("all", *(percent(r["ents_f"]) for r in ways), style="bold")
    table.add_section()
    table.add_row("docs/s", *(f"{r['docs_per_second']:.2f}" for r in ways))
    table.add_row("words/s", *(f"{r['words_per_second']:,.0f}" for r in ways))
    if any(r["n_failed"] for r in ways):
        table.add_row("failed docs", *(str(r["n_failed"]) for r in ways), style="red")
    for row, key in {"peak MB": "peak_mb", "GPU peak MB": "gpu_peak_mb"}.items():
        if any(r[key] is not None for r in ways):
            table.add_row(row, *("-" if r[key] is None else f"{r[key]:.0f}" for r in ways))
    return table
