"""Measure the peak memory of this process."""

import sys
from contextlib import suppress
from pathlib import Path
from typing import Optional

import torch

MB = 1024 * 1024


def reset_peak() -> None:
    """Reset the peak memory of this process and of the GPU, where the system supports it."""
    # Elsewhere (not on Linux, or without permission), the peak since the start of the process is reported.
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak_mb() -> Optional[float]:
    """RETURNS (Optional[float]): Peak resident memory of this process since `reset_peak`, in MiB. None if
    the system doesn't report it."""
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
    """RETURNS (Optional[float]): Peak memory that torch allocated on the GPU since `reset_peak`, in MiB.
    None without a GPU."""
    return torch.cuda.max_memory_allocated() / MB if torch.cuda.is_available() else None
