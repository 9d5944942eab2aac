"""Training in several processes, each on a share of every batch. In a single process, nothing changes."""

from typing import Any, Iterable, List, Sequence

import torch
from torch import distributed
from torch.nn import Parameter


def n_processes() -> int:
    """RETURNS (int): The number of processes that train together."""
    return distributed.get_world_size() if _is_parallel() else 1


def is_first() -> bool:
    """RETURNS (bool): Whether this is the process that evaluates and saves."""
    return not _is_parallel() or distributed.get_rank() == 0


def share(items: Sequence[Any]) -> List[Any]:
    """RETURNS (List[Any]): The items of this process: every n-th one for n processes."""
    return (
        list(items) if n_processes() == 1 else list(items[distributed.get_rank() :: n_processes()])
    )


def wait_for_all() -> None:
    """Wait until all processes have come here."""
    if _is_parallel():
        total(0.0)


def total(value: float) -> float:
    """Add up a number. All processes have to call this the same number of times.

    RETURNS (float): The sum over all processes.
    """
    if not _is_parallel():
        return value
    summed = torch.tensor([value], dtype=torch.float64, device=_device())
    distributed.all_reduce(summed)
    return float(summed)


def from_first(value: Any) -> Any:
    """RETURNS (Any): The value of the first process, which is pickled for the others."""
    values = [value]
    if _is_parallel():
        distributed.broadcast_object_list(values, device=_device())
    return values[0]


def sum_gradients(parameters: Iterable[Parameter]) -> None:
    """Replace gradients by their sums over all processes.

    parameters (Iterable[Parameter]): All trained parameters. Where no process has a gradient, there is none
        afterwards either.
    """
    parameters = list(parameters)
    if not _is_parallel() or not parameters:
        return
    device = _device()
    has_gradient = torch.tensor([float(p.grad is not None) for p in parameters], device=device)
    flat = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    joined = torch.cat([has_gradient, *(gradient.flatten().to(device) for gradient in flat)])
    distributed.all_reduce(joined)
    sizes = [p.numel() for p in parameters]
    counts, *sums = joined.split([len(parameters), *sizes])
    for p, count, summed in zip(parameters, counts.tolist(), sums):
        p.grad = summed.view_as(p).to(p) if count else None


def copy_from_first(module: torch.nn.Module) -> None:
    """Replace all weights and buffers by those of the first process."""
    for tensor in module.state_dict().values() if _is_parallel() else ():
        on_device = tensor.to(_device())
        distributed.broadcast(on_device, 0)
        tensor.copy_(on_device)


def _is_parallel() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def _device() -> torch.device:
    return torch.device("cuda" if distributed.get_backend() == "nccl" else "cpu")
