"""The sections of RESULTS.md about `ra_it_ner`."""

from statistics import mean
from typing import Any, Dict, List

from benchmarks.lib.markdown import paragraph


def shared_context_table(r: Dict[str, Any]) -> List[str]:
    """The effect of sharing the context among the types."""
    out = [
        "## Speed of ra_it_ner: one encoding of examples and text for all types",
        "",
        *paragraph(
            f"{r['texts']} texts of this project's test set, {r['types']} types,",
            f"{r['examples_mean']:.0f} examples ({r['tokens_of_examples_mean']:.0f} tokens) before",
            f"each text, {r['llm']}, one text at a time. The methods alternate. Texts with different",
            f"answers: {r['texts_with_other_answers']}.",
            r.get("note", ""),
        ),
        "",
        "| method | s per text (median) | tokens | passes | divided by ours (median) |",
        "|" + "---|" * 5,
    ]
    names = {
        "shared": "ours",
        "again": "encoded again for each type, one type after another",
        "again, batched": "encoded again for each type, in one batch",
    }
    for way, x in r["ways"].items():
        out.append(
            f"| {names[way]} | {x['seconds_median']:.2f} | {x['tokens_per_text']:.0f} | "
            f"{x['passes_per_text']:.1f} | {x['times_ours_median']:.2f} |"
        )
    return out


def transfer_table(r: Dict[str, Any]) -> List[str]:
    """RA-IT compared with plain tuning, on types that neither was tuned on."""
    s = r["settings"]
    runs = r["runs"]
    out = [
        "## ra_it_ner and plain instruction tuning: CrossNER, zero-shot",
        "",
        *paragraph(
            f"Tuned on {', '.join(s['tuned_on'])} ({s['texts_to_tune_on']} texts in total),",
            f'{s["processor_minutes_of_tuning"]:g} CPU minutes each ("as many texts": as many as RA-IT',
            f"sees in that time), {s['seeds']} seed(s), {s['test_texts_per_domain']} test texts per",
            'domain, without the label `misc`. "Vanilla" is plain instruction tuning, without examples.',
            "Strict F1 of spans in percent, in brackets F1 of strings as UniversalNER computes it. The",
            "samples are small: a difference of a few points in one domain is not significant.",
            r.get("note", ""),
        ),
        "",
        "| tuning | texts seen | examples | " + " | ".join(domains(runs)) + " | mean |",
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
    """The rules that decide when to show examples."""
    rules = list(next(iter(r["mean"].values())))
    out = [
        "## ra_it_ner: when to show examples",
        "",
        *paragraph(
            "Tuned with examples, as in the comparison with plain instruction tuning,",
            f"{r['processor_minutes_of_tuning']:g} CPU minutes, {r['seeds']} seed(s). For each domain of",
            f"CrossNER, `calibrate` uses {r['held_out_texts_per_domain']} dev texts. Strict F1 in",
            f"percent on {r['test_texts_per_domain']} test texts, in brackets the number of texts with",
            "examples.",
            r.get("note", ""),
        ),
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
