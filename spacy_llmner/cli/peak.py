"""How much memory something took at its highest."""

import sys
from contextlib import suppress
from pathlib import Path
from typing import Optional

import torch

MB = 1024 * 1024


def reset_peak() -> None:
    """Forget what was the highest until now, as far as that is possible."""
    # Where it can't be forgotten (not on Linux, or not allowed), the highest since the beginning is told.
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak_mb() -> Optional[float]:
    """RETURNS (Optional[float]): Memory of this process, all that it holds, at its highest since
    `reset_peak`. None where the system does not tell."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    try:
        from resource import RUSAGE_SELF, getrusage
    except ImportError:  # on Windows
        return None
    highest = getrusage(RUSAGE_SELF).ru_maxrss  # in KB, but on macOS in bytes
    return highest / MB if sys.platform == "darwin" else highest / 1024


def gpu_peak_mb() -> Optional[float]:
    """RETURNS (Optional[float]): Memory that torch had taken on the GPU at its highest since `reset_peak`.
    None without a GPU."""
    return torch.cuda.max_memory_allocated() / MB if torch.cuda.is_available() else None
