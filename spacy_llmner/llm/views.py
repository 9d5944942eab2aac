"""Views: second module trees over the parameters of a shared LLM.

A view has its own modules, so its layers can be recorded, replaced or left out without a change to the
shared model. It shares parameters and buffers, so it takes almost no memory.
"""

import copy
from typing import Any, Callable, Optional, Sequence, Tuple

from torch import nn

from ..errors import Errors, LLMNERError
from .attention import current_recorder
from .loading import LoadedLLM, ViewKey

# Names that decoder models give to their list of layers, and to the norm after it.
_LAYERS = ("layers", "h", "blocks")
_NORMS = (
    "norm",
    "ln_f",
    "final_layernorm",
    "final_layer_norm",
    "layer_norm",
    "norm_f",
    "final_norm",
    "embedding_norm",
)


def generating_view(llm: LoadedLLM, layers: Sequence[int]) -> Any:
    """Get a view of the whole causal LM that records the input of some layers and has `generate`. Each view
    is created once per LLM.

    layers (Sequence[int]): The layers, as in `FeatureSpec`.
    RETURNS (PreTrainedModel): A model with the class and the parameters of the shared model.
    """
    key = ViewKey("generate", tuple(sorted(set(layers))))
    if key not in llm.views:
        view = _shallow(llm.model)
        decoder = _recording_decoder(llm.decoder, layers, decoder_end=None)
        decoder.forward = _at_every_position(decoder)
        view._modules[llm.decoder_name] = decoder
        # In a cache of fixed size, which Gemma's configs request, the last keys aren't the last tokens.
        view.generation_config = copy.copy(llm.model.generation_config)
        view.generation_config.cache_implementation = None
        llm.views[key] = view
    return llm.views[key]


def reading_view(llm: LoadedLLM, layers: Sequence[int], end: int) -> nn.Module:
    """Get a view of the decoder, without the LM head, that records some layers. Each view is created once
    per LLM.

    layers (Sequence[int]): The layers, as in `FeatureSpec`.
    end (int): The view's number of blocks. Higher blocks are not computed.
    RETURNS (nn.Module): The view.
    """
    key = ViewKey("read", tuple(sorted(set(layers))), end)
    if key not in llm.views:
        llm.views[key] = _recording_decoder(llm.decoder, layers, decoder_end=end)
    return llm.views[key]


def copy_modules(module: Any) -> Any:
    """Copy a module tree. The copy has its own modules and hooks, but shares parameters and buffers."""
    out = copy.copy(module)
    for name, value in module.__dict__.items():
        if isinstance(value, dict):
            out.__dict__[name] = copy.copy(value)
    out.__dict__["_modules"] = {
        name: None if child is None else copy_modules(child)
        for name, child in module.__dict__["_modules"].items()
    }
    return out


def _recording_decoder(decoder: Any, layers: Sequence[int], decoder_end: Optional[int]) -> Any:
    if hasattr(decoder, "decoder"):  # OPT's decoder is a module of its own
        outer = _shallow(decoder)
        outer._modules["decoder"] = _recording_decoder(decoder.decoder, layers, decoder_end)
        return outer
    layers_name, norm_name = _layout(decoder)
    blocks = list(getattr(decoder, layers_name))
    norm = getattr(decoder, norm_name)
    n_blocks = len(blocks)
    end = n_blocks if decoder_end is None else decoder_end
    view = _shallow(decoder)
    # Layer l is the input of block l (counted from 0), which is the output of the previous block.
    recording = [_recording(b, i) if i in layers else b for i, b in enumerate(blocks[:end])]
    view._modules[layers_name] = nn.ModuleList(recording)
    if end < n_blocks:
        view._modules[norm_name] = _recording(nn.Identity(), end)
    elif end in layers:
        view._modules[norm_name] = _recording(norm, end, output=True)
    return view


def _recording(module: nn.Module, layer: int, output: bool = False) -> nn.Module:
    """RETURNS (nn.Module): A copy of a module with shared parameters that records its input or output."""

    def forward(*args: Any, **kwargs: Any) -> Any:
        out = module.forward(*args, **kwargs)
        recorder = current_recorder()
        if recorder is not None:
            hidden = args[0] if args else kwargs["hidden_states"]
            recorder.hidden[layer] = out if output else hidden
        return out

    view = _shallow(module)
    view.forward = forward
    return view


def _at_every_position(decoder: Any) -> Callable[..., Any]:
    """RETURNS (Callable): The decoder's `forward`, which ignores that only the last logits are needed. With
    this argument, Gemma 4 computes its upper layers for the last position only."""
    decoder_forward = decoder.forward

    def forward(*args: Any, logits_to_keep: Any = None, **kwargs: Any) -> Any:
        return decoder_forward(*args, **kwargs)

    return forward


def _shallow(module: Any) -> Any:
    """Copy the root of a module tree. The copy shares parameters and submodules, but has its own dict of
    submodules."""
    view = copy.copy(module)
    view.__dict__["_modules"] = dict(module._modules)
    return view


def _layout(decoder: Any) -> Tuple[str, str]:
    found = [
        next((name for name in names if name in decoder._modules), None)
        for names in (_LAYERS, _NORMS)
    ]
    if found[0] is not None and found[1] is not None:
        return found[0], found[1]
    model_type = getattr(decoder.config, "model_type", "?")
    reason = f"no list of decoder layers was found in {type(decoder).__name__}"
    raise LLMNERError(Errors.E007.format(model_type=model_type, reason=reason))
