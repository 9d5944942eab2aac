"""Load an LLM with quantized weights through transformers, or explain why that is not possible."""

import ctypes
import logging
import warnings
from contextlib import suppress
from functools import cache
from typing import Any, Dict, Mapping, Optional

import torch
from transformers import BitsAndBytesConfig
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

from ..errors import Errors, LLMNERError, Warnings
from .quantization import (
    describe,
    is_packed_tensor,
    known_methods,
    method_of,
    options_of,
    own_options,
    unknown,
)
from .spec import LLMSpec

# How to install what a method needs. For other methods, the message of transformers says it.
INSTALL = {
    "bitsandbytes": 'pip install "spacy-llmner[quantized]"',
    "torchao": "pip install torchao (needs transformers 5)",
    "gptq": "pip install gptqmodel optimum",
    "awq": "pip install autoawq (for transformers 5: gptqmodel)",
    "compressed-tensors": "pip install compressed-tensors",
}


def quantization_settings(spec: LLMSpec, path: str) -> Dict[str, Any]:
    """Get the arguments of `from_pretrained` for the quantization of an LLM.

    spec (LLMSpec): A resolved spec.
    path (str): Folder or hub id.
    RETURNS (Dict[str, Any]): The arguments. Empty for a folder that is quantized already, which
        transformers recognizes itself.
    RAISES (LLMNERError): If the method is unknown, if what it needs is not installed, or if the weights are
        quantized already.
    """
    own = own_options(path, spec.revision)
    if (own or options_of(spec.quantization)).get("load_in_8bit"):
        logging.getLogger("bitsandbytes.autograd._functions").addFilter(_not_about_casts)
        warnings.warn(Warnings.W023.format(name=spec.name), stacklevel=2)
    if own and method_of(own) not in known_methods():
        # transformers would load the packed weights as if they were not quantized.
        reason = f"the config.json of '{spec.name}' has it, but transformers does not know it"
        raise unknown(method_of(own), reason)
    if spec.quantization is None:
        return {}
    if own:
        raise LLMNERError(
            Errors.E131.format(name=spec.name, own=describe(own), given=spec.quantization)
        )
    options = options_of(spec.quantization)
    try:
        return {"quantization_config": _transformers_config(options, spec.dtype)}
    except ImportError as e:
        raise _missing_package(spec, options, e) from e
    except Exception as e:
        raise unknown(spec.quantization, f"{type(e).__name__}: {e}") from e


def _transformers_config(options: Dict[str, Any], dtype: str) -> Any:
    method = str(method_of(options))
    given = {key: value for key, value in options.items() if key != "quant_method"}
    if method == "bitsandbytes":
        # By default, transformers computes in float32, whatever the dtype of the hidden states.
        return BitsAndBytesConfig(**{"bnb_4bit_compute_dtype": dtype, **given})
    config_class: Any = AUTO_QUANTIZATION_CONFIG_MAPPING[method]
    if isinstance(given.get("quant_type"), dict):  # torchao's own objects, as JSON
        return config_class.from_dict(dict(options))
    return config_class(**given)


def finish_quantization(spec: LLMSpec, model: Any) -> None:
    """Keep 4-bit weights as they are, and free the memory of the weights from before they were quantized.

    RAISES (LLMNERError): If transformers has loaded the weights without quantizing them, or if bitsandbytes
        computes them wrong.
    """
    for module in model.modules():
        # On a CPU with AVX512-BF16, bitsandbytes packs a weight in another way at its first use, and
        # computes in bfloat16 from then on. The views share weights, so it would be packed twice.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    check_four_bits(spec, model)
    if spec.quantization is None:
        return
    if method_of(options_of(spec.quantization)) in ("bitsandbytes", "torchao") and not any(
        is_packed_tensor(p) for p in model.parameters()
    ):
        reason = "it has not quantized any weight"
        settings = f"the quantization {spec.quantization}"
        raise LLMNERError(Errors.E134.format(name=spec.name, settings=settings, reason=reason))
    for parameter in model.parameters():
        # On a CPU, a weight that was not converted is a part of the mapped file, which it keeps in memory.
        if parameter.device.type == "cpu" and not is_packed_tensor(parameter):
            parameter.data = parameter.data.clone()
    with suppress(
        OSError, AttributeError, TypeError
    ):  # the C library keeps what was freed in small pieces
        ctypes.CDLL(None).malloc_trim(0)


def check_four_bits(spec: LLMSpec, model: Any) -> None:
    """Check that bitsandbytes restores 4-bit weights correctly on this CPU.

    RAISES (LLMNERError): If it does not.
    """
    for parameter in model.parameters():
        state = getattr(parameter, "quant_state", None)
        if state is None or parameter.device.type != "cpu":
            continue
        columns = state.shape[-1]
        if not computes_right(columns, state.blocksize, state.quant_type):
            reason = f"on this CPU, bitsandbytes computes weights with {columns} columns wrong"
            settings = "4-bit weights"
            raise LLMNERError(Errors.E134.format(name=spec.name, settings=settings, reason=reason))


@cache
def computes_right(columns: int, block_size: int, quant_type: str) -> bool:
    """Check if bitsandbytes restores a quantized matrix correctly on this CPU. Version 0.50 doesn't on CPUs
    with AVX-512 if a row does not consist of whole blocks.

    columns (int): Width of the matrix.
    block_size (int): Weights that share a scale.
    quant_type (str): "nf4" or "fp4".
    RETURNS (bool): Whether the result is right.
    """
    from bitsandbytes import functional

    generator = torch.Generator().manual_seed(0)
    weight = torch.randn((block_size, columns), generator=generator)
    packed, state = functional.quantize_4bit(weight, blocksize=block_size, quant_type=quant_type)
    halves = packed.flatten()
    codes = state.code[torch.stack([halves >> 4, halves & 15], dim=1).flatten().long()]
    expected = (codes.view(-1, block_size) * state.absmax[:, None]).view_as(weight)
    return torch.allclose(functional.dequantize_4bit(packed, state), expected, atol=1e-3)


def _not_about_casts(record: logging.LogRecord) -> bool:
    # bitsandbytes logs a warning in each layer of each pass that is not in float16.
    return "inputs will be cast" not in record.getMessage()


def loading_error(spec: LLMSpec, path: str, error: Exception) -> Optional[LLMNERError]:
    """Explain why transformers can't load an LLM that is quantized or has a device_map.

    RETURNS (Optional[LLMNERError]): The error; None if the LLM has neither.
    """
    options = options_of(spec.quantization) or own_options(path, spec.revision)
    if options and isinstance(error, ImportError):
        return _missing_package(spec, options, error)
    settings = [f"the quantization {describe(options)}"] if options else []
    settings += [f"the device_map {spec.device_map}"] if spec.device_map else []
    if not settings:
        return None
    reason = f"{type(error).__name__}: {error}"
    return LLMNERError(
        Errors.E134.format(name=spec.name, settings=" and ".join(settings), reason=reason)
    )


def _missing_package(spec: LLMSpec, options: Mapping[str, Any], error: ImportError) -> LLMNERError:
    method = str(method_of(options))
    command = INSTALL.get(method, "see the message of transformers")
    return LLMNERError(
        Errors.E129.format(name=spec.name, method=method, reason=error, command=command)
    )
