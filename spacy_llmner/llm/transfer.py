"""Copies between the CPU and a GPU that don't make either of them wait for the other."""

from typing import Callable, Sequence, Tuple

import numpy as np
import torch


def to_device(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """Copy an array to a device. The copy to a GPU runs while the CPU goes on.

    array (ndarray): The array. On a CPU, the tensor shares its memory.
    device (torch.device): The device.
    RETURNS (Tensor): The tensor.
    """
    tensor = torch.from_numpy(array)
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def to_cpu(tensors: Sequence[torch.Tensor]) -> Callable[[], Tuple[torch.Tensor, ...]]:
    """Start to copy tensors to the CPU.

    tensors (Sequence[Tensor]): Tensors, all on the same device.
    RETURNS (Callable[[], Tuple[Tensor, ...]]): Waits until they are copied, and returns them.
    """
    on_cuda = len(tensors) > 0 and tensors[0].device.type == "cuda"
    copies = tuple(tensor.to("cpu", non_blocking=on_cuda) for tensor in tensors)
    if not on_cuda:
        return lambda: copies
    copied = torch.cuda.Event()
    copied.record(torch.cuda.current_stream(tensors[0].device))

    def wait() -> Tuple[torch.Tensor, ...]:
        copied.synchronize()
        return copies

    return wait
