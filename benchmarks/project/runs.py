"""Time of `spacy project run`, and the scores on this project's test sentences.

    python -m benchmarks.project.runs all padellm ra_it el4ner compare

Run it in a fresh clone. The workflows run one after another, and steps that an earlier workflow has done
are skipped. The results of other workflows are copied from an earlier result.
"""

import subprocess
import sys
from datetime import date
from time import perf_counter
from typing import Any, Dict, List

import srsly
import typer

from benchmarks.lib.common import RESULTS, ROOT, save

# The file in metrics/ of each workflow.
METRICS = {
    "all": "ember_probe",
    "padellm": "padellm_ner",
    "ra_it": "ra_it_ner",
    "el4ner": "el4ner_ensemble",
    "compare": "compare",
}


def main(
    workflows: List[str],
    note: str = typer.Option(
        "", help="Remark about the measurement, such as other load on the machine"
    ),
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
