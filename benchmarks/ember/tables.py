"""The sections of RESULTS.md about `ember_probe`."""

import statistics
from typing import Any, Dict, List

from benchmarks.lib.markdown import overhead_rows, paragraph
from benchmarks.lib.provenance import provenance


def quality_table(rows: List[Dict[str, Any]]) -> List[str]:
    out = [
        *paragraph(
            "Strict F1 of entities, in percent. Spread: highest minus lowest seed. No boundaries: test on",
            "Docs without sentence boundaries. ECE: expected calibration error on test. Training: CPU time",
            "of the median seed, for which the cache already contains the LLM's features of the corpus.",
        ),
        "",
        "| preset | seeds | dev | test | spread | no boundaries | threshold | ECE | training, CPU min |",
        "|" + "---|" * 9,
    ]
    for r in sorted(rows, key=lambda r: -r["test_f1_mean"]):
        runs = r["runs"]
        bare = [
            run["test_without_boundaries"]["f"] for run in runs if "test_without_boundaries" in run
        ]
        ece = [run["test_ece"] for run in runs if run.get("test_ece") is not None]
        thresholds = sorted({str(run["threshold"]) for run in runs if "threshold" in run})
        cells = [
            r["preset"] + (f" ({r['note']})" if r.get("note") else ""),
            len(runs),
            f"{statistics.mean(run['dev']['f'] for run in runs):.2f}",
            f"**{r['test_f1_mean']:.2f}**",
            f"{r['test_f1_spread']:.2f}",
            f"{statistics.mean(bare):.2f}" if bare else "",
            ", ".join(thresholds),
            f"{statistics.mean(ece):.3f}" if ece else "",
            f"{statistics.median(run['train_cpu_seconds'] for run in runs) / 60:.1f}",
        ]
        out.append("| " + " | ".join(str(c) for c in cells) + " |")
    return out + provenance(rows)


def fewshot_table(r: Dict[str, Any]) -> List[str]:
    out = [
        "## Few-shot, this project's English corpus",
        "",
        *paragraph(
            "`EmberFewShot.v2` without training, from k sentences for each of six labels and k sentences",
            f"without an entity. Strict F1 in percent: mean over {r['seeds']} draws of the sentences, in",
            "brackets the highest minus the lowest. All rows but the default were measured before there",
            "was a prefix (`EmberFewShot.v1`).",
        ),
        "",
        "| settings | k | total sentences | dev | test |",
        "|" + "---|" * 5,
    ]
    for row in r["rows"]:
        parts = (
            f"{row[f'{p}_f1_mean']:.1f} ({row[f'{p}_f1_spread']:.1f})" for p in ("dev", "test")
        )
        cells = [row["variant"], str(row["k"]), f"{row['sentences_mean']:.0f}", *parts]
        out.append("| " + " | ".join(cells) + " |")
    return out


def layers_table(r: Dict[str, Any], title: str) -> List[str]:
    """The rows in two columns."""
    out = [
        f"## Layers: {title}",
        "",
        *paragraph(
            f"Output of `spacy llmner layers`: a type probe on one layer of {r['llm']}, with adjacent",
            f"words of the same type joined. Strict dev F1 in percent, from the first {r['limit']}",
            "documents of train and of dev. Layer 0 is the embeddings.",
        ),
        "",
        "| layer | F1 | layer | F1 |",
        "|" + "---|" * 4,
    ]
    cells = []
    for s in r["layers"]:
        f1 = f"{100 * s['ents_f']:.1f}"
        cells.append(f"{s['layer']} | " + (f"**{f1}**" if s["layer"] == r["best_layer"] else f1))
    half = -(-len(cells) // 2)
    for k in range(half):
        second = cells[half + k] if half + k < len(cells) else " | "
        out.append(f"| {cells[k]} | {second} |")
    return out


def describe_size(counts: Dict[str, int]) -> str:
    return "{texts} texts with {words} generated words and {entities} entities".format(**counts)


def generated_table(r: Dict[str, Any]) -> List[str]:
    out = [
        "## Training on generated text",
        "",
        *paragraph(
            f"{r['llm']} continues sentences of this project's English corpus. An annotator adds silver",
            f"labels: the {r['annotator']}, trained on the sentences of the corpus and on documents",
            f"joined from them, with a strict F1 of {r['annotator_written']['f']:.1f} on the test",
            f"sentences of the corpus. Train: {describe_size(r['generated_train'])}. Test, from other",
            f"topics: {describe_size(r['generated_test'])}. The default preset, without its prefix as",
            f"when streaming, is then trained for {r['steps']} steps on each set. Strict F1 in",
            "percent: mean over the seeds, in brackets the highest minus the lowest.",
            '"Written" is the text of the corpus.',
        ),
        "",
        "| trained on | seeds | generated test, silver | written test, gold |",
        "|" + "---|" * 4,
    ]
    for row in r["rows"]:
        parts = (
            f"{row[f'{p}_f1_mean']:.1f} ({row[f'{p}_f1_spread']:.1f})"
            for p in ("generated", "written")
        )
        out.append("| " + " | ".join([row["trained_on"], str(len(row["runs"])), *parts]) + " |")
    return out


def schedule_table(r: Dict[str, Any]) -> List[str]:
    out = [
        "## Training schedules of ember_probe for corpora of different sizes",
        "",
        *paragraph(
            "CoNLL-2003, sentence by sentence. Chosen: the schedule of `spacy llmner init config`, with",
            "batches of 1,000 words, padding included. Fixed: 900 batches of 3,000 words for any corpus,",
            "as in configs/ember_probe.cfg before that command existed (but it stops 500 steps after the",
            "best evaluation). Strict F1 in percent, one seed.",
            "Minutes: CPU time of training and its evaluations (on dev data with a fifth as many",
            'sentences), for which the cache already contains the LLM\'s features. With "about", the',
            "minutes are extrapolated from a few steps and one evaluation. The command was also run with",
            "`--test-sentences 3453` for all sentences, and with `--fixed`.",
        ),
        "",
        "| sentences | words | test sentences | steps | chosen, F1 | minutes | fixed, F1 | minutes |",
        "|" + "--:|" * 8,
    ]
    for row in r["rows"]:
        chosen, fixed = row["chosen"], row["fixed"]
        trained = "f" in fixed
        cells = [
            f"{row['sentences']:,}",
            f"{chosen['words']:,}",
            f"{row['test_sentences']:,}",
            f"{chosen['steps']:,}",
            f"**{chosen['f']:.1f}**",
            f"{chosen['cpu_minutes']:.1f}",
            f"{fixed['f']:.1f}" if trained else "",
            f"{fixed['cpu_minutes']:.1f}"
            if trained
            else f"about {fixed['extrapolated_cpu_minutes']:.0f}",
        ]
        out.append("| " + " | ".join(cells) + " |")
    return out


def overhead_table(r: Dict[str, Any]) -> List[str]:
    return [
        "## Time of ember_probe around the LLM",
        "",
        *paragraph(
            "CPU time of one thread. The LLM has one tiny layer, so that the rest can be measured.",
            f"{r['texts']:,} made-up texts with {r['words']:,} words and {r['entities']:,} entities, in",
            f"batches of {r['batch_size']} texts. Median of {r['rounds']} rounds, in which both versions",
            "take turns. The sum leaves out the LLM, spaCy's tokenizer and the probe's own network, whose",
            "time is arithmetic that a GPU does. Both versions find the same entities; the largest",
            f"difference of two scores is {r['max_score_difference']:.0e}.",
        ),
        *overhead_rows(r, "word"),
    ]
