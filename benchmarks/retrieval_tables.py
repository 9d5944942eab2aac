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
            cells.append(f"{100 * g['passed']:.0f}: {100 * g['same_label']:.0f}")
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
    return [
        "## Retrieval: leaks",
        "",
        f"Each of {r['texts']:,} texts of {len(r['sets'])} sets was asked of an index of all of them "
        f"({r['examples']:,} without duplicates), in other case and white space.",
        f"Of {r['examples found']:,} examples found, {r['copies']} were the text itself or a copy, "
        f"{r['near-duplicates']} nearly the same.",
    ]
