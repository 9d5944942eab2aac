"""Sections of RESULTS.md about `spacy llmner distil`."""

from statistics import mean
from typing import Any, Dict, List

from benchmarks.lib.markdown import paragraph

TEACHERS = {
    "trained": "ember_probe, trained on {labelled} labelled sentences",
    "words": "ember_probe with labels in words, nothing trained",
}
ROWS = {
    "student": "`ner` on the certain annotation of the teacher",
    "nothing unknown": "`ner` on all annotation of the teacher: what scores at least 0.5 (one seed)",
    "labelled alone": "`ner` on the {labelled} labelled sentences alone",
}


def distil_table(r: Dict[str, Any]) -> List[str]:
    """RETURNS (List[str]): The lines of a section."""
    counts, teacher = r["counts"], r["teacher"]
    kind = "trained" if "labelled" in r else "words"
    names = {"labelled": r.get("labelled", 0)}
    seeds = (
        "one seed of the student"
        if r["seeds"] == 1
        else f"mean of {r['seeds']} seeds of the student (lowest and highest)"
    )
    with_gold = (
        "The labelled sentences are added to the training data. A fifth of them is dev data."
        if kind == "trained"
        else "No labelled sentence is used. Only persons, organizations and locations are scored."
    )
    lines = [
        f"## Distillation on CoNLL-2003: {TEACHERS[kind].format(**names)}",
        "",
        *paragraph(
            f"The teacher annotated {r['sentences']:,} sentences; {counts['kept']:,} are kept, of which",
            f"{counts['with_doubtful_passages']:,} have doubtful passages, which are marked as unknown.",
            with_gold,
            f"Training ends after {r['max_steps']:,} steps, or before if the dev score stops rising.",
            f"Strict F1 on {r['test_sentences']:,} test sentences, {seeds}, and words per CPU second of",
            "one thread.",
        ),
        "",
        "| pipeline | P | R | F1 | words/s |",
        "|---|--:|--:|--:|--:|",
        _row("teacher", [teacher]),
    ]
    lines += [
        _row(ROWS[name].format(**names), r["runs"][name]) for name in ROWS if r["runs"].get(name)
    ]
    share = f"The student keeps {100 * r['share_of_the_teachers_f1']:.1f} % of the teacher's F1."
    note = ["", *paragraph(r["note"])] if "note" in r else []
    return [*lines, "", share, *note]


def _row(title: str, runs: List[Dict[str, float]]) -> str:
    p, r, f = (f"{100 * mean(run[key] for run in runs):.1f}" for key in "prf")
    if len(runs) > 1:
        lowest, highest = (100 * pick(run["f"] for run in runs) for pick in (min, max))
        f += f" ({lowest:.1f} to {highest:.1f})"
    speed = max(run["words_per_cpu_second"] for run in runs)
    return f"| {title} | {p} | {r} | {f} | {speed:,.0f} |"
