"""The sections of RESULTS.md about retrieval."""

from typing import Any, Dict, List

from benchmarks.lib.markdown import paragraph

GATES = ("bm25 >= 20", "relative >= 0.2", "cosine >= 0.55")


def index_table(r: Dict[str, Any]) -> List[str]:
    lines = [
        "## Retrieval: kinds of index",
        "",
        *paragraph(
            f"Recall of the {r['k']} nearest neighbors in generated, clustered vectors of {r['width']}",
            "dimensions. Defaults:",
            f"{', '.join(f'{name} {value}' for name, value in r['default'].items())}.",
        ),
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
        "## Retrieval: quality",
        "",
        *paragraph(
            "Percentage of the two retrieved examples that have a label of the query. For gates:",
            "percentage of the two nearest that pass, and the percentage of these with a label of the",
            "query. Leaks: how often a query retrieved itself, a copy or a near-duplicate.",
        ),
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
        *paragraph(
            f"Recall of the ten nearest neighbors in {real['n']:,} vectors of these texts: hnsw",
            f"{real['hnsw']:.3f}, ivf {real['ivf']:.3f}.",
        ),
    ]
    return lines


def leaks_table(r: Dict[str, Any]) -> List[str]:
    out = [
        "## Retrieval: leaks",
        "",
        *paragraph(
            f"The {r['texts']:,} texts of all {len(r['files'])} files are queries to an index of the",
            f"same texts ({r['examples']:,} without duplicates), with changed case and white space.",
            "The filters don't depend on the meaning of the vectors: a hash of character trigrams",
            "replaces the encoder.",
        ),
        "",
        "| strategy | queries | retrieved | copies | near-duplicates | same example twice |",
        "|---|" + "--:|" * 5,
    ]
    for name, counts in r["found"].items():
        out.append("| " + " | ".join([name, *(f"{n:,}" for n in counts.values())]) + " |")
    return out


def memory_table(r: Dict[str, Any]) -> List[str]:
    read = r["peak_mb_by_texts_read"]
    return [
        f"## Retrieval: memory for indexing {r['texts']:,} texts",
        "",
        *paragraph(
            f"`spacy llmner index` indexes {r['texts']:,} texts of one .jsonl file ({r['characters']:,}",
            f"characters) in {r['seconds']:.0f} s: {r['examples']:,} examples, {r['vectors_mb']:.0f}",
            f"MB of vectors. Its progress bar is updated {r['bar_updates']} times. Peak resident",
            "memory up to each number of texts:",
        ),
        "",
        "| texts read | " + " | ".join(f"{int(n):,}" for n in read) + " |",
        "|---|" + "--:|" * len(read),
        "| MB | " + " | ".join(f"{mb:,.0f}" for mb in read.values()) + " |",
    ]
