"""How much memory the weights of an LLM need, and a check before they are loaded."""

from contextlib import suppress
from math import prod
from pathlib import Path
from typing import Iterator, List, Optional, Tuple

import psutil
import torch
from safetensors import SafetensorError, safe_open

from ..errors import Errors, LLMNERError
from .fingerprint import weight_files
from .folder_config import read_config
from .quantization import options_of, own_options
from .spec import DTYPES, LLMSpec

GB = 1e9
# Bytes per value with bitsandbytes, which stores a float32 scale for each 64 values of 4 bits.
FOUR_BITS = 0.5 + 4 / 64
EIGHT_BITS = 1.0
# Parts of the names of matrices that are not quantized: the embeddings and the LM head.
UNQUANTIZED = ("embed", "wte", "wpe", "lm_head")
CGROUP = Path("/sys/fs/cgroup")


def check_memory(spec: LLMSpec, path: str) -> None:
    """Compare the size of an LLM with the free memory, before it is loaded.

    spec (LLMSpec): A resolved spec.
    path (str): Folder or hub id. A hub id that is not in the local cache is not checked.
    RAISES (LLMNERError): If the LLM does not fit.
    """
    needed = needed_bytes(path, spec.revision, spec.dtype, spec.quantization)
    if needed is None:
        return
    free = free_bytes(spec)
    if needed <= free:
        return
    how = f"{spec.quantization}, {spec.dtype}" if spec.quantization else spec.dtype
    raise LLMNERError(
        Errors.E132.format(
            name=spec.name,
            how="as it is quantized" if own_options(path, spec.revision) else f"in {how}",
            needed=needed / GB,
            free=free / GB,
            place=f"device_map {spec.device_map}" if spec.device_map else spec.device,
            advice=_what_fits(spec, path, free),
        )
    )


def _what_fits(spec: LLMSpec, path: str, free: int) -> str:
    """RETURNS (str): What to change, for the message."""
    fitting = []
    smaller = {
        'dtype = "bfloat16"': ("bfloat16", None),
        'quantization = "bitsandbytes-4bit"': (spec.dtype, "bitsandbytes-4bit"),
    }
    if not own_options(path, spec.revision):
        for setting, (dtype, quantization) in smaller.items():
            size = needed_bytes(path, spec.revision, dtype, quantization)
            if size is not None and size <= free:
                fitting.append(f"`{setting}` ({size / GB:.2f} GB)")
    if not fitting:
        return "No dtype or quantization would make it fit. Use a smaller LLM, or free memory."
    return f"It would fit with {' or '.join(fitting)}. Or use a smaller LLM, or free memory."


def needed_bytes(
    path: str, revision: Optional[str], dtype: str, quantization: Optional[str] = None
) -> Optional[int]:
    """Compute how much memory the weights of an LLM need, from the shapes in its files.

    path (str): Folder or hub id.
    revision (Optional[str]): Revision of a hub id.
    dtype (str): The dtype to load the weights in.
    quantization (Optional[str]): The setting `quantization` of a spec.
    RETURNS (Optional[int]): Bytes. None if the LLM is not on this machine, or if the size is not known for
        this quantization.
    """
    config = read_config(path, revision)
    if not config:
        return None
    files = weight_files(path, revision)
    if own_options(path, revision):
        return sum(file.stat().st_size for file in files)
    plain = float(DTYPES[dtype].itemsize)
    options = options_of(quantization)
    if options.get("load_in_4bit"):
        packed = FOUR_BITS
    elif options.get("load_in_8bit"):
        packed = EIGHT_BITS
    elif options:
        return None
    else:
        packed = plain
    total = 0.0
    for file in files:
        if file.suffix == ".safetensors":
            for name, shape in _tensors(file):
                is_packed = len(shape) > 1 and not any(part in name for part in UNQUANTIZED)
                total += prod(shape) * (packed if is_packed else plain)
        else:
            stored = DTYPES.get(config.get("torch_dtype", ""), torch.float32)
            total += file.stat().st_size / stored.itemsize * packed
    return int(total)


def _tensors(file: Path) -> Iterator[Tuple[str, List[int]]]:
    """YIELDS (Tuple[str, List[int]]): The name and shape of each tensor. None for a broken file, which
    transformers explains better."""
    with suppress(SafetensorError), safe_open(file, "pt") as f:
        for name in f.keys():  # noqa: SIM118
            yield name, f.get_slice(name).get_shape()


def free_bytes(spec: LLMSpec) -> int:
    """RETURNS (int): The free memory of the devices of a resolved spec, in bytes."""
    table = spec.device_map_table
    if table is not None:
        devices = set(table.values())
    elif spec.device_map == "auto":
        devices = {"cpu", *(f"cuda:{k}" for k in range(torch.cuda.device_count()))}
    else:
        devices = {spec.device}
    return sum(_free_bytes(device) for device in devices)


def _free_bytes(device: str) -> int:
    if device != "cpu":
        free, _ = torch.cuda.mem_get_info(device)
        # torch keeps memory that it has freed, and uses it again.
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    free = psutil.virtual_memory().available
    with suppress(OSError, ValueError, StopIteration):  # a container can have a lower limit
        limit = int((CGROUP / "memory.max").read_text())
        used = int((CGROUP / "memory.current").read_text())
        lines = (CGROUP / "memory.stat").read_text().splitlines()
        cached = next(int(x.split()[1]) for x in lines if x.startswith("inactive_file "))
        free = min(free, max(0, limit - used + cached))
    return free
