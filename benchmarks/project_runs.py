"""What `spacy project run` takes, and what it finds on this project's test sentences.

    python benchmarks/project_runs.py all padellm ra_it el4ner compare

Run it in a fresh clone: each workflow's steps run one after another, as `spacy project run` does, and steps
that an earlier workflow has done are not done again. Workflows that are not named are kept from an earlier
result.
"""

import subprocess
import sys
from datetime import date
from pathlib import Path
from time import perf_counter
from typing import Any, Dict, List

import srsly
import typer
from common import RESULTS, save

ROOT = Path(__file__).parent.parent
METRICS = {
    "all": "ember_probe",
    "padellm": "padellm_ner",
    "ra_it": "ra_it_ner",
    "el4ner": "el4ner_ensemble",
    "compare": "compare",
}


def main(
    workflows: List[str], note: str = typer.Option("", help="What else the machine did")
) -> None:
    path = RESULTS / "project_runs.json"
    runs: Dict[str, Any] = srsly.read_json(path)["runs"] if path.exists() else {}
    for name in workflows:
        start = perf_counter()
        subprocess.run(
            [sys.executable, "-m", "spacy", "project", "run", name], cwd=ROOT, check=True
        )
        seconds = perf_counter() - start
        metrics = srsly.read_json(ROOT / "metrics" / f"{METRICS[name]}.json")
        runs[name] = {
            "seconds": seconds,
            "date": date.today().isoformat(),
            "metrics": metrics,
            **({"note": note} if note else {}),
        }
        save("project_runs", {"runs": {x: runs[x] for x in METRICS if x in runs}})


if __name__ == "__main__":
    typer.run(main)
