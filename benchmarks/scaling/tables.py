"""The section of RESULTS.md about LLMs of different sizes, and its plot, docs/scaling.svg."""

from typing import Any, Dict, List

from benchmarks.lib.line_plot import Line, line_plot
from benchmarks.lib.markdown import paragraph
from benchmarks.lib.provenance import provenance
from spacy_llmner.models.catalogue import CATALOGUE

COMPONENTS = {
    "ember_probe": "`ember_probe`",
    "few_shot": "`ember_probe`, few-shot",
    "padellm_ner": "`padellm_ner`",
    "ra_it_ner": "`ra_it_ner`, not tuned",
    "ra_it_tuned": "`ra_it_ner`",
    "el4ner_ensemble": "`el4ner_ensemble`",
}
SETS = {"conll03": "CoNLL-2003", "wnut17": "WNUT-17", "own": "own corpus"}
PREFIX = "scaling_"


def scaling_results(results: Dict[str, Any]) -> List[Dict[str, Any]]:
    """RETURNS (List[Dict[str, Any]]): The cells of the table, ordered by component, corpus and size."""
    cells = [r for name, r in results.items() if name.startswith(PREFIX)]
    order = list(COMPONENTS), list(SETS)
    return sorted(
        cells,
        key=lambda r: (
            order[0].index(r["component"]),
            order[1].index(r["set"]),
            r["parameters"],
        ),
    )


def scaling_table(cells: List[Dict[str, Any]]) -> List[str]:
    out = [
        "## LLMs of different sizes",
        "",
        *paragraph(
            "Each component with the same recipe and the same small samples (`benchmarks/scaling/run.py`",
            "describes them), so only large differences mean anything. Strict F1 in percent: mean over the",
            "seeds, in brackets the highest minus the lowest. Words per CPU second on the test sentences,",
            "one thread, in float32. Peak memory of the process, including training and its LLM.",
            "The features of some texts were already cached, so times of training are not comparable.",
        ),
        "",
        *scaling_rows(cells),
    ]
    return out + provenance(cells)


def scaling_rows(cells: List[Dict[str, Any]]) -> List[str]:
    """RETURNS (List[str]): The table, which is also in docs/llms.md."""
    out = [
        "| component | corpus | LLM | seeds | F1 | words/s | peak, MB |",
        "|---|---|---|--:|--:|--:|--:|",
    ]
    for r in cells:
        runs = r["runs"]
        f1 = f"{r['f']:.1f}" + (f" ({r['spread']:.1f})" if len(runs) > 1 else "")
        row = [
            COMPONENTS[r["component"]],
            SETS[r["set"]],
            r["llm"].replace("+", ", "),
            str(len(runs)),
            f1,
            f"{r['words_per_second']:.0f}"
            if r["words_per_second"] >= 10
            else f"{r['words_per_second']:.1f}",
            f"{r['peak_mb']:,.0f}",
        ]
        out.append("| " + " | ".join(row) + " |")
    return out


def scaling_plot(cells: List[Dict[str, Any]]) -> str:
    """Draw F1 by the size of the LLM, one line for each component and corpus with several LLMs.

    RETURNS (str): The SVG.
    """
    lines: Dict[str, List[Any]] = {}
    for r in cells:
        if "+" not in r["llm"]:
            name = f"{COMPONENTS[r['component']].replace('`', '')}, {SETS[r['set']]}"
            lines.setdefault(name, []).append((CATALOGUE[r["llm"]].parameters / 1e6, r["f"]))
    several = [Line(name, points) for name, points in lines.items() if len(points) > 1]
    return line_plot(several, "Parameters of the LLM, in millions", "Strict F1, %")
