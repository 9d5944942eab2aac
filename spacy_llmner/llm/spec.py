"""LLMSpec, the settings that identify an LLM's weights in memory."""

import json
import multiprocessing
import os
import re
from dataclasses import dataclass, replace
from typing import Any, Dict, Mapping, Optional, Union

import torch

from ..errors import Errors, LLMNERError
from .quantization import canonical, own_options

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


@dataclass(frozen=True)
class LLMSpec:
    """Which LLM to load and how. Two specs share one copy of the weights if they resolve to the same
    files, dtype, devices and quantization (see `registry.key_of`).

    name (str): Local folder, name from the catalogue, or hub id.
    revision (Optional[str]): Revision of a hub id.
    dtype (str): "float32", "bfloat16", "float16", or "auto": float32 on a CPU, bfloat16 on CUDA. For a
        folder with quantized weights, "auto" is the dtype in its config.json.
    device (str): "cpu", "cuda", "cuda:N", or "auto": CUDA if torch can use it, otherwise the CPU. With a
        device_map, it must be "auto".
    quantization (Optional[str]): How the weights are quantized when they are loaded. A name, or a table of
        options as JSON; see `quantization.canonical`.
    device_map (Optional[str]): The devices to spread the LLM over. "auto", or a table as JSON; see
        `canonical_device_map`.
    self_check (bool): Check at the first load that the LLM's results are those of transformers
        (`llm/self_check.py`).
    RAISES (LLMNERError): If a value is not one of those above.
    """

    name: str
    revision: Optional[str] = None
    dtype: str = "auto"
    device: str = "auto"
    quantization: Optional[str] = None
    device_map: Optional[str] = None
    self_check: bool = True

    def __post_init__(self) -> None:
        if self.dtype != "auto" and self.dtype not in DTYPES:
            known = ", ".join(["auto", *DTYPES])
            raise LLMNERError(Errors.E006.format(value=self.dtype, what="dtype", known=known))
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device):
            known = "auto, cpu, cuda, cuda:0, cuda:1, ..."
            raise LLMNERError(Errors.E006.format(value=self.device, what="device", known=known))
        if self.device_map is not None and self.device != "auto":
            raise LLMNERError(Errors.E133.format(device=self.device, device_map=self.device_map))
        object.__setattr__(self, "quantization", canonical(self.quantization))
        object.__setattr__(self, "device_map", canonical_device_map(self.device_map))

    def resolve(self) -> "LLMSpec":
        """Replace each "auto" with its value on this machine, and "cuda" with the current device. With a
        device_map, the device stays "auto". The dtype of quantized weights stays "auto", too.

        RETURNS (LLMSpec): The resolved spec, with the same name.
        RAISES (LLMNERError): If the device is not available, or if it is a GPU and this process is forked.
        """
        device = _resolve_device(self.main_device)
        dtype = self.dtype
        if dtype == "auto" and not own_options(self.name, self.revision):
            dtype = "float32" if device == "cpu" else "bfloat16"
        if self.device_map is not None:
            device = "auto"
        return replace(self, device=device, dtype=dtype)

    @property
    def device_map_table(self) -> Optional[Dict[str, str]]:
        """RETURNS (Optional[Dict[str, str]]): The device of each module; None if there is no such table."""
        return None if self.device_map in (None, "auto") else json.loads(str(self.device_map))

    @property
    def main_device(self) -> str:
        """RETURNS (str): The device, or the first GPU of a device_map. "auto" and "cuda" as in `device`."""
        devices = sorted(set((self.device_map_table or {"": self.device}).values()))
        return next((d for d in devices if d != "cpu"), "cpu")


def canonical_device_map(device_map: Union[None, str, Mapping[str, Any]]) -> Optional[str]:
    """Validate a device_map and make it hashable.

    device_map (Union[None, str, Mapping[str, Any]]): None, "auto", or the device of each part of the model,
        by the name of its module: "cpu", "cuda:N" or N.
    RETURNS (Optional[str]): None, "auto", or the table as JSON with sorted keys.
    RAISES (LLMNERError): If it is none of these.
    """
    if device_map is None or device_map == "auto":
        return device_map  # type: ignore[return-value]
    if isinstance(device_map, str):
        try:
            device_map = json.loads(device_map)
        except ValueError:
            raise _wrong_device_map(device_map) from None
    if not isinstance(device_map, Mapping) or not device_map:
        raise _wrong_device_map(device_map)
    table = {}
    for module, given in device_map.items():
        device = f"cuda:{given}" if isinstance(given, int) else given
        if not module or not re.fullmatch(r"cpu|cuda:\d+", str(device)):
            raise _wrong_device_map(dict(device_map))
        table[module] = device
    return json.dumps(table, sort_keys=True)


def _wrong_device_map(value: Any) -> LLMNERError:
    known = "auto, or a table with the device (cpu, cuda:0, cuda:1, ...) of each module by its name"
    return LLMNERError(Errors.E006.format(value=value, what="device_map", known=known))


_was_forked = False


def _mark_forked() -> None:
    global _was_forked
    _was_forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_mark_forked)


def is_forked() -> bool:
    """RETURNS (bool): Whether multiprocessing forked this process, as `nlp.pipe` with n_process does on
    Linux. A forked process can't use the threads or the GPU of its parent. A spawned process has its
    own."""
    return _was_forked and multiprocessing.parent_process() is not None


def refuse_forked_process(device: str) -> None:
    """Raise an error for a GPU in a forked process.

    device (str): The device of a spec.
    RAISES (LLMNERError): If the device is a GPU and this is a forked process.
    """
    if device == "cpu" or not is_forked():
        return
    # After a fork, torch sees either no GPU or a GPU that it can't use.
    if torch.cuda.is_available() or torch.cuda._is_in_bad_fork():
        raise LLMNERError(Errors.E010.format(device=device.replace("auto", "cuda")))


def _resolve_device(device: str) -> str:
    refuse_forked_process(device)
    if device == "auto":
        return f"cuda:{torch.cuda.current_device()}" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        return device
    if not torch.cuda.is_available():
        raise LLMNERError(Errors.E005.format(device=device, reason="torch sees no CUDA device"))
    index = torch.device(device).index
    index = torch.cuda.current_device() if index is None else index
    if index >= torch.cuda.device_count():
        reason = f"torch sees {torch.cuda.device_count()} CUDA device(s)"
        raise LLMNERError(Errors.E005.format(device=device, reason=reason))
    return f"cuda:{index}"
