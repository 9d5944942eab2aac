"""Tables of el4ner_ablation.py's results for RESULTS.md."""

from typing import Any, Dict, List

from padellm_tables import paired_interval


def ablation_table(r: Dict[str, Any]) -> List[str]:
    """A row for each variant of el4ner_ensemble."""
    out = [
        f"## Stages of el4ner_ensemble: {r['set']}",
        "",
        f"Strict scores in percent on {r['texts']} texts with {r['entities']} entities,",
        f"{r['k']} demonstrations out of {r['pool']} labelled texts, verifier {r['verifier']} (an LLM",
        f"alone verifies itself), seed {r['seed']}. Seconds, calls and tokens are those of a text.",
        f"Fitted: `calibrate` on {r.get('held_out')} held-out texts, and the verifier's threshold that is "
        "best there (0: all is kept);",
        f"elsewhere it is {r['threshold']}. Ensemble minus it: difference in F of the ensemble of the same "
        "kind, 95 % interval over",
        "the texts (paired bootstrap). Alike: of so many demonstrations, in percent, an entity has a label"
        f" of the text. {r.get('note', '')}".strip(),
        "",
        "| variant | P | R | F | ensemble minus it | threshold | alike | s | calls | tokens |",
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
        surer = 100 * r["stages"]["verifier"]
        out += [
            "",
            "What each stage of the ensemble knows. Entities whose span is found: "
            + (
                f"{before[0]} (of {before[1]} spans) without demonstrations, with them "
                if before
                else ""
            )
            + f"{spans}. Of those of",
            f"the union, to whom the right one of {len(r['labels'])} labels is the likeliest: {right}.",
            f"To the verifier a right claim is likelier than a wrong one in {surer:.0f} % of pairs (50: it "
            "knows nothing).",
        ]
    return out


def difference(variants: Dict[str, Any], name: str) -> str:
    """RETURNS (str): How much better the ensemble is that is not verified, or fitted, if this is."""
    kind = name.partition(", ")[2]
    ensemble = variants.get(f"ensemble, {kind}" if kind else "ensemble")
    if name.startswith("ensemble") or ensemble is None or "each" not in ensemble:
        return ""
    low, high = paired_interval([{"test": ensemble}], [{"test": variants[name]}])
    return f"{low:+.1f} to {high:+.1f}"
