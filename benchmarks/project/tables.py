"""The section of RESULTS.md about the project's workflows."""

from typing import Any, Dict, List

from benchmarks.lib.markdown import paragraph


def project_table(r: Dict[str, Any]) -> List[str]:
    """The time and the scores of each workflow, and the table of `compare`."""
    runs = r["runs"]
    out = [
        "## Workflows of spacy project run",
        "",
        *paragraph(
            "Time of each complete workflow: downloads, training, and evaluation on this project's test",
            "sentences. Strict F1 in percent, words/s with the LLM loaded. The time of `compare`",
            "excludes the steps that other workflows had already done.",
        ),
        "",
        "| workflow | seconds | sentences | F1 | words/s | |",
        "|---|--:|--:|--:|--:|---|",
    ]
    for name, run in runs.items():
        m = run["metrics"]
        cells = ["", "", ""]
        if "ents_f" in m:
            cells = [str(m["n_docs"]), f"{100 * m['ents_f']:.1f}", f"{m['speed']:.0f}"]
        cells.append(f"{run['date']} {run.get('note', '')}".strip())
        out.append("| " + " | ".join([f"`{name}`", f"{run['seconds']:.0f}", *cells]) + " |")
    return out + (compare_lines(runs["compare"]["metrics"]) if "compare" in runs else [])


def compare_lines(by_component: Dict[str, Any]) -> List[str]:
    labels = sorted({x for m in by_component.values() for x in m["ents_per_type"]})
    out = [
        "",
        *paragraph(
            "`compare`: all components read the same sentences in one process with one copy of each LLM.",
            "Strict F1 in percent. MB: peak memory of the process while the component reads. ra_it_ner",
            "was tuned without the labels EVENT and WORK.",
        ),
        "",
        "| | F1 | " + " | ".join(labels) + " | texts/s | MB |",
        "|---|" + "--:|" * (len(labels) + 3),
    ]
    for name, m in by_component.items():
        of_labels = [f"{100 * m['ents_per_type'].get(x, {'f': 0.0})['f']:.1f}" for x in labels]
        cells = [f"**{100 * m['ents_f']:.1f}**", *of_labels, f"{m['docs_per_second']:.2f}"]
        peak = "" if m["peak_mb"] is None else f"{m['peak_mb']:,.0f}"
        out.append("| " + " | ".join([name, *cells, peak]) + " |")
    return out
