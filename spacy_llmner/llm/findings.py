"""What the self-check of an LLM found, and its store in SPACY_LLMNER_HOME."""

import hashlib
import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Dict, Mapping, Optional

from ..models import catalogue
from ..util import replace_json


@dataclass(frozen=True)
class Finding:
    """The result of comparing one use of an LLM with transformers' own forward pass.

    states (float): Difference of hidden states or attention weights, relative to their size. Infinite if
        the use failed.
    log_probs (Optional[float]): Difference of log-probabilities, in nats; None if the use computes none.
    reason (str): Why the LLM can't be used like this; "" if it can.
    """

    states: float
    log_probs: Optional[float] = None
    reason: str = ""


def load_findings(facts: Mapping[str, str]) -> Optional[Dict[str, Finding]]:
    """RETURNS (Optional[Dict[str, Finding]]): The stored findings by use. None if there are none for
    these facts about the LLM and the machine."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        stored = json.loads(_file(facts).read_text(encoding="utf8"))
        if stored["facts"] == facts:
            return {use: Finding(**finding) for use, finding in stored["findings"].items()}
    return None


def save_findings(facts: Mapping[str, str], findings: Mapping[str, Finding]) -> None:
    """Store findings. Without a writable folder, the check runs again at the next start."""
    stored: Dict[str, Any] = {use: asdict(finding) for use, finding in findings.items()}
    replace_json(_file(facts), {"facts": facts, "findings": stored})


def _file(facts: Mapping[str, str]) -> Path:
    key = hashlib.blake2b(json.dumps(facts).encode(), digest_size=16).hexdigest()
    return catalogue.home() / "checks" / f"{key}.json"
