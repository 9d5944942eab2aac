"""Makes RESULTS.md from the JSON files in results/.

python benchmarks/report.py
"""

import json
import statistics
from typing import Any, Dict, List

from common import RESULTS

QUALITY_SETS = {
    "conll-sentences": "CoNLL-2003, sentence by sentence",
    "conll-documents": "CoNLL-2003, documents of ten sentences",
    "wnut17": "WNUT-17",
}


def main() -> None:
    results = {path.stem: json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))}
    quality = [r for name, r in results.items() if name.startswith("ember_quality_")]
    lines = ["# Results", "", "Made by `python benchmarks/report.py` from `benchmarks/results/`."]
    for key, title in QUALITY_SETS.items():
        rows = [r for r in quality if r["set"] == key]
        if rows:
            lines += ["", f"## {title}", "", *quality_table(rows)]
    lines += other_tables(results)
    (RESULTS.parent / "RESULTS.md").write_text("\n".join(lines) + "\n")


def quality_table(rows: List[Dict[str, Any]]) -> List[str]:
    out = [
        "Strict F1 of entities, in percent. Spread: highest minus lowest seed. No bounds: the Docs",
        "don't have their sentence boundaries. ECE: expected calibration error on test.",
        "",
        "| preset | seeds | dev | test | spread | no bounds | threshold | ECE | training, CPU min |",
        "|" + "---|" * 9,
    ]
    for r in sorted(rows, key=lambda r: -r["test_f1_mean"]):
        runs = r["runs"]
        bare = [
            run["test_without_boundaries"]["f"] for run in runs if "test_without_boundaries" in run
        ]
        ece = [run["test_ece"] for run in runs if run.get("test_ece") is not None]
        thresholds = sorted({str(run["threshold"]) for run in runs if "threshold" in run})
        cells = [
            r["preset"] + (f" ({r['note']})" if r.get("note") else ""),
            len(runs),
            f"{statistics.mean(run['dev']['f'] for run in runs):.2f}",
            f"**{r['test_f1_mean']:.2f}**",
            f"{r['test_f1_spread']:.2f}",
            f"{statistics.mean(bare):.2f}" if bare else "",
            ", ".join(thresholds),
            f"{statistics.mean(ece):.3f}" if ece else "",
            f"{statistics.mean(run['train_cpu_seconds'] for run in runs) / 60:.1f}",
        ]
        out.append("| " + " | ".join(str(c) for c in cells) + " |")
    return out + sources(rows)


def other_tables(results: Dict[str, Any]) -> List[str]:
    lines: List[str] = []
    for name, r in results.items():
        if name.startswith("ember_quality_"):
            continue
        lines += ["", f"## {name}", "", "| | |", "|---|---|"]
        for key, value in r.items():
            if key in ("command", "date", "device", "cores", "threads", "torch", "spacy", "ratios"):
                continue
            if isinstance(value, dict):
                value = ", ".join(f"{k} {show(v)}" for k, v in value.items())
            elif isinstance(value, list):
                value = ", ".join(show(v) for v in value)
            lines.append(f"| {key.replace('_', ' ')} | {show(value)} |")
        lines += sources([r])
    return lines


def show(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def sources(rows: List[Dict[str, Any]]) -> List[str]:
    machines = {
        f"{r['device']}, {r['threads']} thread(s), {r['date']}, torch {r['torch']}" for r in rows
    }
    return ["", "; ".join(sorted(machines)), "", "```", *[r["command"] for r in rows], "```"]


if __name__ == "__main__":
    main()
