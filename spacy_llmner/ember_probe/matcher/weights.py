"""Save and find the trained weights of a matcher."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, Dict, Iterator, Optional, Tuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from ...errors import Errors, LLMNERError
from ...llm.loading import LoadedLLM
from ..probes.match import MatchProbe, MatchSettings

WEIGHTS = "matcher.safetensors"
# The weights that come with the package.
SHIPPED = Path(__file__).parent / "pretrained"
# Layers that depend on the labels and are not part of a matcher.
OUTPUT = "output."


def save_matcher(path: Path, probe: MatchProbe, about: Dict[str, Any]) -> None:
    """Write the weights in float16.

    path (Path): The file.
    probe (MatchProbe): The probe.
    about (Dict[str, Any]): What the weights need to be used: see `about`.
    """
    tensors = {
        name: tensor.detach().half().cpu().contiguous()
        for name, tensor in probe.state_dict().items()
        if not name.startswith(OUTPUT)
    }
    save_file(tensors, path, metadata={"llmner": json.dumps(about)})


def about(llm: LoadedLLM, settings: MatchSettings) -> Dict[str, Any]:
    """RETURNS (Dict[str, Any]): The name and the fingerprint of the LLM, and the settings of the probe."""
    return {
        "llm": llm.spec.name,
        "fingerprints": [llm.fingerprint],
        "probe": json.loads(json.dumps(asdict(settings.probe))),
    }


def load_matcher(
    name: str, llm: LoadedLLM, settings: MatchSettings
) -> Tuple[Path, Dict[str, torch.Tensor]]:
    """Load the weights for an LLM.

    name (str): Name of the component, for error messages.
    llm (LoadedLLM): The LLM.
    settings (MatchSettings): Settings of the probe.
    RETURNS (Tuple[Path, Dict[str, Tensor]]): The file, and the weights in float32, without those of the
        output layer.
    RAISES (LLMNERError): If there are none, or if they belong to another LLM or to other settings.
    """
    if settings.weights is None:
        path, found = _shipped(llm)
    else:
        path = Path(settings.weights)
        path = path / WEIGHTS if path.is_dir() else path
        found = _read_about(path)
        if found is None:
            raise LLMNERError(Errors.E145.format(name=name, path=settings.weights))
        if llm.fingerprint not in found["fingerprints"]:
            raise LLMNERError(
                Errors.E146.format(
                    name=name, path=settings.weights, llm=llm.spec.name, other=found["llm"]
                )
            )
    if path is None or found is None:
        known = sorted(about["llm"] for _, about in _all_shipped())
        raise LLMNERError(
            Errors.E147.format(name=name, llm=llm.spec.name, known=", ".join(known) or "none")
        )
    chosen = json.loads(json.dumps(asdict(settings.probe)))
    differing = [key for key, value in found["probe"].items() if chosen.get(key) != value]
    if differing:
        raise LLMNERError(
            Errors.E148.format(
                name=name, path=path.name, settings=", ".join(differing), needed=found["probe"]
            )
        )
    return path, {key: tensor.float() for key, tensor in load_file(path).items()}


def come_with_package(llm: str) -> bool:
    """RETURNS (bool): Whether there are weights for an LLM of the catalogue in the package."""
    return any(about["llm"] == llm for _, about in _all_shipped())


def _shipped(llm: LoadedLLM) -> Tuple[Optional[Path], Optional[Dict[str, Any]]]:
    for path, found in _all_shipped():
        if llm.fingerprint in found["fingerprints"]:
            return path, found
    return None, None


def _all_shipped() -> Iterator[Tuple[Path, Dict[str, Any]]]:
    for path in sorted(SHIPPED.glob("*.safetensors")):
        found = _read_about(path)
        if found is not None:
            yield path, found


def _read_about(path: Path) -> Optional[Dict[str, Any]]:
    try:
        with safe_open(path, "pt") as file:
            return json.loads((file.metadata() or {})["llmner"])
    except (OSError, SafetensorError, KeyError, ValueError):
        return None
