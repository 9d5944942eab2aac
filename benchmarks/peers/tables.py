"""The sections of RESULTS.md about peers, and their plots, docs/peers_NAME.svg."""

from typing import Any, Dict, List

from benchmarks.lib.line_plot import Line, line_plot
from benchmarks.lib.markdown import paragraph

PREFIX = "peers_"
SETS = {
    "own": "this project's English corpus",
    "conll": "CoNLL-2003, sentence by sentence",
    "wnut17": "WNUT-17",
    "ncbi": "NCBI Disease",
    "genia": "GENIA, the longest of nested entities",
}
SYSTEMS = {
    "ember_probe": "ember_probe",
    "from words": "ember_probe, from labels in words",
    "ner": "spaCy's ner",
    "encoder": "MiniLM, fine-tuned",
}


def peers_table(r: Dict[str, Any]) -> List[str]:
    """RETURNS (List[str]): The section of one corpus."""
    out = [
        f"## Peers by number of labelled sentences: {SETS[r['set']]}",
        "",
        *paragraph(
            "Strict F1 in percent on the same test sentences. CPU seconds of the whole training on one",
            "thread, including the LLM's reading of the corpus, and words per CPU second on the test",
            "sentences. `benchmarks/peers/run.py` describes the systems. CPU times are those of a machine",
            "with other load.",
        ),
        "",
        "| sentences | system | seeds | F1 | CPU s of training | words per CPU s |",
        "|--:|---|--:|--:|--:|--:|",
    ]
    for row in r["rows"]:
        out.append(
            f"| {row['sentences']} | {SYSTEMS[row['system']]} | {len(row['runs'])} | {row['f']:.1f} "
            f"| {row['train_cpu_seconds']:.0f} | {row['words_per_cpu_second']:,.0f} |"
        )
    return out


def prompted_table(r: Dict[str, Any]) -> List[str]:
    """RETURNS (List[str]): The section about spacy-llm with the same LLM."""
    out = [
        "## Labels in words, beside spacy-llm with the same LLM",
        "",
        *paragraph(
            f"Nothing is trained. {r['sentences']} test sentences of this project's English corpus with",
            f"{r['entities']} entities, six labels. `benchmarks/peers/prompted.py` says how spacy-llm gets",
            "the LLM. CPU seconds of one thread of a machine with other load.",
        ),
        "",
        "| system | LLM | P | R | F1 | CPU s per text |",
        "|---|---|--:|--:|--:|--:|",
    ]
    for row in r["rows"]:
        prf = " | ".join(f"{row[key]:.1f}" for key in "prf")
        out.append(f"| {row['system']} | {row['llm']} | {prf} | {row['seconds_per_text']:.2f} |")
    return out


def peers_plot(r: Dict[str, Any]) -> str:
    """Draw F1 by the number of labelled sentences, a line for each system.

    RETURNS (str): The SVG.
    """
    lines = [
        Line(name, [(row["sentences"], row["f"]) for row in r["rows"] if row["system"] == system])
        for system, name in SYSTEMS.items()
    ]
    return line_plot([line for line in lines if line.points], "Labelled sentences", "Strict F1, %")
