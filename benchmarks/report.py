"""Write RESULTS.md and the plots in docs/ from the JSON files in results/.

python -m benchmarks.report
"""

import json
from typing import Any, Callable, Dict, List

from benchmarks.el4ner.tables import ablation_table
from benchmarks.ember.stream_tables import many_streams_table
from benchmarks.ember.tables import (
    fewshot_table,
    generated_table,
    layers_table,
    overhead_table,
    quality_table,
    schedule_table,
)
from benchmarks.ember.word_tables import (
    many_labels_table,
    mentions_table,
    sentences_table,
    words_table,
)
from benchmarks.families.tables import families_table, update_docs
from benchmarks.lib.common import RESULTS, ROOT
from benchmarks.lib.markdown import paragraph
from benchmarks.lib.provenance import provenance
from benchmarks.llm.tables import memory_table as llm_memory_table
from benchmarks.llm.tables import self_check_table
from benchmarks.padellm.tables import (
    constraint_table,
    quality_section,
    speed_table,
    training_table,
)
from benchmarks.padellm.tables import overhead_table as padellm_overhead_table
from benchmarks.peers.tables import peers_plot, peers_table, prompted_table
from benchmarks.project.tables import project_table
from benchmarks.ra_it.tables import calibrated_table, shared_context_table, transfer_table
from benchmarks.retrieval.tables import index_table, leaks_table, memory_table
from benchmarks.retrieval.tables import quality_table as retrieval_table
from benchmarks.scale.tables import distil_table
from benchmarks.scaling.tables import scaling_plot, scaling_results, scaling_table
from benchmarks.serve.tables import redaction_table

QUALITY_SETS = {
    "conll-sentences": "CoNLL-2003, sentence by sentence",
    "litbank": "LitBank, nested",
    "weibo": "Weibo, Chinese",
    "conll-sentences-bfloat16": "CoNLL-2003, sentence by sentence, LLM in bfloat16",
    "conll-documents": "CoNLL-2003, documents of ten sentences",
    "wnut17": "WNUT-17",
    "own-english": "This project's English corpus (480 training sentences)",
    "own-chinese": "This project's Chinese corpus (138 training sentences)",
}
# Sections by the beginning of the names of their results.
TABLES: Dict[str, Callable[[Dict[str, Any]], List[str]]] = {
    "ember_fewshot": fewshot_table,
    "ember_layers_": lambda r: layers_table(r, QUALITY_SETS[r["set"]]),
    "ember_generated": generated_table,
    "families": families_table,
    "ember_labels_in_words_": words_table,
    "ember_many_labels": many_labels_table,
    "ember_mentions_": mentions_table,
    "ember_many_streams": many_streams_table,
    "ember_overhead": overhead_table,
    "ember_schedule": schedule_table,
    "ember_sentences_needed": sentences_table,
    "llm_memory": llm_memory_table,
    "llm_self_check": self_check_table,
    "padellm_speed": speed_table,
    "padellm_constraint": constraint_table,
    "padellm_overhead": padellm_overhead_table,
    "padellm_training": training_table,
    "peers_": peers_table,
    "prompted": prompted_table,
    "project_runs": project_table,
    "ra_it_calibrated": calibrated_table,
    "ra_it_speed": shared_context_table,
    "ra_it_transfer": transfer_table,
    "el4ner_ablation": ablation_table,
    "retrieval_index": index_table,
    "retrieval_leaks": leaks_table,
    "retrieval_memory": memory_table,
    "retrieval_quality": retrieval_table,
    "scale_distil_": distil_table,
    "serve_redaction": redaction_table,
}
# Headings of the other sections, also by the beginning of the names of their results.
HEADINGS = {
    "compare_memory": "Memory of all four components in one process",
    "el4ner_speed": "Speed of el4ner_ensemble, compared with prompts that share nothing",
    "ember_memory": "Memory of one to four pipelines with ember_probe",
    "ember_redaction": "Redaction of a text that arrives in pieces: words held back, leaks, and cost",
    "ember_streaming": "Time of an LLM's answer with ember_probe, divided by that without",
    "ember_throughput_gpu": "Speed of ember_probe on a GPU, compared with the LLM alone",
    "ember_throughput": "Speed of ember_probe, compared with the LLM alone",
    "scale_lengths": "Speed of ember_probe by the length of the texts",
    "scale_memory": "Peak memory of spacy llmner annotate by the size of the input, LLM of one layer",
    "scale_million": "spacy llmner annotate on a million short texts, entity_ruler",
    "scale_overhead": "Time of spacy llmner annotate, compared with nlp.pipe",
    "scale_workers": "Speed of spacy llmner annotate with one worker, two, and two Ray actors",
    "serve_load": "Load on `spacy llmner serve`: many clients, cancelled streams and broken connections",
    "padellm_placement": "Mentions whose offsets can be recovered from their strings",
}


DOCS = ROOT / "docs"


def main() -> None:
    (RESULTS.parent / "RESULTS.md").write_text(report())
    update_docs(read_results()["families"])
    for name, plot in plots().items():
        (DOCS / f"{name}.svg").write_text(plot)


def read_results() -> Dict[str, Any]:
    """RETURNS (Dict[str, Any]): The results by name."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))}


def plots() -> Dict[str, str]:
    """RETURNS (Dict[str, str]): The plots by name, as SVG."""
    results = read_results()
    peers = {name: peers_plot(r) for name, r in results.items() if name.startswith("peers_")}
    return {"scaling": scaling_plot(scaling_results(results)), **peers}


def report() -> str:
    """RETURNS (str): The text of RESULTS.md."""
    results = read_results()
    quality = [r for name, r in results.items() if name.startswith("ember_quality_")]
    lines = [
        "# Results",
        "",
        *paragraph(
            "`python -m benchmarks.report` writes this file from the measurements in",
            "`benchmarks/results/`. Each section ends with the machine, the date and the command of",
            "its measurements. Run the commands in the root of the repository.",
        ),
    ]
    for key, title in QUALITY_SETS.items():
        rows = [r for r in quality if r["set"] == key]
        if rows:
            lines += ["", f"## Quality of ember_probe: {title}", "", *quality_table(rows)]
    for prefix, table in TABLES.items():
        for name, r in results.items():
            if name.startswith(prefix):
                lines += ["", *table(r), *provenance([r])]
    if cells := scaling_results(results):
        lines += ["", *scaling_table(cells)]
    lines += quality_section(results, QUALITY_SETS)
    lines += other_tables(results)
    return "\n".join(lines) + "\n"


def other_tables(results: Dict[str, Any]) -> List[str]:
    """RETURNS (List[str]): A section with keys and values for each result without a table of its own."""
    lines: List[str] = []
    for name, r in results.items():
        if name.startswith(("ember_quality_", "padellm_quality_", "scaling_", *TABLES)):
            continue
        heading = next((text for key, text in HEADINGS.items() if name.startswith(key)), name)
        heading += f": {r['set']}" if "set" in r else ""
        lines += ["", f"## {heading}", "", "| | |", "|---|---|"]
        for key, value in r.items():
            if key in ("command", "date", "device", "cores", "threads", "torch", "spacy", "ratios"):
                continue
            if isinstance(value, dict):
                value = ", ".join(f"{k} {show(v)}" for k, v in value.items())
            elif isinstance(value, list):
                value = ", ".join(show(v) for v in value)
            lines.append(f"| {key.replace('_', ' ')} | {show(value)} |")
        lines += provenance([r])
    return lines


def show(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
