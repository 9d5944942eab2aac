"""Adapters: trained weights of one component on top of the shared LLM, which never changes.

A component trains through a view: a second module tree over the shared parameters, in which some
modules are replaced by peft's LoRA layers, or some parameters by trained copies. Other components,
threads and adapters use the shared module tree or their own views. So adapters are never switched on or
off, and the base weights are in memory only once, however many adapters there are.
"""

import sys
import warnings
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Dict, List, Optional, Tuple

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from ..errors import Errors, LLMNERError
from .loading import LoadedLLM
from .placement import device_of
from .views import copy_modules

Shapes = Dict[str, List[int]]


@dataclass(frozen=True)
class AdapterSettings:
    """Which weights of an LLM are trained.

    rank (int): Rank of the LoRA matrices. 0 trains full copies of all weights except the embeddings,
        which can take as much memory as the LLM.
    alpha (int): LoRA's scale is alpha / rank.
    first_layer (Optional[int]): The first layer that is trained; None for the middle layer.
    """

    rank: int = 16
    alpha: int = 32
    first_layer: Optional[int] = None

    def first(self, llm: LoadedLLM) -> int:
        """RETURNS (int): The index of the first layer that is trained."""
        return llm.n_layers // 2 if self.first_layer is None else self.first_layer


class Adapter(nn.Module):
    """Trained tensors in float32, with the names that they have in the view.

    shapes (Shapes): The tensors' shapes. With them, a saved adapter can be loaded before its LLM.
    """

    def __init__(self, shapes: Shapes) -> None:
        super().__init__()
        for name, shape in shapes.items():
            self.register_parameter(name.replace(".", "/"), nn.Parameter(torch.zeros(shape)))

    def attach(self, llm: LoadedLLM, settings: AdapterSettings) -> nn.Module:
        """Create a view of the LLM's decoder that uses these tensors.

        RETURNS (nn.Module): The view, which is called like the decoder. It shares the tensors, so it
            changes when they are trained.
        """
        self.to(llm.device)
        view = _view(llm, settings, empty=True)
        for name, parameter in self.named_parameters():
            owner, _, leaf = name.rpartition("/")
            if llm.is_spread:
                parameter.data = parameter.data.to(_device_of(owner, llm))
            setattr(view.get_submodule(owner.replace("/", ".")), leaf, parameter)
        return view

    def is_untrained(self) -> bool:
        """RETURNS (bool): Whether the adapter leaves the LLM's output unchanged, because LoRA's second
        matrices are still zero. False for full copies of the weights, where this is not known."""
        second_matrices = [p for name, p in self.named_parameters() if "lora_B" in name]
        return bool(second_matrices) and not any(bool(p.any()) for p in second_matrices)


def new_adapter(llm: LoadedLLM, settings: AdapterSettings) -> Tuple[Adapter, Shapes]:
    """Create an adapter that does not change the LLM's output yet. Uses torch's random generator.

    RETURNS (Tuple[Adapter, Shapes]): The adapter, and its shapes, which must be saved to load it again.
    """
    view = _view(llm, settings)
    trained = {name: p for name, p in view.named_parameters() if _is_trained(name, llm, settings)}
    shapes = {name: list(p.shape) for name, p in trained.items()}
    adapter = Adapter(shapes)
    for name, p in trained.items():
        adapter.get_parameter(name.replace(".", "/")).data.copy_(p.detach())
    return adapter, shapes


def _view(llm: LoadedLLM, settings: AdapterSettings, empty: bool = False) -> Any:
    """empty (bool): Create the LoRA matrices without values, so that no random numbers are drawn."""
    if llm.quantization and not settings.rank:
        raise LLMNERError(Errors.E135.format(name=llm.spec.name, quantization=llm.quantization))
    view = copy_modules(llm.decoder)
    if settings.rank:
        linear = [
            name
            for name, module in view.named_modules()
            if _is_linear(module) and _layer(name) >= settings.first(llm)
        ]
        config = LoraConfig(r=settings.rank, lora_alpha=settings.alpha, target_modules=linear)
        with warnings.catch_warnings():
            # peft handles GPT-2's transposed layers, but warns about them each time.
            warnings.filterwarnings("ignore", message=".*fan_in_fan_out.*")
            # peft's own `low_cpu_mem_usage` patches torch for all threads while it runs.
            with torch.device("meta") if empty else nullcontext():
                inject_adapter_in_model(config, view)
    return view.eval()


def _is_linear(module: nn.Module) -> bool:
    """RETURNS (bool): Whether a module is a linear layer. Quantized ones are not always an nn.Linear."""
    if isinstance(module, (nn.Linear, Conv1D)):
        return True
    sizes = getattr(module, "in_features", None), getattr(module, "out_features", None)
    return all(isinstance(size, int) for size in sizes) and not list(module.children())


def _device_of(owner: str, llm: LoadedLLM) -> torch.device:
    """owner (str): Name of the module of a trained tensor, with slashes.
    RETURNS (torch.device): The device of the LLM's module that it belongs to.
    """
    module = llm.decoder.get_submodule(owner.partition("/lora_")[0].replace("/", "."))
    return device_of(module) or llm.device


def _layer(name: str) -> int:
    """RETURNS (int): The layer that a part of the decoder belongs to. Parts outside the layers, such as the
    final norm, count as later than all layers."""
    numbers = [int(part) for part in name.split(".") if part.isdigit()]
    return numbers[0] if numbers else sys.maxsize


def _is_trained(name: str, llm: LoadedLLM, settings: AdapterSettings) -> bool:
    if settings.rank:
        return "lora_" in name
    # Embeddings are not trained. Neither are position embeddings, which affect all layers.
    if isinstance(llm.decoder.get_submodule(name.rpartition(".")[0]), nn.Embedding):
        return False
    return _layer(name) >= settings.first(llm)
