"""Put an LLM on one device, or spread it over several."""

from typing import Any, Dict, Optional

import torch
from accelerate.hooks import remove_hook_from_module
from torch import nn

from .quantization import method_of, options_of, own_options
from .spec import LLMSpec


def placement_settings(spec: LLMSpec) -> Dict[str, Any]:
    """Get the arguments of `from_pretrained` that say where the weights go.

    spec (LLMSpec): A resolved spec.
    RETURNS (Dict[str, Any]): The arguments. Empty if the model is loaded on the CPU, and `place` moves it.
    """
    if spec.device_map is not None:
        return {"device_map": spec.device_map_table or spec.device_map}
    # Quantized weights are packed on their way to the device, and some can't be moved later. Without a
    # device, bitsandbytes would choose the GPU; torchao does not quantize what is placed on the CPU.
    method = method_of(options_of(spec.quantization) or own_options(spec.name, spec.revision))
    if method == "bitsandbytes" or (method is not None and spec.device != "cpu"):
        return {"device_map": {"": spec.device}}
    return {}


def place(model: Any, spec: LLMSpec) -> Any:
    """Move a model to its device. If transformers has put the weights in place already, replace the hooks
    of accelerate by ours.

    accelerate replaces the `forward` method of each module by one that is bound to this module. A copy of
    the module (see `llm/views.py`) would call the module that it was copied from.

    model (PreTrainedModel): The model.
    spec (LLMSpec): The resolved spec that it was loaded from.
    RETURNS (PreTrainedModel): The model.
    """
    if not placement_settings(spec):
        return model if getattr(model, "is_quantized", False) else model.to(spec.device)
    remove_hook_from_module(model, recurse=True)
    if is_spread(model):
        follow_devices(model)
    return model


def follow_devices(model: Any) -> None:
    """Make each part of a model move its input to its own device. These are torch's hooks, which copies of
    a module share."""
    blocks = [b for m in model.modules() if isinstance(m, nn.ModuleList) for b in m]
    owners = [m for m in model.modules() if next(m.parameters(recurse=False), None) is not None]
    # Blocks come first, since they add their input to the output of their parts.
    for module in dict.fromkeys([*blocks, *owners]):
        device = device_of(module)
        if device is not None:
            module.register_forward_pre_hook(_mover(device), with_kwargs=True)


def _mover(device: torch.device) -> Any:
    def move_input(module: nn.Module, args: Any, kwargs: Any) -> Any:
        return _moved(args, device), _moved(kwargs, device)

    return move_input


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if type(value) in (tuple, list):
        return type(value)(_moved(item, device) for item in value)
    if type(value) is dict:
        return {key: _moved(item, device) for key, item in value.items()}
    return value


def is_spread(model: nn.Module) -> bool:
    """RETURNS (bool): Whether the parameters of a model are on more than one device."""
    return len({p.device for p in model.parameters()}) > 1


def device_of(module: nn.Module) -> Optional[torch.device]:
    """RETURNS (Optional[torch.device]): The device of a module's first parameter; None if it has none."""
    return next((p.device for p in module.parameters()), None)
