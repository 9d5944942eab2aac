"""Load an LLM's weights and tokenizer from a folder or a hub id."""

import re
import warnings
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Tuple
from weakref import WeakKeyDictionary

import torch
from accelerate.utils import check_device_map
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
)

from ..errors import Errors, LLMNERError, Warnings
from ..models.versions import dtype_argument, needs_newer, refuse_newer
from .attention import ATTENTION
from .findings import Finding
from .fingerprint import fingerprint_of, sampled_fingerprint_of
from .folder_config import read_json
from .lm_head import lm_logits
from .location import not_found, resolve_path
from .memory import check_memory
from .placement import is_spread, place, placement_settings
from .quantization import describe, own_options
from .quantized_loading import finish_quantization, loading_error, quantization_settings
from .spec import DTYPES, LLMSpec
from .tokenization import LLMTokenizer
from .tree_attention import KVCache

# Names of the number of positions in the configs of transformers, and the number if there is none.
MAX_LENGTHS = ("max_position_embeddings", "max_seq_len", "max_sequence_length", "seq_length")
DEFAULT_LENGTH = 2048

Prefixes = WeakKeyDictionary[nn.Module, Dict[Tuple[int, ...], KVCache]]


class ViewKey(NamedTuple):
    """Identifies a view of an LLM.

    kind (str): "read" or "generate".
    layers (Tuple[int, ...]): The layers that it records.
    end (Optional[int]): Its number of blocks; None for all.
    """

    kind: str
    layers: Tuple[int, ...]
    end: Optional[int] = None


@dataclass(eq=False)
class LoadedLLM:
    """An LLM in memory. Its weights are in eval mode, have no gradients and are never written to.

    spec (LLMSpec): The resolved spec that it was loaded from.
    model (PreTrainedModel): A causal LM of transformers.
    tokenizer (LLMTokenizer): Encodes text to ids with exact character offsets.
    fingerprint (str): Identifies the weights, independent of their dtype and device.
    sampled_fingerprint (str): The same as version 0.1.0 computed it, from samples of the weights.
    findings (Dict[str, Finding]): What the self-check found, by use; empty if it was switched off. See
        `llm/self_check.py`.
    views (Dict[ViewKey, Module]): The views created so far. See `llm/views.py`.
    prefixes (WeakKeyDictionary[Module, Dict[Tuple[int, ...], KVCache]]): By view: the cached keys and
        values of prefixes.
    """

    spec: LLMSpec
    model: Any
    tokenizer: LLMTokenizer
    fingerprint: str
    sampled_fingerprint: str = ""
    findings: Dict[str, Finding] = field(default_factory=dict, repr=False)
    views: Dict[ViewKey, nn.Module] = field(default_factory=dict, repr=False)
    prefixes: Prefixes = field(default_factory=WeakKeyDictionary, repr=False)

    @property
    def device(self) -> torch.device:
        """RETURNS (torch.device): The device of the input, and of what is read from the LLM. A model with
        a device_map moves the input of its layers to their devices."""
        # model.device would search all parameters on each call.
        if self.spec.device_map is None:
            return torch.device(self.spec.device)
        return self.model.get_input_embeddings().weight.device

    @cached_property
    def is_spread(self) -> bool:
        """RETURNS (bool): Whether the LLM is on more than one device."""
        return is_spread(self.model)

    @cached_property
    def quantization(self) -> Optional[str]:
        """RETURNS (Optional[str]): The setting `quantization`, or the method by which the weights of the
        folder are quantized. None if the weights are not quantized."""
        spec = self.spec
        return spec.quantization or describe(own_options(spec.name, spec.revision))

    @property
    def n_layers(self) -> int:
        return self.model.config.num_hidden_layers

    @property
    def n_heads(self) -> int:
        return self.model.config.num_attention_heads

    @property
    def n_logits(self) -> int:
        """RETURNS (int): The number of tokens that the LM head scores."""
        head = self.model.get_output_embeddings()
        # The weight of a quantized head has another shape.
        return getattr(head, "out_features", None) or head.weight.shape[0]

    @property
    def width(self) -> int:
        return self.model.config.hidden_size

    @property
    def decoder(self) -> Any:
        """RETURNS (PreTrainedModel): The model without its LM head."""
        return getattr(self.model, self.decoder_name)

    @property
    def decoder_name(self) -> str:
        """RETURNS (str): The name of the model's attribute for its decoder."""
        name = self.model.base_model_prefix  # for Gemma3, the prefix of its multimodal class
        return name if hasattr(self.model, name) else "model"

    def has_fingerprint(self, saved: str, name: str) -> bool:
        """Compare the LLM with a saved fingerprint. Warn if it is one of version 0.1.0, which covers only
        samples of the weights.

        saved (str): The fingerprint.
        name (str): What was saved with it, for messages.
        RETURNS (bool): Whether it is the fingerprint of this LLM.
        """
        if saved == self.fingerprint:
            return True
        if saved != self.sampled_fingerprint:
            return False
        warnings.warn(Warnings.W014.format(name=name), stacklevel=2)
        return True

    def require(self, use: str) -> None:
        """Check that the LLM can be used in some way.

        use (str): "reads", "streams", "trees" or "attention".
        RAISES (LLMNERError): If the self-check found that the results would be wrong.
        """
        finding = self.findings.get(use)
        if finding is not None and finding.reason:
            message = {
                "reads": Errors.E127,
                "streams": Errors.E140,
                "trees": Errors.E141,
                "attention": Errors.E142,
            }[use]
            model_type = self.model.config.model_type
            raise LLMNERError(
                message.format(name=self.spec.name, model_type=model_type, reason=finding.reason)
            )

    def check_finite(self, values: Any) -> None:
        """Check the LLM's output for NaN.

        values (Union[Tensor, ndarray]): Output of the LLM.
        RAISES (LLMNERError): If any value is NaN, for example after an overflow.
        """
        if (values != values).any():
            raise LLMNERError(Errors.E043.format(name=self.spec.name, dtype=self.model.dtype))

    def logits(self, hidden: torch.Tensor, ids: Optional[torch.Tensor] = None) -> torch.Tensor:
        """Apply the LM head.

        hidden (Tensor): Shape (rows, width), after the final norm.
        ids (Optional[Tensor]): The tokens to compute logits for; None for the whole vocabulary, which
            training needs.
        RETURNS (Tensor): float32, shape (rows, ids).
        """
        return lm_logits(self.model, hidden, ids)

    @property
    def end_ids(self) -> List[int]:
        """RETURNS (List[int]): The token ids that end generation, ascending."""
        configured = getattr(self.model.generation_config, "eos_token_id", None)
        ends = configured if isinstance(configured, list) else [configured]
        return sorted({t for t in [*ends, self.tokenizer.hf.eos_token_id] if t is not None})

    @property
    def max_length(self) -> int:
        """RETURNS (int): The number of positions the LLM was trained for. (Its tokenizer's own limit is
        often a placeholder.)"""
        config = self.model.config
        limits = [getattr(config, name, None) for name in MAX_LENGTHS]
        scaling = getattr(config, "rope_scaling", None) or {}
        if scaling.get("rope_type", scaling.get("type")) == "longrope":
            # transformers changes the rotation of all positions of a batch if one of its texts is longer.
            limits.append(getattr(config, "original_max_position_embeddings", None))
            limits.append(scaling.get("original_max_position_embeddings"))
        return min((limit for limit in limits if limit), default=DEFAULT_LENGTH)


