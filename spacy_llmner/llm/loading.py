"""Load an LLM's weights and tokenizer from a folder or a hub id."""

import json
import warnings
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Tuple
from weakref import WeakKeyDictionary

import torch
from huggingface_hub import constants, hf_hub_url, try_to_load_from_cache
from huggingface_hub.utils import HFValidationError, build_hf_headers, get_session
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from ..errors import Errors, LLMNERError, LLMNotFoundError, Warnings
from ..models import catalogue
from .attention import ATTENTION
from .fingerprint import fingerprint_of, sampled_fingerprint_of
from .lm_head import lm_logits, log_prob_difference, tolerance
from .spec import DTYPES, LLMSpec
from .tokenization import LLMTokenizer
from .tree_attention import KVCache
from .versions import dtype_argument, needs_newer, refuse_newer

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
    views (Dict[ViewKey, Module]): The views created so far. See `llm/views.py`.
    prefixes (WeakKeyDictionary[Module, Dict[Tuple[int, ...], KVCache]]): By view: the cached keys and
        values of prefixes.
    """

    spec: LLMSpec
    model: Any
    tokenizer: LLMTokenizer
    fingerprint: str
    sampled_fingerprint: str = ""
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
        return self.model.config.max_position_embeddings


def load_llm(spec: LLMSpec) -> LoadedLLM:
    """Load an LLM and its tokenizer.

    spec (LLMSpec): A resolved spec: its dtype and device are names that torch knows.
    RETURNS (LoadedLLM): The LLM, on the device of the spec.
    RAISES (LLMNERError): If the LLM can't be found, is broken, or is of an unsupported type.
    RAISES (MemoryError): If it does not fit into memory.
    """
    path = resolve_path(spec.name, spec.revision)
    refuse_newer(spec.name, path, spec.revision)
    # Tensors created in inference mode could never be used in training, which another component may need.
    with torch.inference_mode(False):
        model, hf_tokenizer = _from_pretrained(spec, path)
    _check_tokenizer(spec, hf_tokenizer, model)
    weights = (path, spec.revision, model.config)
    llm = LoadedLLM(
        spec,
        model,
        LLMTokenizer(hf_tokenizer),
        fingerprint_of(*weights),
        sampled_fingerprint_of(*weights),
    )
    _check_log_probs(llm)
    return llm


def _check_log_probs(llm: LoadedLLM) -> None:
    """RAISES (LLMNERError): If our log-probabilities are not those that transformers computes."""
    difference = log_prob_difference(llm.model, llm.decoder)
    if difference > tolerance(llm.model.dtype):
        kind = llm.model.config.model_type
        raise LLMNERError(
            Errors.E127.format(name=llm.spec.name, model_type=kind, difference=difference)
        )


def _from_pretrained(spec: LLMSpec, path: str) -> Tuple[Any, Any]:
    """RETURNS (Tuple[PreTrainedModel, PreTrainedTokenizer]): The frozen model and its tokenizer."""
    # Without this setting, transformers would ask on the standard input whether to run a folder's own code.
    settings: Dict[str, Any] = {"revision": spec.revision, "trust_remote_code": False}
    try:
        hf_tokenizer = AutoTokenizer.from_pretrained(path, use_fast=True, **settings)
        model, info = AutoModelForCausalLM.from_pretrained(
            path,
            attn_implementation=ATTENTION,
            output_loading_info=True,
            **dtype_argument(DTYPES[spec.dtype]),
            **settings,
        )
    except Exception as e:
        if _out_of_memory(e):  # the folder is not broken
            raise MemoryError(f"no room for the LLM '{spec.name}' ({e})") from e
        raise _load_error(spec, path, e) from e
    # transformers 5 can replace BERT's attention, too.
    if any(getattr(module, "is_causal", None) is False for module in model.modules()):
        raise _not_causal(model.config.model_type)
    if info["missing_keys"]:  # transformers initializes them at random
        reason = f"no weights for {', '.join(sorted(info['missing_keys'])[:3])}"
        raise LLMNERError(Errors.E004.format(path=path, reason=reason))
    if not hasattr(model.config, "num_hidden_layers"):  # text and images in one model
        reason = f"no list of decoder layers was found in {type(model).__name__}"
        raise LLMNERError(Errors.E007.format(model_type=model.config.model_type, reason=reason))
    return model.eval().requires_grad_(False).to(spec.device), hf_tokenizer


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
    if folder.is_dir() and config is None and "auto_map" in _read_json(folder / "config.json"):
        reason = "its config.json asks for code of its own (auto_map), which is not run"
        model_type = _read_json(folder / "config.json").get("model_type", "unknown")
        return LLMNERError(Errors.E007.format(model_type=model_type, reason=reason))
    model_type = _read_json(folder / "config.json").get("model_type")
    if model_type is not None and model_type not in CONFIG_MAPPING:
        return needs_newer(spec.name, f"it doesn't know models of the type '{model_type}'")
    causal = config is None or type(config) in MODEL_FOR_CAUSAL_LM_MAPPING
    if not causal or (isinstance(error, KeyError) and ATTENTION in error.args):  # such as BERT
        return _not_causal(config.model_type)
    if folder.is_dir():
        if _is_broken_generation_config(folder):
            reason = f"generation_config.json has invalid values: {error}"
        return LLMNERError(Errors.E004.format(path=path, reason=reason))
    return _not_found(spec.name, spec.revision, reason)


def _not_causal(model_type: str) -> LLMNERError:
    reason = "it is not a causal LM whose attention can be replaced"
    return LLMNERError(Errors.E007.format(model_type=model_type, reason=reason))


def _is_broken_generation_config(folder: Path) -> bool:
    if not (folder / "generation_config.json").exists():
        return False
    try:
        GenerationConfig.from_pretrained(folder)
    except Exception:
        return True
    return False


def _read_json(path: Path) -> Dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _not_found(name: str, revision: Optional[str], reason: str) -> LLMNotFoundError:
    known = [n for n, m in catalogue.CATALOGUE.items() if m.kind == "causal-lm"]
    nearest = get_close_matches(name.casefold(), known, n=1, cutoff=0.7)
    shown = f"'{name}'" + (f" of revision '{revision}'" if revision else "")
    hint = f" Did you mean '{nearest[0]}'?" if nearest else ""
    return LLMNotFoundError(
        Errors.E003.format(
            name=shown, known=", ".join(known), reason=reason, hint=hint, first=known[0]
        )
    )


def _out_of_memory(error: Exception) -> bool:
    # torch and safetensors have different messages for this.
    message = str(error).casefold()
    return isinstance(error, MemoryError) or any(
        words in message for words in ("out of memory", "not enough memory", "allocate memory")
    )


def resolve_path(name: str, revision: Optional[str] = None) -> str:
    """Find an LLM's weights. A hub id that is not in the local cache is looked up on the hub, once.

    name (str): Local folder, name from the catalogue, or hub id.
    revision (Optional[str]): Revision of a hub id.
    RETURNS (str): The folder, or the hub id itself. transformers finds a hub id in its cache or downloads
        it, unless the user forbids this with HF_HUB_OFFLINE.
    RAISES (LLMNotFoundError): If the LLM can't be found. For a name from the catalogue, the message
        contains the command that downloads it.
    """
    folder = Path(name)
    if folder.is_dir():
        if not (folder / "config.json").exists():
            reason = "no config.json"
            if (folder / "adapter_config.json").exists():
                base = _read_json(folder / "adapter_config.json").get("base_model_name_or_path")
                reason = (
                    f"{reason}, but an adapter_config.json: this is a LoRA adapter of '{base}'. Merge it "
                    "into that model (peft's merge_and_unload), and use the folder of the merged model"
                )
            raise LLMNotFoundError(Errors.E004.format(path=name, reason=reason))
        return name
    if name in catalogue.CATALOGUE:
        path = catalogue.path_of(name)
        if path is None:
            command = catalogue.CATALOGUE[name].command
            raise LLMNotFoundError(Errors.E002.format(name=name, command=command))
        return str(path)
    missing = _missing_on_hub(name, revision)
    if missing is not None:
        raise _not_found(name, revision, missing)
    return name


def is_on_disk(name: str) -> bool:
    """RETURNS (bool): Whether a model can be loaded without downloading it: it is a local folder, or was
    downloaded from the catalogue or the hub before."""
    if Path(name).is_dir() or catalogue.path_of(name) is not None:
        return True
    try:
        return isinstance(try_to_load_from_cache(name, "config.json"), str)
    except HFValidationError:
        return False


def _missing_on_hub(name: str, revision: Optional[str]) -> Optional[str]:
    """Look for a hub id. transformers would request several files and repeat each request for a minute.

    RETURNS (Optional[str]): Why the model is not available; None if it is in the local cache or on the hub,
        or if only transformers can find out.
    """
    try:
        if isinstance(try_to_load_from_cache(name, "config.json", revision=revision), str):
            return None
        url = hf_hub_url(name, "config.json", revision=revision)
    except HFValidationError:
        return "not a valid hub id"
    if constants.HF_HUB_OFFLINE:
        return "the hub is switched off by HF_HUB_OFFLINE"
    try:
        answer = get_session().head(url, headers=build_hf_headers(), timeout=10)
    except Exception as e:
        return f"the hub can't be reached: {type(e).__name__}"
    return f"the hub answers {answer.status_code}" if answer.status_code >= 400 else None
