"""RESULTS.md is what the JSON files say."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from common import RESULTS  # noqa: E402
from report import report  # noqa: E402


def test_results_are_up_to_date():
    assert (RESULTS.parent / "RESULTS.md").read_text() == report()
    assert len(list(RESULTS.glob("*.json"))) > 40