def load_llm(spec: LLMSpec) -> LoadedLLM:
    """Load an LLM and its tokenizer.

    spec (LLMSpec): A resolved spec: its dtype and device are names that torch knows.
    RETURNS (LoadedLLM): The LLM, on the device of the spec.
    RAISES (LLMNERError): If the LLM can't be found, is broken, or is of an unsupported type.
    RAISES (MemoryError): If it does not fit into memory.
    """
    path = resolve_path(spec.name, spec.revision)
    refuse_newer(spec.name, path, spec.revision)
    check_memory(spec, path)
    # Tensors created in inference mode could never be used in training, which another component may need.
    with torch.inference_mode(False):
        model, hf_tokenizer = _from_pretrained(spec, path)
    _check_tokenizer(spec, hf_tokenizer, model)
    weights = (path, spec.revision, model.config)
    return LoadedLLM(
        spec,
        model,
        LLMTokenizer(hf_tokenizer),
        fingerprint_of(*weights),
        sampled_fingerprint_of(*weights),
    )


def _from_pretrained(spec: LLMSpec, path: str) -> Tuple[Any, Any]:
    """RETURNS (Tuple[PreTrainedModel, PreTrainedTokenizer]): The frozen model and its tokenizer."""
    # Without this setting, transformers would ask on the standard input whether to run a folder's own code.
    settings: Dict[str, Any] = {"revision": spec.revision, "trust_remote_code": False}
    how = {**quantization_settings(spec, path), **placement_settings(spec)}
    try:
        hf_tokenizer = AutoTokenizer.from_pretrained(path, use_fast=True, **settings)
        dtype = dtype_argument(DTYPES.get(spec.dtype, "auto"))
        options = {**dtype, "output_loading_info": True, **how, **settings}
        try:
            model, info = AutoModelForCausalLM.from_pretrained(
                path, attn_implementation=ATTENTION, **options
            )
        except Exception as e:
            config = AutoConfig.from_pretrained(path, **settings)
            if not re.search(f"[\"']{ATTENTION}[\"']", str(e)) or not _is_causal(config):
                raise
            # Some older architectures have only attention of their own. They can still read texts.
            model, info = AutoModelForCausalLM.from_pretrained(path, **options)
        if not (model._supports_attention_backend or model._supports_sdpa):
            # transformers 5 ignores that BLOOM, MPT, XGLM and others have only attention of their own. They
            # need the masks of "eager", and can then read texts as well.
            model.config._attn_implementation = "eager"
        if spec.device_map_table is not None:
            # transformers 5 puts parts that the table doesn't contain on the CPU.
            check_device_map(model, spec.device_map_table)
    except Exception as e:
        if out_of_memory(e):  # the folder is not broken
            raise MemoryError(f"no room for the LLM '{spec.name}' ({e})") from e
        raise loading_error(spec, path, e) or _load_error(spec, path, e) from e
    if not _is_causal(model.config):
        raise _not_causal(model.config.model_type)
    if info["missing_keys"]:  # transformers initializes them at random
        reason = f"no weights for {', '.join(sorted(info['missing_keys'])[:3])}"
        raise LLMNERError(Errors.E004.format(path=path, reason=reason))
    if not hasattr(model.config, "num_hidden_layers"):  # text and images in one model
        reason = f"no list of decoder layers was found in {type(model).__name__}"
        raise LLMNERError(Errors.E007.format(model_type=model.config.model_type, reason=reason))
    finish_quantization(spec, model)
    return place(model.eval().requires_grad_(False), spec), hf_tokenizer


