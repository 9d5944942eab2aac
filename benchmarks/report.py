"""Makes RESULTS.md from the JSON files in results/.

python benchmarks/report.py
"""

import json
import statistics
from typing import Any, Callable, Dict, List

from common import RESULTS
from el4ner_tables import ablation_table
from padellm_tables import constraint_table, quality_section, training_table
from project_tables import project_table
from ra_it_tables import calibrated_table, shared_context_table, transfer_table
from retrieval_tables import index_table, leaks_table, memory_table
from retrieval_tables import quality_table as retrieval_table
from sources import sources

QUALITY_SETS = {
    "conll-sentences": "CoNLL-2003, sentence by sentence",
    "litbank": "LitBank, nested",
    "weibo": "Weibo, Chinese",
    "conll-sentences-bfloat16": "CoNLL-2003, sentence by sentence, LLM in bfloat16",
    "conll-documents": "CoNLL-2003, documents of ten sentences",
    "wnut17": "WNUT-17",
    "own-english": "This project's English corpus (480 sentences to learn from)",
    "own-chinese": "This project's Chinese corpus (138 sentences to learn from)",
}


def main() -> None:
    (RESULTS.parent / "RESULTS.md").write_text(report())


def report() -> str:
    """RETURNS (str): Tables of all results."""
    results = {path.stem: json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))}
    quality = [r for name, r in results.items() if name.startswith("ember_quality_")]
    lines = ["# Results", "", "Made by `python benchmarks/report.py` from `benchmarks/results/`."]
    for key, title in QUALITY_SETS.items():
        rows = [r for r in quality if r["set"] == key]
        if rows:
            lines += ["", f"## {title}", "", *quality_table(rows)]
    for prefix, table in TABLES.items():
        for name, r in results.items():
            if name.startswith(prefix):
                lines += ["", *table(r), *sources([r])]
    lines += quality_section(results, QUALITY_SETS)
    lines += other_tables(results)
    return "\n".join(lines) + "\n"


def quality_table(rows: List[Dict[str, Any]]) -> List[str]:
    out = [
        "Strict F1 of entities, in percent. Spread: highest minus lowest seed. No bounds: the Docs",
        "don't have their sentence boundaries. ECE: expected calibration error on test. Training: of",
        "the median seed, which finds in the cache what the LLM says of the corpus.",
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
            f"{statistics.median(run['train_cpu_seconds'] for run in runs) / 60:.1f}",
        ]
        out.append("| " + " | ".join(str(c) for c in cells) + " |")
    return out + sources(rows)


def fewshot_table(r: Dict[str, Any]) -> List[str]:
    out = [
        "## Few-shot, this project's English corpus",
        "",
        "`EmberFewShot.v1` without training, from k sentences for each of six labels and k without an",
        f"entity. Strict F1 in percent: mean of {r['seeds']} draws of the sentences, and in brackets",
        "highest minus lowest.",
        "",
        "| settings | k | sentences in all | dev | test |",
        "|" + "---|" * 5,
    ]
    for row in r["rows"]:
        parts = (
            f"{row[f'{p}_f1_mean']:.1f} ({row[f'{p}_f1_spread']:.1f})" for p in ("dev", "test")
        )
        cells = [row["variant"], str(row["k"]), f"{row['sentences_mean']:.0f}", *parts]
        out.append("| " + " | ".join(cells) + " |")
    return out


