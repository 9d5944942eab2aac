"""Tables of `ra_it_ner` for RESULTS.md."""

from statistics import mean
from typing import Any, Dict, List


def shared_context_table(r: Dict[str, Any]) -> List[str]:
    """What sharing the context is worth."""
    out = [
        "## ra_it_ner: examples and passage once for all types",
        "",
        f"{r['texts']} texts of this project's test part, {r['types']} types, {r['examples_mean']:.0f}",
        f"examples ({r['tokens_of_examples_mean']:.0f} tokens) in front, {r['llm']}, one text at a time;",
        "the ways took turns.",
        f"Texts with other answers: {r['texts_with_other_answers']}. {r.get('note', '')}".strip(),
        "",
        "| way | s a text (median) | tokens | passes | of ours (median of ratios) |",
        "|" + "---|" * 5,
    ]
    names = {
        "shared": "ours",
        "again": "encoded again for every type, one after the other",
        "again, batched": "encoded again for every type, in one batch",
    }
    for way, x in r["ways"].items():
        out.append(
            f"| {names[way]} | {x['seconds_median']:.2f} | {x['tokens_per_text']:.0f} | "
            f"{x['passes_per_text']:.1f} | {x['times_ours_median']:.2f} |"
        )
    return out


def transfer_table(r: Dict[str, Any]) -> List[str]:
    """RA-IT against plain tuning on types that neither was tuned on."""
    s = r["settings"]
    runs = r["runs"]
    out = [
        "## ra_it_ner against plain instruction tuning: CrossNER, zero-shot",
        "",
        f"Tuned on {', '.join(s['tuned_on'])} ({s['texts_to_tune_on']} texts in all),",
        f"{s['processor_minutes_of_tuning']:g} minutes of processor time each ('as many texts': on as many",
        f"as RA-IT sees in that time), {s['seeds']} seed(s);",
        f"{s['test_texts_per_domain']} test texts of each domain, `misc` left out. Strict F1 of spans in",
        "percent, in brackets F1 of strings as UniversalNER counts. The samples are small: a few points",
        f"of one domain mean nothing. {r.get('note', '')}".strip(),
        "",
        "| tuned | texts seen | read | " + " | ".join(domains(runs)) + " | mean |",
        "|" + "---|" * (len(domains(runs)) + 4),
    ]
    for way in dict.fromkeys(run["way"] for run in runs):
        for mode in dict.fromkeys(run["mode"] for run in runs):
            mine = [x for x in runs if x["way"] == way and x["mode"] == mode]
            cells = [cell([x for x in mine if x["domain"] == d]) for d in domains(runs)]
            counted = [x["texts_tuned_on"] for x in mine if "texts_tuned_on" in x]
            seen = f"{mean(counted):.0f}" if counted else ""
            out.append(
                f"| {way} | {seen} | {mode} | " + " | ".join(cells) + f" | **{cell(mine)}** |"
            )
    return out


def calibrated_table(r: Dict[str, Any]) -> List[str]:
    """When to show examples."""
    rules = list(next(iter(r["mean"].values())))
    out = [
        "## ra_it_ner: when to show examples",
        "",
        f"Tuned as in ra_it_transfer, for {r['processor_minutes_of_tuning']:g} CPU minutes, {r['seeds']} "
        "seed(s). For each domain of CrossNER",
        f"`calibrate` reads {r['held_out_texts_per_domain']} texts of dev; F1 on "
        f"{r['test_texts_per_domain']} of test, strict, in percent, and in brackets",
        f"how many texts have examples in front. {r.get('note', '')}".strip(),
        "",
        "| domain | examples | " + " | ".join(rules) + " | threshold |",
        "|---|---|" + "--:|" * (len(rules) + 1),
    ]
    for run in r["runs"]:
        cells = [f"{run['f'][rule]:.1f} ({run['shown'][rule]})" for rule in rules]
        cells.append(f"{run['threshold']:.2f}")
        out.append("| " + " | ".join([run["domain"], run["examples"], *cells]) + " |")
    for name, of_pool in r["mean"].items():
        cells = [f"**{of_pool[rule]:.1f}**" for rule in rules]
        out.append("| " + " | ".join(["**mean**", name, *cells, ""]) + " |")
    return out


def domains(runs: List[Dict[str, Any]]) -> List[str]:
    return list(dict.fromkeys(run["domain"] for run in runs))


def cell(runs: List[Dict[str, Any]]) -> str:
    if not runs:
        return ""
    return f"{mean(x['f_strict'] for x in runs):.1f} ({mean(x['f_strings'] for x in runs):.1f})"
