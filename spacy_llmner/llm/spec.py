"""LLMSpec, the settings that identify an LLM's weights in memory."""

import multiprocessing
import os
import re
from dataclasses import dataclass, replace
from typing import Optional

import torch

from ..errors import Errors, LLMNERError

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


@dataclass(frozen=True)
class LLMSpec:
    """Which LLM to load and how. Two specs share one copy of the weights if they resolve to the same
    files, dtype and device (see `registry.key_of`).

    name (str): Local folder, name from the catalogue, or hub id.
    revision (Optional[str]): Revision of a hub id.
    dtype (str): "float32", "bfloat16", "float16", or "auto": float32 on a CPU, bfloat16 on CUDA.
    device (str): "cpu", "cuda", "cuda:N", or "auto": CUDA if torch can use it, otherwise the CPU.
    self_check (bool): Check at the first load that the LLM's results are those of transformers
        (`llm/self_check.py`).
    RAISES (LLMNERError): If the dtype or the device is not one of those above.
    """

    name: str
    revision: Optional[str] = None
    dtype: str = "auto"
    device: str = "auto"
    self_check: bool = True

    def __post_init__(self) -> None:
        if self.dtype != "auto" and self.dtype not in DTYPES:
            known = ", ".join(["auto", *DTYPES])
            raise LLMNERError(Errors.E006.format(value=self.dtype, what="dtype", known=known))
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device):
            known = "auto, cpu, cuda, cuda:0, cuda:1, ..."
            raise LLMNERError(Errors.E006.format(value=self.device, what="device", known=known))

    def resolve(self) -> "LLMSpec":
        """Replace each "auto" with its value on this machine, and "cuda" with the current device.

        RETURNS (LLMSpec): The resolved spec, with the same name.
        RAISES (LLMNERError): If the device is not available, or if it is a GPU and this process is forked.
        """
        device = _resolve_device(self.device)
        dtype = self.dtype
        if dtype == "auto":
            dtype = "float32" if device == "cpu" else "bfloat16"
        return replace(self, device=device, dtype=dtype)


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
