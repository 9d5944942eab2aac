"""`spacy llmner check`: compare what is computed on an LLM with transformers' own forward pass."""

import json
import math
import time
from dataclasses import asdict
from typing import Any, Dict, Optional, Tuple

import typer
from wasabi import Printer

from ..llm.findings import Finding
from ..llm.registry import make_llm
from ..llm.self_check import self_check
from ._util import exit_on_error

USES = {
    "reads": "Finished texts (ember_probe)",
    "streams": "Streaming (ember_probe)",
    "trees": "Prompts that share a prefix (all components)",
    "attention": "Attention weights (EmberPaper)",
}


def check_cli(
    name: str = typer.Argument(..., help="LLM: name, folder or hub id"),
    dtype: str = typer.Option("auto", "--dtype", "-t", help="As in the LLM block of a config"),
    device: str = typer.Option("auto", "--device", "-d", help="As in the LLM block of a config"),
    revision: Optional[str] = typer.Option(None, "--revision", "-r", help="Revision of a hub id"),
    as_json: bool = typer.Option(False, "--json", "-j", help="Print JSON"),
) -> None:
    """
    Check what an LLM can be used for. A short text goes through the LLM in each way that
    the components use, and the hidden states and log-probabilities are compared with
    those that transformers computes. The exit status is 1 if finished texts, which every
    component needs, can't be read.
    """
    with exit_on_error():
        found, seconds = check(name, dtype, device, revision)
    if as_json:
        print(json.dumps({**_finite(found), "seconds": seconds}, indent=2))
    else:
        _print(name, found, seconds)
    if found["reads"].reason:
        raise typer.Exit(1)


def check(
    name: str, dtype: str = "auto", device: str = "auto", revision: Optional[str] = None
) -> Tuple[Dict[str, Finding], float]:
    """Load an LLM and check it. Stored findings are replaced.

    name (str): Local folder, name from the catalogue, or hub id.
    dtype (str): As in the LLM block of a config.
    device (str): As in the LLM block of a config.
    revision (Optional[str]): Revision of a hub id.
    RETURNS (Tuple[Dict[str, Finding], float]): The findings by use, and the seconds that the check took.
    """
    llm = make_llm(name, revision, dtype, device, self_check=False).load()
    started = time.perf_counter()
    found = self_check(llm, remember=False)
    return found, time.perf_counter() - started


def _print(name: str, found: Dict[str, Finding], seconds: float) -> None:
    msg = Printer()
    rows = [
        (
            USES[use],
            _shown(finding.states),
            _shown(finding.log_probs),
            "no" if finding.reason else "yes",
        )
        for use, finding in found.items()
    ]
    msg.table(
        rows,
        header=("Use", "States", "Log-probs", "Works"),
        aligns=("l", "r", "r", "l"),
        divider=True,
    )
    for use, finding in found.items():
        if finding.reason:
            msg.warn(f"{USES[use]}: {finding.reason}")
    msg.info(f"'{name}' was checked in {seconds:.1f} seconds. Differences of states are relative.")


def _shown(difference: Optional[float]) -> str:
    if difference is None or math.isinf(difference):
        return "-"
    return f"{difference:.1e}"


def _finite(found: Dict[str, Finding]) -> Dict[str, Any]:
    """RETURNS (Dict[str, Any]): The findings, with None for infinite differences."""
    return {
        use: {**asdict(finding), "states": None if math.isinf(finding.states) else finding.states}
        for use, finding in found.items()
    }
