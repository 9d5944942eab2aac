"""The section of RESULTS.md about many streams."""

from typing import Any, Dict, List

from benchmarks.lib.markdown import paragraph


def many_streams_table(r: Dict[str, Any]) -> List[str]:
    out = [
        "## Many streams side by side",
        "",
        *paragraph(
            "Milliseconds per round, which adds one token to every stream, without and with `ember_probe`",
            "(medians), and their ratio (its range over repetitions). MB per stream: keys and values,",
            "spare capacity included, and what the probe keeps.",
        ),
        "",
        "| streams | context | without, ms | with, ms | ratio | tokens/s | keys and values, MB "
        "| probe, MB |",
        "|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in r["rows"]:
        low, high = min(row["ratios"]), max(row["ratios"])
        out.append(
            f"| {row['streams']} | {row['context']} | {row['plain_ms']:.1f} | {row['ember_ms']:.1f} "
            f"| {row['ratio']:.3f} ({low:.3f} to {high:.3f}) | {row['tokens_per_s']:.1f} "
            f"| {row['cache_mb_per_stream']:.1f} | {row['features_mb_per_stream']:.1f} |"
        )
    out += [
        "",
        *paragraph(
            f"Eight streams write {r['speed_up_8_over_1']:.1f} times as many tokens per second as one, and",
            f"{r['speed_up_8_over_1_long']:.1f} times as many with the long context.",
        ),
    ]
    return out
