"""`spacy llmner evaluate`: measure the scores and speed of a pipeline, and show its entities.

It works with every spaCy pipeline that sets doc.ents, so that different components can be compared.
"""

import json
from pathlib import Path
from time import perf_counter
from typing import Any, Dict, Optional

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text
from spacy.cli._util import import_code
from spacy.pipeline.spancat import spancat_score
from spacy.scorer import Scorer, get_ner_prf
from spacy.tokens import Doc
from tqdm import tqdm

from ..pipeline.scorers import looked_for, set_f, trim_example
from ._util import check_data_path, exit_on_error, load_pipeline, percent, read_examples
from .entity_errors import errors_by_kind, find_errors
from .evaluate_page import evaluation_page
from .evaluation import Evaluation, label_colors, score_rows

# The terminal only shows the beginning of a long document.
SHOWN_CHARS = 400


def evaluate_cli(
    model: str = typer.Argument(..., help="Pipeline: a folder or the name of a package"),
    data_path: Path = typer.Argument(..., metavar="DATA", help="Test data, in .spacy format"),
    output: Optional[Path] = typer.Option(None, "--output", "-o", help="JSON file for the scores"),
    html: Optional[Path] = typer.Option(None, "--html", help="Web page showing the entities"),
    gpu_id: int = typer.Option(
        -1,
        "--gpu-id",
        "-g",
        help="GPU for spaCy's own arrays, or -1 for none. The LLM uses its own `device` setting",
    ),
    limit: int = typer.Option(0, "--limit", min=0, help="Maximum number of docs; 0 for all"),
    limit_html: int = typer.Option(
        40, "--limit-html", min=0, help="Maximum number of docs in the web page"
    ),
    show: int = typer.Option(
        5, "--show", min=0, help="Maximum number of docs shown in the terminal"
    ),
    spans_key: Optional[str] = typer.Option(
        None, "--spans-key", help="Also evaluate doc.spans[KEY]"
    ),
    code_path: Optional[Path] = typer.Option(None, "--code", "-c", help="Python file to import"),
) -> None:
    """Evaluate the entities of a pipeline: precision, recall and F per label, and speed."""
    import_code(code_path)
    console = Console(highlight=False)
    with exit_on_error():
        result = evaluate(
            model, data_path, gpu_id=gpu_id, spans_key=spans_key, limit=limit, progress=True
        )
        for path, text in (
            (output, lambda: json.dumps(result.scores, indent=2, default=_plain)),
            (html, lambda: evaluation_page(result, limit_html)),
        ):
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text() + "\n", encoding="utf8")
    _print(console, result, show)
    for path in (output, html):
        if path is not None:
            console.print(f"Saved {path}", markup=False, soft_wrap=True)


def evaluate(
    model: str,
    data_path: Path,
    *,
    gpu_id: int = -1,
    spans_key: Optional[str] = None,
    limit: int = 0,
    progress: bool = False,
) -> Evaluation:
    """Run a pipeline on annotated Docs and score it.

    model (str): The pipeline: a folder or the name of a package.
    data_path (Path): A .spacy file, or a folder of .spacy files.
    gpu_id (int): GPU of spaCy's own arrays, or -1 for the CPU. The LLM uses its own `device` setting.
    spans_key (Optional[str]): Key of a span group in doc.spans to score in addition to doc.ents.
    limit (int): Maximum number of Docs; 0 for all.
    progress (bool): Show a progress bar, if standard error is a terminal.
    RETURNS (Evaluation): Docs and scores.
    RAISES (LLMNERError): If the pipeline or the data don't exist or can't be used.
    """
    data_path = Path(data_path)
    check_data_path(data_path)
    start = perf_counter()
    nlp = load_pipeline(model, gpu_id)
    seconds_load = perf_counter() - start
    examples = read_examples(nlp, data_path, spans_key)
    examples = examples[:limit] if limit else examples
    # The first Doc loads the LLM's weights, which is not part of the speed.
    start = perf_counter()
    list(nlp.pipe([examples[0].predicted.copy()]))
    seconds_load += perf_counter() - start
    start = perf_counter()
    # The examples are the context, so that a Doc dropped by an error handler doesn't shift the others.
    stream = nlp.pipe(((eg.predicted, eg) for eg in examples), as_tuples=True)
    n_done = 0
    for doc, eg in tqdm(
        stream, total=len(examples), unit="doc", leave=False, disable=None if progress else True
    ):
        eg.predicted = doc
        n_done += 1
    seconds = perf_counter() - start
    examples = [trim_example(looked_for(eg), spans_key) for eg in examples]
    n_words = sum(len(eg.predicted) for eg in examples)
    scores = Scorer(nlp).score(examples)
    # Also score a pipeline whose component has no scorer, e.g. a function.
    scores.update(get_ner_prf(examples), ents_set_f=set_f(examples))
    if spans_key is not None:
        scores.update(spancat_score(examples, spans_key=spans_key))
    scores.update(
        speed=n_words / max(seconds, 1e-9),
        seconds=seconds,
        seconds_load=seconds_load,
        n_docs=len(examples),
        n_words=n_words,
        n_failed=len(examples) - n_done,
        n_ents_gold=sum(len(eg.reference.ents) for eg in examples),
        n_ents_predicted=sum(len(eg.predicted.ents) for eg in examples),
    )
    return Evaluation(model, data_path, nlp, examples, scores, spans_key)


