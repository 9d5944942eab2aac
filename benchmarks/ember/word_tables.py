"""The sections of RESULTS.md about labels in words."""

from typing import Any, Dict, List

from benchmarks.lib.markdown import paragraph

KINDS = {"annotated": "in the training corpora", "other": "only in WordNet, or new"}


def words_table(r: Dict[str, Any]) -> List[str]:
    """RETURNS (List[str]): F1 of labels in words on each corpus, and of each label of CrossNER."""
    out = [
        f"## Labels in words, without training: {r['llm']}{', ask_llm' if r.get('ask_llm') else ''}",
        "",
        *paragraph(
            "`EmberMatch.v1` with the weights that come with the package. Strict F1 in percent, for spans",
            "with and without their labels, and the share of right spans with the right label. Nothing",
            "was tuned on these test sets, but the width of the probe and the layers for label words were",
            "chosen on 120 sentences of each test set of CrossNER. `misc` of CrossNER is left out.",
            f"Of each corpus, at most {r['limit']:,} texts." if r["limit"] else "",
        ),
        "",
        "| corpus | F1 | spans alone | right labels |",
        "|---|--:|--:|--:|",
    ]
    for name, row in r["corpora"].items():
        cells = [f"{row[key]:.1f}" for key in ("f", "untyped_f", "label_accuracy")]
        out.append(f"| {name} | {' | '.join(cells)} |")
    if "crossner" in r:
        found = r["crossner"]
        out.append(f"| **CrossNER, mean** | **{found['f']:.1f}** | | |")
        for kind, words in KINDS.items():
            out.append(f"| CrossNER, labels {words} | {found[f'f_{kind}']:.1f} | | |")
        out += ["", "Labels of CrossNER:", "", "| label | F1 | entities | label known |"]
        out.append("|---|--:|--:|---|")
        rows = [
            (label, run[0]["labels"][label])
            for name, run in r["runs"].items()
            if name.startswith("crossner")
            for label in run[0]["labels"]
        ]
        for label, row in sorted(rows, key=lambda item: -item[1]["f"]):
            kind = KINDS[row["kind"]]
            out.append(f"| {label} | {row['f']:.0f} | {row['counts'][2]} | {kind} |")
    return out


def many_labels_table(r: Dict[str, Any]) -> List[str]:
    """RETURNS (List[str]): Words per second by the number of labels."""
    out = [
        "## Speed with many labels in words",
        "",
        *paragraph(
            f"`EmberMatch.v1` on {r['texts']} texts, {r['words']:,} words. The speeds alternate in one",
            "process; the ratio is the median over the rounds.",
        ),
        "",
        "| labels | words/s | speed, divided by that with 2 labels | range | first `set_labels`, s |",
        "|--:|--:|--:|---|--:|",
    ]
    for row in r["rows"]:
        low, high = row["range"]
        out.append(
            f"| {row['labels']} | {row['words_per_s']:.0f} | {row['speed_over_2_labels']:.2f} | "
            f"{low:.2f} to {high:.2f} | {row['first_set_labels_s']:.1f} |"
        )
    return out


def sentences_table(r: Dict[str, Any]) -> List[str]:
    """RETURNS (List[str]): F1 by the number of labelled sentences."""
    out = [
        "## Labelled sentences needed, with labels in words and without",
        "",
        *paragraph(
            "This project's English corpus, strict F1 in percent on its test part, mean of",
            f"{r['seeds']} draws of the sentences (lowest to highest). Words and sentences:",
            "`EmberMatch.v1` and `fit`. Sentences alone: `EmberProbe.v1`, 400 steps.",
        ),
        "",
        "| sentences | words and sentences | CPU s | sentences alone | CPU s |",
        "|--:|--:|--:|--:|--:|",
    ]
    sizes = sorted({row["sentences"] for row in r["rows"]})
    by_key = {(row["sentences"], row["system"]): row for row in r["rows"]}
    for size in sizes:
        cells = [str(size)]
        for system in ("words and sentences", "sentences alone"):
            row = by_key.get((size, system))
            cells += ["", ""] if row is None else _cells(row)
        out.append("| " + " | ".join(cells) + " |")
    return out


def _cells(row: Dict[str, Any]) -> List[str]:
    found = sorted(run["f"] for run in row["runs"])
    spread = f" ({found[0]:.1f} to {found[-1]:.1f})" if len(found) > 1 else ""
    seconds = max(run["cpu_s"] for run in row["runs"])
    return [f"{row['f']:.1f}{spread}", f"{seconds:.0f}"]


def mentions_table(r: Dict[str, Any]) -> List[str]:
    """RETURNS (List[str]): Scores of the spans that mode "mentions" finds in each corpus."""
    out = [
        f"## Names of any kind: {r['llm']}",
        "",
        *paragraph(
            '`mode = "mentions"`, without labels and training. Strict scores of the spans in percent.',
            "The annotators of each corpus looked for some kinds of names only; a name of another kind",
            "counts as wrong.",
        ),
        "",
        "| corpus | sentences | P | R | F1 |",
        "|---|--:|--:|--:|--:|",
    ]
    for name, row in r["corpora"].items():
        scores = " | ".join(f"{row[key]:.1f}" for key in "prf")
        out.append(f"| {name} | {row['texts']} | {scores} |")
    return out
