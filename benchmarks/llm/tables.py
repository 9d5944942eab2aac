"""The section of RESULTS.md about the memory of an LLM."""

from typing import Any, Dict, List

from benchmarks.lib.markdown import paragraph


def memory_table(r: Dict[str, Any]) -> List[str]:
    """Memory, time and closeness of the hidden states by dtype and quantization."""
    out = [
        f"## Memory of {r['llm']} by dtype and quantization",
        "",
        *paragraph(
            "On a CPU, each in a new process. Estimate: what the check before loading computes from the",
            "files. Memory: growth of the resident memory by loading the LLM, and its peak during loading.",
            "Reading: CPU seconds for four sentences, up to the middle layer. Cosine: median similarity of",
            "the hidden states of the middle layer with those in float32, without position 0.",
        ),
        "",
        "| dtype | quantization | estimate, MB | memory, MB | peak, MB | loading, s | reading, s "
        "| cosine |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    for row in r["rows"]:
        cells = [
            row["dtype"],
            row["quantization"] or "",
            *(f"{row[key]:,.0f}" for key in ("estimated_mb", "rss_mb", "loading_peak_mb")),
            f"{row['loading_seconds']:.1f}",
            f"{row['reading_seconds']:.2f}",
            f"{row['cosine']:.4f}",
        ]
        out.append("| " + " | ".join(cells) + " |")
    return out


def self_check_table(results: Dict[str, Any]) -> List[str]:
    """RETURNS (List[str]): The section about the self-check, without its provenance."""
    out = [
        "## Self-check of an LLM",
        "",
        *paragraph(
            "Seconds, and the largest difference from transformers' own forward pass: of hidden states or",
            "attention weights (relative), and of log-probabilities (nats).",
        ),
        "",
        "| LLM | dtype | seconds | CPU seconds | states | log-probabilities |",
        "|---|---|--:|--:|--:|--:|",
    ]
    for row in results["rows"]:
        findings = row["findings"].values()
        states = max(finding["states"] for finding in findings)
        log_probs = max(finding["log_probs"] or 0.0 for finding in findings)
        cells = [row["llm"], row["dtype"].removeprefix("torch."), f"{row['seconds']:.1f}"]
        cells += [f"{row['cpu_seconds']:.1f}", f"{states:.1e}", f"{log_probs:.1e}"]
        out.append("| " + " | ".join(cells) + " |")
    return out
