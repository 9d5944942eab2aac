"""Load an LLM's weights and tokenizer from a folder or a hub id."""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Tuple
from weakref import WeakKeyDictionary

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from ..errors import Errors, LLMNERError, LLMNotFoundError
from ..models import catalogue
from .attention import ATTENTION
from .spec import DTYPES, LLMSpec
from .tokenization import LLMTokenizer
from .tree_attention import KVCache

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
    views (Dict[ViewKey, Module]): The views created so far. See `llm/views.py`.
    prefixes (WeakKeyDictionary[Module, Dict[Tuple[int, ...], KVCache]]): By view: the cached keys and
        values of prefixes.
    """

    spec: LLMSpec
    model: Any
    tokenizer: LLMTokenizer
    fingerprint: str
    views: Dict[ViewKey, nn.Module] = field(default_factory=dict, repr=False)
    prefixes: Prefixes = field(default_factory=WeakKeyDictionary, repr=False)

    @property
    def device(self) -> torch.device:
        # model.device would search all parameters on each call.
        return torch.device(self.spec.device)

    @property
    def n_layers(self) -> int:
        return self.model.config.num_hidden_layers

    @property
    def n_heads(self) -> int:
        return self.model.config.num_attention_heads

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
        ids (Optional[Tensor]): The tokens to compute logits for; None for the whole vocabulary, as
            training needs it.
        RETURNS (Tensor): float32, shape (rows, ids).
        """
        head = self.model.get_output_embeddings()
        if ids is None:
            return head(hidden).float()
        weight = head.weight[ids.to(head.weight.device)]
        bias = None if head.bias is None else head.bias[ids.to(head.weight.device)]
        return torch.nn.functional.linear(hidden, weight, bias).float()

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
        return self.model.config.max_position_embeddings


def load_llm(spec: LLMSpec) -> LoadedLLM:
    """Load an LLM and its tokenizer.

    spec (LLMSpec): A resolved spec: its dtype and device are names that torch knows.
    RETURNS (LoadedLLM): The LLM, on the device of the spec.
    RAISES (LLMNERError): If the LLM can't be found, is broken, or is of an unsupported type.
    RAISES (MemoryError): If it does not fit into memory.
    """
    path = resolve_path(spec.name, spec.revision)
    try:
        hf_tokenizer = AutoTokenizer.from_pretrained(path, revision=spec.revision, use_fast=True)
        model, info = AutoModelForCausalLM.from_pretrained(
            path,
            revision=spec.revision,
            torch_dtype=DTYPES[spec.dtype],
            attn_implementation=ATTENTION,
            output_loading_info=True,
        )
    except Exception as e:
        if _out_of_memory(e):  # not the folder's fault
            raise MemoryError(f"no room for the LLM '{spec.name}' ({e})") from e
        raise _load_error(spec, path, e) from e
    if info["missing_keys"]:  # transformers initializes them at random
        reason = f"no weights for {', '.join(sorted(info['missing_keys'])[:3])}"
        raise LLMNERError(Errors.E004.format(path=path, reason=reason))
    if not hf_tokenizer.is_fast:
        raise LLMNERError(Errors.E011.format(name=spec.name))
    if not hasattr(model.config, "num_hidden_layers"):  # text and images in one model
        reason = f"no list of decoder layers was found in {type(model).__name__}"
        raise LLMNERError(Errors.E007.format(model_type=model.config.model_type, reason=reason))
    model.eval().requires_grad_(False).to(spec.device)
    fingerprint = fingerprint_of(path, spec.revision, model)
    return LoadedLLM(spec, model, LLMTokenizer(hf_tokenizer), fingerprint)


def _load_error(spec: LLMSpec, path: str, error: Exception) -> LLMNERError:
    """RETURNS (LLMNERError): An error that explains why transformers can't load the LLM."""
    try:
        config = AutoConfig.from_pretrained(path, revision=spec.revision)
    except Exception:
        config = None
    causal = config is None or type(config) in MODEL_FOR_CAUSAL_LM_MAPPING
    if not causal or (isinstance(error, KeyError) and ATTENTION in error.args):  # such as BERT
        reason = "it is not a causal LM whose attention can be replaced"
        return LLMNERError(Errors.E007.format(model_type=config.model_type, reason=reason))
    reason = f"{type(error).__name__}: {error}"
    if Path(path).is_dir():
        return LLMNERError(Errors.E004.format(path=path, reason=reason))
    name = f"'{spec.name}'" + (f" of revision '{spec.revision}'" if spec.revision else "")
    known = [n for n, m in catalogue.CATALOGUE.items() if m.kind == "causal-lm"]
    return LLMNotFoundError(
        Errors.E003.format(name=name, known=", ".join(known), reason=reason, first=known[0])
    )


def _out_of_memory(error: Exception) -> bool:
    # torch and safetensors word this differently.
    message = str(error).casefold()
    return isinstance(error, MemoryError) or any(
        words in message for words in ("out of memory", "not enough memory", "allocate memory")
    )


def fingerprint_of(path: str, revision: Optional[str], model: Any) -> str:
    """Hash the model's dimensions and samples of its weight files. This takes only a few reads, even for
    70 B parameters.

    Hashing the values in memory would not work, since they depend on the dtype they were loaded in.
    RETURNS (str): 16 hexadecimal digits.
    """
    config = model.config
    digest = hashlib.sha256()
    shape = [config.model_type, config.num_hidden_layers, config.hidden_size, config.vocab_size]
    digest.update(json.dumps(shape).encode())
    if not Path(path).is_dir():
        from transformers.utils import cached_file

        path = str(Path(str(cached_file(path, "config.json", revision=revision))).parent)
    files = sorted(Path(path).glob("*.safetensors")) or sorted(Path(path).glob("*.bin"))
    for file in files:
        size = file.stat().st_size
        digest.update(str(size).encode())
        with file.open("rb") as f:
            for start in range(0, size, max(size // 8, 1 << 16)):
                f.seek(start)
                digest.update(f.read(1 << 16))
    return digest.hexdigest()[:16]


def resolve_path(name: str, revision: Optional[str] = None) -> str:
    """Find an LLM's weights without using the network.

    name (str): Local folder, name from the catalogue, or hub id.
    revision (Optional[str]): Revision of a hub id.
    RETURNS (str): The folder, or the hub id itself. transformers finds a hub id in its cache or downloads
        it, unless the user forbids this with HF_HUB_OFFLINE.
    RAISES (LLMNotFoundError): If the LLM is not there. For a name from the catalogue, the message has the
        command that downloads it.
    """
    if Path(name).is_dir():
        if not (Path(name) / "config.json").exists():
            raise LLMNotFoundError(Errors.E004.format(path=name, reason="no config.json"))
        return name
    if name in catalogue.CATALOGUE:
        path = catalogue.path_of(name)
        if path is None:
            command = catalogue.CATALOGUE[name].command
            raise LLMNotFoundError(Errors.E002.format(name=name, command=command))
        return str(path)
    return name