def _check_tokenizer(spec: LLMSpec, hf_tokenizer: Any, model: Any) -> None:
    """RAISES (LLMNERError): If a tokenizer has no offsets, or can encode text to ids without embeddings."""
    if not hf_tokenizer.is_fast:
        raise LLMNERError(Errors.E011.format(name=spec.name))
    n_rows = model.get_input_embeddings().weight.shape[0]
    if len(hf_tokenizer) <= n_rows:
        return
    # Text is never encoded to special tokens, so they need no rows. Gemma 3 has no rows for some of them.
    special = set(hf_tokenizer.all_special_ids) | {
        i for i, token in hf_tokenizer.added_tokens_decoder.items() if token.special
    }
    vocab = hf_tokenizer.get_vocab()
    beyond = {i: token for token, i in vocab.items() if i >= n_rows and i not in special}
    if beyond:
        first = min(beyond)
        raise LLMNERError(
            Errors.E112.format(
                name=spec.name, n=len(vocab), rows=n_rows, token=beyond[first], first=first
            )
        )


def _load_error(spec: LLMSpec, path: str, error: Exception) -> LLMNERError:
    """RETURNS (LLMNERError): An error that explains why transformers can't load the LLM."""
    try:
        config = AutoConfig.from_pretrained(path, revision=spec.revision, trust_remote_code=False)
    except Exception:
        config = None
    reason = f"{type(error).__name__}: {error}"
    folder = Path(path)
    if folder.is_dir() and config is None and "auto_map" in read_json(folder / "config.json"):
        reason = "its config.json asks for code of its own (auto_map), which is not run"
        model_type = read_json(folder / "config.json").get("model_type", "unknown")
        return LLMNERError(Errors.E007.format(model_type=model_type, reason=reason))
    model_type = read_json(folder / "config.json").get("model_type")
    if model_type is not None and model_type not in CONFIG_MAPPING:
        return needs_newer(spec.name, f"it doesn't know models of the type '{model_type}'")
    if config is not None and not _is_causal(config):
        return _not_causal(config.model_type)
    if folder.is_dir():
        if _is_broken_generation_config(folder):
            reason = f"generation_config.json has invalid values: {error}"
        return LLMNERError(Errors.E004.format(path=path, reason=reason))
    return not_found(spec.name, spec.revision, reason)


def _is_causal(config: Any) -> bool:
    """RETURNS (bool): False for other models (T5), even if they have a causal variant (BERT)."""
    kind = type(config)
    return kind in MODEL_FOR_CAUSAL_LM_MAPPING and kind not in MODEL_FOR_MASKED_LM_MAPPING


def _not_causal(model_type: str) -> LLMNERError:
    reason = "it is not a causal LM"
    return LLMNERError(Errors.E007.format(model_type=model_type, reason=reason))


def _is_broken_generation_config(folder: Path) -> bool:
    if not (folder / "generation_config.json").exists():
        return False
    try:
        GenerationConfig.from_pretrained(folder)
    except Exception:
        return True
    return False


def out_of_memory(error: Exception) -> bool:
    """RETURNS (bool): Whether an error says that the memory was not enough."""
    # torch and safetensors have different messages for this.
    message = str(error).casefold()
    return isinstance(error, MemoryError) or any(
        words in message for words in ("out of memory", "not enough memory", "allocate memory")
    )
