"""The last lines of each section of RESULTS.md: machines, dates and commands."""

from typing import Any, Dict, List

# Before the benchmarks were modules, each was a script in benchmarks/. Results of that time name the
# script.
MODULES = {
    "compare_memory": "project.compare_memory",
    "el4ner_ablation": "el4ner.ablation",
    "el4ner_speed": "el4ner.speed",
    "ember_fewshot": "ember.fewshot",
    "ember_generated": "ember.generated",
    "ember_layers": "ember.layers",
    "ember_memory": "ember.memory",
    "ember_quality": "ember.quality",
    "ember_streaming": "ember.streaming",
    "ember_throughput": "ember.throughput",
    "padellm_constraint": "padellm.constraint",
    "padellm_placement": "padellm.placement",
    "padellm_quality": "padellm.quality",
    "padellm_speed": "padellm.speed",
    "padellm_training": "padellm.training",
    "project_runs": "project.runs",
    "ra_it_calibrated": "ra_it.calibrated",
    "ra_it_speed": "ra_it.speed",
    "ra_it_transfer": "ra_it.transfer",
    "retrieval_index": "retrieval.index",
    "retrieval_leaks": "retrieval.leaks",
    "retrieval_memory": "retrieval.memory",
    "retrieval_quality": "retrieval.quality",
}


def provenance(results: List[Dict[str, Any]]) -> List[str]:
    """RETURNS (List[str]): Lines with the machines and dates of some results, and their commands."""
    machines = {
        f"{r['device']}, {r['threads']} thread(s), {r['date']}, torch {r['torch']}" for r in results
    }
    commands = [current_command(r["command"]) for r in results]
    return ["", "; ".join(sorted(machines)), "", "```", *commands, "```"]


def current_command(command: str) -> str:
    """RETURNS (str): The command with a script of earlier times replaced by its module."""
    python, target, *arguments = command.split(" ")
    if target.startswith("benchmarks/"):
        name = target.removeprefix("benchmarks/").removesuffix(".py")
        target = f"-m benchmarks.{MODULES[name]}"
    return " ".join([python, target, *arguments])
