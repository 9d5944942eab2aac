"""Tables of padellm_quality.py's results for RESULTS.md."""

import random
import statistics
from typing import Any, Dict, List, Tuple

from sources import sources

Counts = List[Tuple[int, int, int]]
DRAWS = 1000


def quality_section(results: Dict[str, Any], titles: Dict[str, str]) -> List[str]:
    """One table for each data set; components side by side, with a paired interval."""
    mine = [r for name, r in results.items() if name.startswith("padellm_quality_")]
    lines: List[str] = []
    for key in sorted({r["set"] for r in mine}):
        rows = [r for r in mine if r["set"] == key]
        lines += ["", f"## Writing entities: {titles.get(key, key)}", "", *_table(rows)]
        ours = [r for r in rows if r["component"] == "padellm_ner"]
        others = [r for r in rows if r["component"] != "padellm_ner"]
        for a in ours:
            lines += _ablations(a)
            for b in others:
                low, high = paired_interval(a["runs"], b["runs"])
                lines += [
                    "",
                    f"{a['component']} minus {b['component']}, strict test F1, 95 % interval over the "
                    f"test sentences (paired bootstrap): {low:+.2f} to {high:+.2f}.",
                ]
        lines += sources(rows)
    return lines


def _table(rows: List[Dict[str, Any]]) -> List[str]:
    llm = next((r["llm"] for r in rows if r["llm"]), "no LLM")
    out = [
        f"{llm}, {rows[0]['test_docs']} test texts. The same adapter, recipe and CPU time for",
        "`padellm_ner` and the autoregressive list; spaCy's `ner` is trained until its patience ends.",
        "Strict F1 of spans and the paper's F1 of sets of strings, in percent. Violations: spans that",
        "are not what the text says there.",
        "",
        "| component | CPU min | seeds | texts seen | strict F1 | spread | set F1 | violations | ms each |",
        "|" + "---|" * 9,
    ]
    for r in rows:
        runs = r["runs"]
        cells = [
            r["component"] + (", loss over the vocabulary" if r["llm"] and is_raw(r) else ""),
            f"{r['minutes'] or statistics.mean(run['train_seconds'] for run in runs) / 60:.3g}",
            len(runs),
            f"{statistics.mean(run['texts_seen'] for run in runs):.0f}" if r["llm"] else "",
            f"**{r['test_f1_mean']:.2f}**",
            f"{r['test_f1_spread']:.2f}",
            f"{statistics.mean(run['test']['set_f'] for run in runs):.2f}",
            sum(run["test"]["violations"] for run in runs),
            f"{statistics.mean(run['test']['ms_each'] for run in runs):.3g}",
        ]
        out.append("| " + " | ".join(str(c) for c in cells) + " |")
    return out


def is_raw(r: Dict[str, Any]) -> bool:
    """Results of before there was a choice don't say it."""
    return r.get("loss", "raw") == "raw"


def _ablations(r: Dict[str, Any]) -> List[str]:
    run = r["runs"][0]
    if "ablations" not in run:
        return []
    chosen = "; ".join(
        ", ".join(f"{k} {v}" for k, v in each["chosen"].items()) for each in r["runs"]
    )
    out = [
        "",
        f"Chosen on dev, seed by seed: {chosen}. One setting changed at a time, first seed, "
        f"{r['ablation_docs']} test sentences:",
        "",
        "| | strict F1 | set F1 |",
        "|---|---|---|",
    ]
    for what, scores in run["ablations"].items():
        out.append(f"| {what} | {scores['f']:.2f} | {scores['set_f']:.2f} |")
    return out


def training_table(r: Dict[str, Any]) -> List[str]:
    out = [
        f"## How padellm_ner is trained: {r['set']}",
        "",
        f"{r['minutes']:g} CPU minutes each, seed {r['seed']}, {r['docs']} texts: what is learnt fast,",
        f"not what ends best. {r.get('note', '')}".strip(),
        "",
        "| trained | texts seen | strict F1 | set F1 |",
        "|---|---|---|---|",
    ]
    for way, row in r["ways"].items():
        out.append(f"| {way} | {row['texts_seen']} | {row['f']:.1f} | {row['set_f']:.1f} |")
    return out


def constraint_table(r: Dict[str, Any]) -> List[str]:
    out = [
        f"## What the constraint is worth: {r['set']}",
        "",
        f"{r['docs']} test texts, the same weights, greedy, published count, before de-duplication.",
        "Set F1 in percent; without the constraint, what is not in the text is dropped. "
        + r.get("note", ""),
        "",
        "| decoding | precision | recall | set F1 | written | not in the text |",
        "|" + "---|" * 6,
    ]
    for what in ("constrained", "free"):
        row = r[what]
        scores = " | ".join(f"{row[key]:.1f}" for key in ("p", "r", "set_f"))
        out.append(f"| {what} | {scores} | {row['written']} | {row['not_in_text']} |")
    return out


def paired_interval(a: List[Dict[str, Any]], b: List[Dict[str, Any]]) -> Tuple[float, float]:
    """Resample test sentences; seeds are pooled.

    RETURNS (Tuple[float, float]): 2.5 and 97.5 percent points of the difference in F1.
    """
    rng = random.Random(0)
    n = len(a[0]["test"]["each"])
    differences = []
    for _ in range(DRAWS):
        chosen = rng.choices(range(n), k=n)
        scores = []
        for runs in (a, b):
            counts = [run["test"]["each"] for run in runs]
            scores.append(f1([c[i] for c in counts for i in chosen]))
        differences.append(scores[0] - scores[1])
    differences.sort()
    return differences[int(0.025 * DRAWS)], differences[int(0.975 * DRAWS) - 1]


def f1(counts: Counts) -> float:
    right, found, gold = (sum(c[k] for c in counts) for k in range(3))
    return 200 * right / max(found + gold, 1)
