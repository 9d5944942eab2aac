"""The sections of RESULTS.md about `el4ner_ensemble`."""

from typing import Any, Dict, List

from benchmarks.lib.intervals import paired_interval
from benchmarks.lib.markdown import paragraph


def ablation_table(r: Dict[str, Any]) -> List[str]:
    """A row for each variant of el4ner_ensemble."""
    out = [
        f"## Stages of el4ner_ensemble: {r['set']}",
        "",
        *paragraph(
            f"Strict scores in percent on {r['texts']} texts with {r['entities']} entities.",
            f"{r['k']} demonstrations out of {r['pool']} labelled texts, verifier {r['verifier']} (a",
            f"single LLM verifies its own spans), seed {r['seed']}. Seconds, calls and tokens are per",
            f"text. Fitted: calibrated (`calibrate`) on {r.get('held_out')} held-out texts, with the",
            "verification threshold that is best on these (0: nothing is dropped). Other variants have",
            f"the threshold {r['threshold']}. Ensemble minus variant: F of the ensemble of the same kind",
            "minus F of the variant, 95 % interval (paired bootstrap over the texts). Shared label:",
            "percentage of demonstrations with an entity whose label occurs in the text.",
            r.get("note", ""),
        ),
        "",
        "| variant | P | R | F | ensemble minus variant | threshold | shared label | s | calls | tokens |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name, row in r["variants"].items():
        cells = [f"{row[x]:.1f}" for x in ("p", "r", "f")]
        cells += [
            difference(r["variants"], name),
            f"{row['threshold']:g}" if "threshold" in row else "",
        ]
        cells.append(f"{row['alike']:.0f}" if row.get("alike") is not None else "")
        cells += [f"{row[x]:.1f}" if x in row else "" for x in ("seconds", "calls")]
        tokens = f"{row['tokens']:.0f}" if "tokens" in row else ""
        out.append("| " + " | ".join([name, *cells, tokens]) + " |")
    if "stages" in r:
        found, types = r["stages"]["found"], r["stages"]["types"]
        spans = ", ".join(f"{name} {n} (of {listed} spans)" for name, (n, listed) in found.items())
        right = ", ".join(f"{name} {n}" for name, n in types.items())
        before = r["stages"].get("before")
        auc = 100 * r["stages"]["verifier"]
        out += [
            "",
            *paragraph(
                "The stages of the ensemble separately. Entities whose span is found:",
                f"{before[0]} (of {before[1]} spans) without demonstrations, with them"
                if before
                else "",
                f"{spans}. Entities of the union for which the correct one of {len(r['labels'])}",
                f"labels is the most likely: {right}. The verifier considers a correct claim more",
                f"likely than a wrong one in {auc:.0f} % of pairs (50 is chance).",
            ),
        ]
    return out


def difference(variants: Dict[str, Any], name: str) -> str:
    """RETURNS (str): The interval of the F1 of the ensemble of the same kind (not verified, fitted, ...)
    minus that of a variant. Empty for the ensembles."""
    kind = name.partition(", ")[2]
    ensemble = variants.get(f"ensemble, {kind}" if kind else "ensemble")
    if name.startswith("ensemble") or ensemble is None or "each" not in ensemble:
        return ""
    low, high = paired_interval([{"test": ensemble}], [{"test": variants[name]}])
    return f"{low:+.1f} to {high:+.1f}"
