"""Weights of a component's own on top of the shared LLM, which is never touched.

A component trains through a view: a second module tree over the shared parameters, in which some
modules are replaced by peft's LoRA layers, or some parameters by trained copies. Other components, other
threads and other adapters use the shared tree or views of their own, so nothing has to be switched on
and off, and base weights are held once however many adapters there are.
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

from .loading import LoadedLLM
from .views import copy_modules

Shapes = Dict[str, List[int]]


@dataclass(frozen=True)
class AdapterSettings:
    """What is trained of an LLM.

    rank (int): Rank of the LoRA matrices; 0 trains full copies of all weights but the embeddings,
        which cost as much memory as the LLM.
    alpha (int): LoRA's scale is alpha / rank.
    first_layer (Optional[int]): Layers below it stay as they are; None takes the middle one.
    """

    rank: int = 16
    alpha: int = 32
    first_layer: Optional[int] = None

    def first(self, llm: LoadedLLM) -> int:
        """RETURNS (int): The first layer that is trained."""
        return llm.n_layers // 2 if self.first_layer is None else self.first_layer


class Adapter(nn.Module):
    """Trained tensors, by the names they have in the view. float32.

    shapes (Shapes): Known without the LLM, so that a saved adapter can be loaded before it.
    """

    def __init__(self, shapes: Shapes) -> None:
        super().__init__()
        for name, shape in shapes.items():
            self.register_parameter(name.replace(".", "/"), nn.Parameter(torch.zeros(shape)))

    def attach(self, llm: LoadedLLM, settings: AdapterSettings) -> nn.Module:
        """Make a view of the LLM's decoder that uses these tensors.

        RETURNS (nn.Module): Takes what the decoder takes. It follows the tensors as they are trained.
        """
        self.to(llm.device)
        view = _view(llm, settings, empty=True)
        for name, parameter in self.named_parameters():
            owner, _, leaf = name.rpartition("/")
            setattr(view.get_submodule(owner.replace("/", ".")), leaf, parameter)
        return view

    def is_untrained(self) -> bool:
        """RETURNS (bool): The LLM answers as without it: LoRA's second matrices are still zero. Not known,
        and so False, of copies of the weights."""
        second = [p for name, p in self.named_parameters() if "lora_B" in name]
        return bool(second) and not any(bool(p.any()) for p in second)


def new_adapter(llm: LoadedLLM, settings: AdapterSettings) -> Tuple[Adapter, Shapes]:
    """Make an adapter that changes nothing yet. Draws from torch's generator.

    RETURNS (Tuple[Adapter, Shapes]): The adapter and what to note of it for loading it again.
    """
    view = _view(llm, settings)
    trained = {name: p for name, p in view.named_parameters() if _is_trained(name, llm, settings)}
    shapes = {name: list(p.shape) for name, p in trained.items()}
    adapter = Adapter(shapes)
    for name, p in trained.items():
        adapter.get_parameter(name.replace(".", "/")).data.copy_(p.detach())
    return adapter, shapes


def _view(llm: LoadedLLM, settings: AdapterSettings, empty: bool = False) -> Any:
    """empty (bool): LoRA matrices without values, for which no random numbers are drawn."""
    view = copy_modules(llm.decoder)
    if settings.rank:
        linear = [
            name
            for name, module in view.named_modules()
            if isinstance(module, (nn.Linear, Conv1D)) and _layer(name) >= settings.first(llm)
        ]
        config = LoraConfig(r=settings.rank, lora_alpha=settings.alpha, target_modules=linear)
        with warnings.catch_warnings():
            # GPT-2's transposed layers are recognised, but peft tells so each time.
            warnings.filterwarnings("ignore", message=".*fan_in_fan_out.*")
            # peft's own `low_cpu_mem_usage` changes torch for all threads meanwhile.
            with torch.device("meta") if empty else nullcontext():
                inject_adapter_in_model(config, view)
    return view.eval()


def _layer(name: str) -> int:
    """RETURNS (int): The layer that a part of the decoder belongs to; the norm behind them to the last."""
    numbers = [int(part) for part in name.split(".") if part.isdigit()]
    return numbers[0] if numbers else sys.maxsize


def _is_trained(name: str, llm: LoadedLLM, settings: AdapterSettings) -> bool:
    if settings.rank:
        return "lora_" in name
    # Those of positions too: they reach all layers.
    if isinstance(llm.decoder.get_submodule(name.rpartition(".")[0]), nn.Embedding):
        return False
    return _layer(name) >= settings.first(llm)
