"""The setting `quantization` of the LLM block, and how the weights of a folder are quantized already."""

import inspect
import json
from typing import Any, Dict, Mapping, Optional, Set, Union

import torch
from transformers import BitsAndBytesConfig
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

from ..errors import Errors, LLMNERError
from .folder_config import read_config

# Names of the most common options. NF4 is the data type of the QLoRA paper.
NAMED: Dict[str, Dict[str, Any]] = {
    "bitsandbytes-4bit": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "bitsandbytes-8bit": {"load_in_8bit": True},
}


def canonical(quantization: Union[None, str, Mapping[str, Any]]) -> Optional[str]:
    """Validate the setting and make it hashable.

    quantization (Union[None, str, Mapping[str, Any]]): None, a name, or a table of options. A table has
        the options of transformers' BitsAndBytesConfig, or `quant_method` and the options of that method.
    RETURNS (Optional[str]): None, the name, or the table as JSON with sorted keys.
    RAISES (LLMNERError): If the name, the method or an option is unknown.
    """
    if quantization is None:
        return None
    if isinstance(quantization, str):
        if quantization in NAMED:
            return quantization
        try:
            table = json.loads(quantization)
        except ValueError:
            table = None
    else:
        table = quantization
    if not isinstance(table, Mapping):
        raise unknown(quantization, "it is neither one of the names nor a table")
    method = method_of(table)
    if method not in known_methods():
        raise unknown(quantization, f"transformers does not know the method '{method}'")
    if method == "bitsandbytes":
        _check_bitsandbytes(table)
    return json.dumps(table, sort_keys=True)


def _check_bitsandbytes(table: Mapping[str, Any]) -> None:
    """transformers would ignore an unknown option."""
    if not (table.get("load_in_4bit") or table.get("load_in_8bit")):
        raise unknown(table, "neither `load_in_4bit` nor `load_in_8bit` is true")
    options = {"quant_method", *inspect.signature(BitsAndBytesConfig).parameters} - {"kwargs"}
    for option in table:
        if option not in options:
            raise unknown(table, f"bitsandbytes has no option '{option}'")


def unknown(value: Any, reason: str) -> LLMNERError:
    """RETURNS (LLMNERError): The error for an unknown method or option."""
    names, methods = ", ".join(NAMED), ", ".join(sorted(known_methods()))
    return LLMNERError(Errors.E130.format(value=value, reason=reason, names=names, methods=methods))


def known_methods() -> Set[str]:
    """RETURNS (Set[str]): The methods that the installed version of transformers can load."""
    names = (str(getattr(name, "value", name)) for name in AUTO_QUANTIZATION_CONFIG_MAPPING)
    return {name.removesuffix("_4bit").removesuffix("_8bit") for name in names}


def method_of(options: Mapping[str, Any]) -> Optional[str]:
    """RETURNS (Optional[str]): The method of some options, such as "gptq"."""
    if options.get("load_in_4bit") or options.get("load_in_8bit"):
        return "bitsandbytes"
    return options.get("quant_method")


def options_of(quantization: Optional[str]) -> Dict[str, Any]:
    """RETURNS (Dict[str, Any]): The options of a valid setting; empty for None."""
    if quantization is None:
        return {}
    return dict(NAMED[quantization]) if quantization in NAMED else json.loads(quantization)


def own_options(name: str, revision: Optional[str] = None) -> Dict[str, Any]:
    """RETURNS (Dict[str, Any]): How the weights of an LLM are quantized already. Empty if they are not, or
    if the LLM is not on this machine yet."""
    found = read_config(name, revision).get("quantization_config")
    return found if isinstance(found, dict) else {}


def is_packed_tensor(weight: torch.Tensor) -> bool:
    """RETURNS (bool): Whether the values of a weight are packed, so that its rows can't be selected."""
    # torchao's tensors look like matrices of floats.
    is_plain = type(weight) in (torch.Tensor, torch.nn.Parameter)
    return not is_plain or not weight.is_floating_point() or weight.itemsize < 2


def describe(options: Mapping[str, Any]) -> Optional[str]:
    """RETURNS (Optional[str]): A short name for some options, such as "bitsandbytes-4bit" or "gptq". None
    without options."""
    if not options:
        return None
    bits = next((n for n in ("4bit", "8bit") if options.get(f"load_in_{n}")), None)
    method = method_of(options)
    return f"{method}-{bits}" if bits else str(method)
