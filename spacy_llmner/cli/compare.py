"""`spacy llmner compare`: run several components on the same texts, in one process with one LLM."""

import json
from collections import Counter
from pathlib import Path
from time import perf_counter
from typing import Any, Dict, List, Optional, Tuple

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text
from spacy import blank
from spacy.language import Language
from spacy.scorer import get_ner_prf
from spacy.training import Example
from tqdm import tqdm

from ..errors import Errors, LLMNERError
from ..pipeline.base import LLMNERPipe
from ..pipeline.combine import Combine
from ..pipeline.scorers import looked_for, trim_example
from ._util import (
    check_data_path,
    exit_on_error,
    folder_name,
    llm_names,
    load_pipeline,
    percent,
    read_examples,
)
from .compare_page import comparison_page
from .peak import gpu_peak_mb, peak_mb, reset_peak

COMBINED = "combined"


def compare_cli(
    data_path: Path = typer.Argument(..., metavar="DATA", help="Test data, in .spacy format"),
    models: List[str] = typer.Argument(..., help="Pipelines: folders or names of packages"),
    output: Optional[Path] = typer.Option(None, "--output", "-o", help="JSON file for the scores"),
    html: Optional[Path] = typer.Option(None, "--html", help="Web page showing the entities"),
    limit: int = typer.Option(0, "--limit", min=0, help="Maximum number of docs; 0 for all"),
    min_votes: int = typer.Option(
        2, "--min-votes", help="Components that must find an entity for the combined result"
    ),
    gpu_id: int = typer.Option(
        -1,
        "--gpu-id",
        "-g",
        help="GPU for spaCy's own arrays, or -1 for none. The LLM uses its own `device` setting",
    ),
) -> None:
    """Compare the entities, speed and memory of several pipelines, alone and combined."""
    console = Console(highlight=False)
    with exit_on_error():
        check_data_path(data_path)
        nlp, names = assemble(models, min_votes, gpu_id)
        references = read_examples(nlp, data_path)
        references = references[:limit] if limit else references
        results = compare(nlp, references, names)
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


def assemble(
    models: List[str], min_votes: int = 2, gpu_id: int = -1
) -> Tuple[Language, Dict[str, List[str]]]:
    """Assemble one pipeline from the entity components of several pipelines, each with its own span group,
    and add an `llmner_combine` after them.

    An `llmner_combine` in one of the pipelines is left out, since the span groups have new names.

    models (List[str]): Folders or names of packages.
    min_votes (int): Votes that an entity needs in the combined result.
    gpu_id (int): GPU of spaCy's own arrays, or -1 for the CPU.
    RETURNS (Tuple[Language, Dict[str, List[str]]]): The pipeline, and by component what the user knows it
        by: the folder, the component's name there, and the LLMs. Components with the same LLM share it.
    RAISES (LLMNERError): If a pipeline can't be loaded or has no entity component.
    """
    nlp: Optional[Language] = None
    names: Dict[str, List[str]] = {}
    before: Dict[str, Any] = {}  # by name, the last component that is not compared
    for model in models:
        other = load_pipeline(model, gpu_id)
        mine = [name for name, pipe in other.pipeline if isinstance(pipe, LLMNERPipe)]
        if not mine:
            known = ", ".join(other.pipe_names) or "none"
            raise LLMNERError(Errors.E103.format(name=model, known=known))
        tokenizer = {"nlp": {"tokenizer": other.config["nlp"]["tokenizer"]}}
        nlp = nlp or blank(other.lang or "en", config=tokenizer)
        for name, pipe in other.pipeline:
            if name in mine:
                key = name if name not in (*names, COMBINED) else f"{name}_{len(names)}"
                added: Any = nlp.add_pipe(name, name=key, source=other)
                added.cfg.update(spans_key=key, overwrite=True)
                names[key] = [folder_name(model), name, ", ".join(llm_names([pipe]))]
            elif not isinstance(pipe, Combine) and not _same(before.get(name), pipe):
                # A tagger, for example. A different one is added before the components that use its output.
                key = name if name not in nlp.pipe_names else f"{name}_{len(nlp.pipe_names)}"
                before[name] = nlp.add_pipe(name, name=key, source=other)
    assert nlp is not None
    votes = {"keys": list(names), "min_votes": min(min_votes, len(names)), "spans_key": COMBINED}
    nlp.add_pipe("llmner_combine", name=COMBINED, config=votes)
    return nlp, {**_numbered(names), COMBINED: [COMBINED]}


def _numbered(names: Dict[str, List[str]]) -> Dict[str, List[str]]:
    """RETURNS (Dict[str, List[str]]): The names. Those that are equal have a number after the folder."""
    totals = Counter(map(tuple, names.values()))
    seen: Counter = Counter()
    numbered = {}
    for key, (folder, *others) in names.items():
        whole = (folder, *others)
        seen[whole] += 1
        number = f" ({seen[whole]})" if totals[whole] > 1 else ""
        numbered[key] = [folder + number, *others]
    return numbered


def _same(there: Any, pipe: Any) -> bool:
    """RETURNS (bool): Whether a component exists already and has the same content as another one."""
    if there is None or not hasattr(pipe, "to_bytes"):
        return there is not None
    return there.to_bytes() == pipe.to_bytes()


def compare(
    nlp: Language, references: List[Example], names: Dict[str, List[str]]
) -> Dict[str, Dict[str, Any]]:
    """Run each component alone, then all of them combined.

    nlp (Language): A pipeline from `assemble`.
    references (List[Example]): The annotated texts.
    names (Dict[str, List[str]]): The components' names from `assemble`.
    RETURNS (Dict[str, Dict[str, Any]]): By component: "name"; "examples", the Docs and references; the
        scores; "docs_per_second"; "peak_mb", the peak memory of the whole process while it read the texts;
        and "gpu_peak_mb", the peak memory on the GPU. The peaks are None if they can't be measured, and
        include all LLMs loaded so far.
    """
    components = [name for name, pipe in nlp.pipeline if isinstance(pipe, LLMNERPipe)]
    others = [name for name in nlp.pipe_names if name not in (*components, COMBINED)]
    results: Dict[str, Dict[str, Any]] = {}
    for name in [*components, COMBINED]:
        used = [*others, name] if name != COMBINED else nlp.pipe_names
        with nlp.select_pipes(enable=used):
            first, *texts = (eg.predicted.copy() for eg in [references[0], *references])
            list(nlp.pipe([first]))  # loads the LLM, which is not part of the speed
            reset_peak()
            start = perf_counter()
            stream = tqdm(nlp.pipe(texts), total=len(texts), desc=name, leave=False, disable=None)
            docs = list(stream)
            seconds = perf_counter() - start
        examples = [
            trim_example(looked_for(Example(doc, eg.reference)))
            for doc, eg in zip(docs, references)
        ]
        results[name] = {
            "name": names[name],
            "examples": examples,
            **get_ner_prf(examples),
            "docs_per_second": len(docs) / max(seconds, 1e-9),
            "peak_mb": peak_mb(),
            "gpu_peak_mb": gpu_peak_mb(),
        }
    return results


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
    for row, key in {"peak MB": "peak_mb", "GPU peak MB": "gpu_peak_mb"}.items():
        if any(r[key] is not None for r in ways):
            table.add_row(row, *("-" if r[key] is None else f"{r[key]:.0f}" for r in ways))
    return table
