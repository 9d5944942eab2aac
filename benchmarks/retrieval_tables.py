"""The tables of RESULTS.md about retrieval."""

from typing import Any, Dict, List

GATES = ("bm25 >= 20", "relative >= 0.2", "cosine >= 0.55")


def index_table(r: Dict[str, Any]) -> List[str]:
    lines = [
        "## Retrieval: kinds of index",
        "",
        f"Recall of the {r['k']} nearest among made-up clustered vectors of {r['width']} dimensions. The",
        f"defaults: {', '.join(f'{name} {value}' for name, value in r['default'].items())}.",
        "",
        "| kind | vectors | setting | recall | queries/s | build, s | memory, MB |",
        "|" + "---|" * 7,
    ]
    for run in r["runs"]:
        names = ("links", "effort", "lists", "probes")
        setting = ", ".join(f"{name} {run[name]}" for name in names if name in run)
        cells = [run["kind"], f"{run['n']:,}", setting, f"{run['recall']:.4f}"]
        cells += [f"{run['queries_per_second']:,}", f"{run['build_seconds']:.1f}", run["memory_mb"]]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return lines


def quality_table(r: Dict[str, Any]) -> List[str]:
    strategies = list(r["mean"])
    lines = [
        "## Retrieval: what is found",
        "",
        "Share of the two examples found that have a label of the query, in percent. Behind a gate:",
        "share of the two nearest that pass, and of these the share with a label of the query. Leaks:",
        "how often a query found itself, a copy or a near-duplicate.",
        "",
        "| set | pool | " + " | ".join([*strategies, *GATES]) + " | leaks |",
        "|" + "---|" * (3 + len(strategies) + len(GATES)),
    ]
    for name, s in r["sets"].items():
        cells = [name, str(s["pool"]), *(f"{100 * s['same_label'][key]:.0f}" for key in strategies)]
        for gate in GATES:
            g = s["gates"][gate]
            shared = f"{100 * g['same_label']:.0f}" if g["passed"] else "-"
            cells.append(f"{100 * g['passed']:.0f}: {shared}")
        lines.append("| " + " | ".join([*cells, str(s["leaks"])]) + " |")
    means = [f"**{100 * r['mean'][key]:.0f}**" for key in strategies]
    lines.append("| " + " | ".join(["**mean**", "", *means, *[""] * len(GATES), ""]) + " |")
    real = r["recall_real_vectors"]
    lines += [
        "",
        f"Recall of the ten nearest among {real['n']:,} vectors of these texts: hnsw {real['hnsw']:.3f}, "
        f"ivf {real['ivf']:.3f}.",
    ]
    return lines


def leaks_table(r: Dict[str, Any]) -> List[str]:
    out = [
        "## Retrieval: leaks",
        "",
        f"{r['texts']:,} texts of all {len(r['files'])} files are asked of an index of all of them "
        f"({r['examples']:,} without duplicates),",
        "in other case and white space. The guards don't depend on what vectors mean: a hash of character",
        "trigrams stands in for the encoder.",
        "",
        "| strategy | texts asked | examples found | copies | near-duplicates | the same twice |",
        "|---|" + "--:|" * 5,
    ]
    for name, counts in r["found"].items():
        out.append("| " + " | ".join([name, *(f"{n:,}" for n in counts.values())]) + " |")
    return out


def memory_table(r: Dict[str, Any]) -> List[str]:
    read = r["peak_mb_by_texts_read"]
    return [
        "## Retrieval: memory while 100,000 texts are indexed",
        "",
        f"`spacy llmner index` of {r['texts']:,} texts in one .jsonl file ({r['characters']:,} characters)",
        f"takes {r['seconds']:.0f} s: {r['examples']:,} examples, {r['vectors_mb']:.0f} MB of vectors.",
        f"Its bar moved {r['bar_updates']} times.",
        "Highest resident memory so far:",
        "",
        "| texts read | " + " | ".join(f"{int(n):,}" for n in read) + " |",
        "|---|" + "--:|" * len(read),
        "| MB | " + " | ".join(f"{mb:,.0f}" for mb in read.values()) + " |",
    ]