def layers_table(r: Dict[str, Any]) -> List[str]:
    """Two halves side by side."""
    out = [
        f"## Layers: {QUALITY_SETS[r['set']]}",
        "",
        f"What `spacy llmner layers` prints: a type probe on one layer of {r['llm']}, adjacent",
        "words of a type joined. Strict dev F1 in percent, from the first "
        f"{r['limit']} documents each of train",
        "and dev. Layer 0 are the embeddings.",
        "",
        "| layer | F1 | layer | F1 |",
        "|" + "---|" * 4,
    ]
    cells = []
    for s in r["layers"]:
        f1 = f"{100 * s['ents_f']:.1f}"
        cells.append(f"{s['layer']} | " + (f"**{f1}**" if s["layer"] == r["best_layer"] else f1))
    half = -(-len(cells) // 2)
    for k in range(half):
        second = cells[half + k] if half + k < len(cells) else " | "
        out.append(f"| {cells[k]} | {second} |")
    return out


def size(counts: Dict[str, int]) -> str:
    return "{texts} texts with {words} generated words and {entities} entities".format(**counts)


def generated_table(r: Dict[str, Any]) -> List[str]:
    out = [
        "## Training on generated text",
        "",
        f"{r['llm']} continues sentences of this project's English corpus. An annotator gives",
        f"the silver labels: the {r['annotator']}, trained on the written sentences and on",
        "documents made of them, with a strict F1 of "
        f"{r['annotator_written']['f']:.1f} on the written test sentences.",
        f"Train: {size(r['generated_train'])}. Test, from other topics:",
        f"{size(r['generated_test'])}. The default preset without its prefix, as it streams,",
        f"is then trained in {r['steps']} steps on each set. Strict F1 in percent: mean of the",
        "seeds, and in brackets highest minus lowest.",
        "",
        "| trained on | seeds | generated test, silver | written test, gold |",
        "|" + "---|" * 4,
    ]
    for row in r["rows"]:
        parts = (
            f"{row[f'{p}_f1_mean']:.1f} ({row[f'{p}_f1_spread']:.1f})"
            for p in ("generated", "written")
        )
        out.append("| " + " | ".join([row["trained_on"], str(len(row["runs"])), *parts]) + " |")
    return out


def speed_table(r: Dict[str, Any]) -> List[str]:
    """One table for single sentences, one for batches."""
    same = r["same_outcome"]
    out = [
        f"## Speed of writing entities: {r['test']}"
        + (", gold answers" if r["gold_answers"] else ""),
        "",
        f"{r['llm']} on {r['llm_device']}, {r['labels']} labels, {r['sentences']} sentences, methods in "
        f"turn, median of {r['rounds']}",
        "rounds each. Ratio: of means, to `padellm_ner`'s; in brackets its 95 % bootstrap interval over",
        "sentences, behind it the lowest and highest of a round.",
        *([r["note"]] if "note" in r else []),
    ]
    if r["gold_answers"]:
        out.append("All methods write the gold answers, so that no model's mistakes play a part.")
    else:
        f1 = r["f1"]
        out += [
            "The published wording writes forced answers: those of `padellm_ner`.",
            f"Strict F1 of these sentences: `padellm_ner` {f1['ours']:.1f}, autoregressive "
            f"{f1['autoregressive']:.1f}.",
            "",
            f"On {same['sentences']} sentences, `padellm_ner` wrote with all its speed-ups what plain "
            "constrained decoding",
            f"writes on {same['default = plain']}. On the first {same['sentences, published way']} the "
            "published way under the same constraints wrote the same.",
        ]
        if "published way = ours" in same:
            out[-1] += f" Without them it did so on {same['published way = ours']}."
    for part, title in (("batch_1", "One sentence at a time"), ("batch_8", "Batches of 8")):
        passes = "passes a sentence" if part == "batch_1" else "passes a batch"
        out += [
            "",
            f"| {title} | mean ms | median ms | {passes} | tokens a sentence | ratio | rounds |",
            "|" + "---|" * 7,
        ]
        for method, m in r[part].items():
            ratio = r["ratios"][part].get(method)
            cells = [
                method,
                f"{m['mean_ms']:.0f}",
                f"{m['median_ms']:.0f}",
                f"{m['passes']:.2f}",
                f"{m['tokens']:.1f}",
                f"**{ratio['ratio']:.2f}** ({ratio['low']:.2f} to {ratio['high']:.2f})"
                if ratio
                else "",
                f"{min(ratio['rounds']):.2f} to {max(ratio['rounds']):.2f}" if ratio else "",
            ]
            out.append("| " + " | ".join(cells) + " |")
    return out


TABLES: Dict[str, Callable[[Dict[str, Any]], List[str]]] = {
    "ember_fewshot": fewshot_table,
    "ember_layers_": layers_table,
    "ember_generated": generated_table,
    "padellm_speed": speed_table,
    "padellm_constraint": constraint_table,
    "padellm_training": training_table,
    "project_runs": project_table,
    "ra_it_calibrated": calibrated_table,
    "ra_it_speed": shared_context_table,
    "ra_it_transfer": transfer_table,
    "el4ner_ablation": ablation_table,
    "retrieval_index": index_table,
    "retrieval_leaks": leaks_table,
    "retrieval_memory": memory_table,
    "retrieval_quality": retrieval_table,
}


def other_tables(results: Dict[str, Any]) -> List[str]:
    lines: List[str] = []
    for name, r in results.items():
        if name.startswith(("ember_quality_", "padellm_quality_", *TABLES)):
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


if __name__ == "__main__":
    main()
