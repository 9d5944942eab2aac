"""The sections of RESULTS.md about `padellm_ner`."""

import statistics
from typing import Any, Dict, List

from benchmarks.lib.intervals import paired_interval
from benchmarks.lib.markdown import overhead_rows, paragraph
from benchmarks.lib.provenance import provenance


def quality_section(results: Dict[str, Any], titles: Dict[str, str]) -> List[str]:
    """One section per corpus: the components, with paired intervals of their differences."""
    runs = [r for name, r in results.items() if name.startswith("padellm_quality_")]
    lines: List[str] = []
    for key in sorted({r["set"] for r in runs}):
        rows = [r for r in runs if r["set"] == key]
        lines += ["", f"## Quality of padellm_ner: {titles.get(key, key)}", "", *_table(rows)]
        ours = [r for r in rows if r["component"] == "padellm_ner"]
        others = [r for r in rows if r["component"] != "padellm_ner"]
        for a in ours:
            lines += _ablations(a)
            for b in others:
                low, high = paired_interval(a["runs"], b["runs"])
                lines += [
                    "",
                    f"Strict test F1 of {a['component']} minus {b['component']}, 95 % interval (paired "
                    f"bootstrap over the test sentences): {low:+.2f} to {high:+.2f}.",
                ]
        lines += provenance(rows)
    return lines


def _table(rows: List[Dict[str, Any]]) -> List[str]:
    llm = next((r["llm"] for r in rows if r["llm"]), "no LLM")
    out = [
        *paragraph(
            f"{llm}, {rows[0]['test_docs']} test texts. `padellm_ner` and the autoregressive baseline",
            "have the same adapter, recipe and CPU time; spaCy's `ner` is trained until early",
            "stopping. Strict F1 of spans and the paper's F1 of sets of strings (set F1), in percent.",
            "Violations: spans whose string differs from the text at their offsets.",
        ),
        "",
        "| component | CPU min | seeds | texts seen | strict F1 | spread | set F1 | violations "
        "| ms per text |",
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
    """RETURNS (bool): Whether the loss was over the whole vocabulary. Old results don't contain the loss:
    there was no choice."""
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
        *paragraph(
            f"Chosen on dev for each seed: {chosen}. Ablations of one setting at a time, with the first",
            f"seed on {r['ablation_docs']} test sentences:",
        ),
        "",
        "| | strict F1 | set F1 |",
        "|---|---|---|",
    ]
    for what, scores in run["ablations"].items():
        out.append(f"| {what} | {scores['f']:.2f} | {scores['set_f']:.2f} |")
    return out


def training_table(r: Dict[str, Any]) -> List[str]:
    out = [
        f"## Training settings of padellm_ner: {r['set']}",
        "",
        *paragraph(
            f"{r['minutes']:g} CPU minutes each, seed {r['seed']}, {r['docs']} test texts. This shows",
            "which variant learns fastest, not which one is best in the end.",
            r.get("note", ""),
        ),
        "",
        "| variant | texts seen | strict F1 | set F1 |",
        "|---|---|---|---|",
    ]
    for way, row in r["ways"].items():
        out.append(f"| {way} | {row['texts_seen']} | {row['f']:.1f} | {row['set_f']:.1f} |")
    return out


def constraint_table(r: Dict[str, Any]) -> List[str]:
    out = [
        f"## Effect of the constraint: {r['set']}",
        "",
        *paragraph(
            f"{r['docs']} test texts, the same weights, greedy decoding, published count, before",
            "deduplication. Scores in percent. Without the constraint, strings that are not in the",
            "text are dropped.",
            r.get("note", ""),
        ),
        "",
        "| decoding | precision | recall | set F1 | strings | not in the text |",
        "|" + "---|" * 6,
    ]
    for what in ("constrained", "free"):
        row = r[what]
        scores = " | ".join(f"{row[key]:.1f}" for key in ("p", "r", "set_f"))
        out.append(f"| {what} | {scores} | {row['written']} | {row['not_in_text']} |")
    return out


def speed_table(r: Dict[str, Any]) -> List[str]:
    """One table for single sentences, one for batches."""
    out = [
        f"## Speed of padellm_ner: {r['test']}" + (", gold answers" if r["gold_answers"] else ""),
        "",
        *paragraph(
            f"{r['llm']} on {r['llm_device']}, {r['labels']} labels, {r['sentences']} sentences.",
            f"The methods alternate, with {r['rounds']} rounds for each sentence; the median is used.",
            '"Ours" is `padellm_ner`, "published way" the published inference. Ratio: mean time',
            "divided by that of `padellm_ner`, in brackets the 95 % bootstrap interval over sentences.",
            "Rounds: lowest and highest ratio of a round.",
            r.get("note", ""),
            "All methods write the gold answers, so that mistakes of the models have no effect."
            if r["gold_answers"]
            else 'For "published way and wording", the answers of `padellm_ner` are forced.',
        ),
    ]
    if not r["gold_answers"]:
        out += ["", *_comparison(r["f1"], r["same_outcome"])]
    for part, title in (("batch_1", "One sentence at a time"), ("batch_8", "Batches of 8")):
        passes = "passes per sentence" if part == "batch_1" else "passes per batch"
        out += [
            "",
            f"| {title} | mean ms | median ms | {passes} | tokens per sentence | ratio | rounds |",
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


def _comparison(f1: Dict[str, float], same: Dict[str, Any]) -> List[str]:
    """A paragraph about scores, and about whether all ways of decoding gave the same."""
    without = ""
    if "published way = ours" in same:
        without = f"Without constraints, it did so on {same['published way = ours']}."
    return paragraph(
        f"Strict F1 of these sentences: `padellm_ner` {f1['ours']:.1f}, autoregressive",
        f"{f1['autoregressive']:.1f}. With all speed-ups, `padellm_ner` gave the same result as plain",
        f"constrained decoding on {same['default = plain']} of {same['sentences']} sentences. The",
        "published way with the same constraints gave the same result on the first",
        f"{same['sentences, published way']} sentences.",
        without,
    )


def overhead_table(r: Dict[str, Any]) -> List[str]:
    return [
        "## Time of padellm_ner around the LLM's passes",
        "",
        *paragraph(
            "CPU time of one thread. The LLM has one tiny layer, so that the rest can be measured.",
            f"{r['texts']} made-up texts with {r['entities']} entities. {r['tokens']:,} tokens go through",
            f"the LLM. Median of {r['rounds']} rounds, in which both versions take turns. The sum",
            "leaves out the LLM and spaCy's tokenizer. Both versions find the same entities; the largest",
            f"difference of two scores is {r['max_score_difference']:.0e}.",
        ),
        *overhead_rows(r, "token"),
    ]