def _print(console: Console, result: Evaluation, show: int) -> None:
    scores = result.scores
    console.print(_table(result, None))
    if result.spans_key is not None:
        console.print(_table(result, result.spans_key))
    console.print(f"F of entity texts, regardless of position: {percent(scores['ents_set_f'])}")
    if scores.get("ents_ece") is not None:
        console.print(f"Calibration error of the scores: {scores['ents_ece']:.3f}")
    console.print(f"{scores['n_docs']} docs, {scores['n_words']} words")
    if scores["n_failed"]:
        console.print(f"{scores['n_failed']} docs failed and count as empty", style="red")
    console.print(
        f"{scores['speed']:,.0f} words/s: {scores['seconds']:.2f} s, "
        f"plus {scores['seconds_load']:.2f} s to load the pipeline\n"
    )
    colors = label_colors(result)
    with_ents = [eg for eg in result.examples if eg.reference.ents or eg.predicted.ents]
    for eg in with_ents[:show]:
        console.print(_marked(eg.predicted, colors, in_color=console.color_system is not None))
        errors = errors_by_kind(eg, find_errors(eg, result.spans_key))
        for kind, described in errors.items():
            console.print(f"  {kind}: {', '.join(described)}", style="red", markup=False)
        console.print()


def _table(result: Evaluation, spans_key: Optional[str]) -> Table:
    table = Table(title="doc.ents" if spans_key is None else f"doc.spans[{spans_key!r}]")
    table.add_column("label")
    for column in ("P", "R", "F", "in the data", "predicted"):
        table.add_column(column, justify="right")
    *rows, total = score_rows(result, spans_key)
    for label, prf, *counts in rows:
        table.add_row(Text(label), *prf, *map(str, counts))
    table.add_section()
    table.add_row(total.label, *total.prf, *map(str, total[2:]), style="bold")
    return table


def _marked(doc: Doc, colors: Dict[str, str], in_color: bool) -> Text:
    """Highlight the entities in displaCy's colors. Without colors, put them in brackets."""
    left, right = (" ", " ") if in_color else ("[", "]")
    text, end = Text(), 0
    for ent in doc.ents:
        if ent.end_char > SHOWN_CHARS:
            break
        text.append(doc.text[end : ent.start_char])
        style = f"black on {colors[ent.label_]}"
        text.append(f"{left}{ent.text} ", style=style)
        text.append(f"{ent.label_}{right}", style=f"bold {style}")
        end = ent.end_char
    rest = doc.text[end : max(end, SHOWN_CHARS)]
    return text.append(rest + ("…" if end + len(rest) < len(doc.text) else ""))


def _plain(value: Any) -> Any:
    """Convert scores of other components that JSON doesn't support, e.g. NumPy floats."""
    return value.item() if hasattr(value, "item") else str(value)
