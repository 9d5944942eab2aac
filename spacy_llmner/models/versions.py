"""What differs between the versions of transformers. No other module depends on the version."""

import inspect
from typing import Any, Dict, Optional

import transformers
from transformers import DynamicCache, PretrainedConfig

from ..errors import Errors, LLMNERError


def _major(version: str) -> int:
    return int(version.partition(".")[0])


IS_5 = _major(transformers.__version__) >= 5


def dtype_argument(dtype: Any) -> Dict[str, Any]:
    """RETURNS (Dict[str, Any]): The argument of `from_pretrained` for a dtype. transformers 4.53 only
    accepts `torch_dtype`, and transformers 5 warns about it."""
    return {"dtype" if IS_5 else "torch_dtype": dtype}


def cache_argument(model: Any) -> Dict[str, Any]:
    """Create an empty cache for the forward passes of one text.

    model (PreTrainedModel): The model.
    RETURNS (Dict[str, Cache]): The argument of the model, which later passes get again.
    """
    # In transformers 5, a cache needs the config for layers with a sliding window or without attention. In
    # 4.53, it doesn't take one.
    cache = DynamicCache(config=model.config) if IS_5 else DynamicCache()
    # transformers 5.24 renames the argument, and warns about the old name.
    renamed = "cache" in inspect.signature(type(model).forward).parameters
    return {"cache" if renamed else "past_key_values": cache}


def refuse_newer(name: str, path: str, revision: Optional[str]) -> None:
    """Raise an error for an LLM that a newer major version of transformers saved. Version 4 ignores the
    settings of position embeddings as transformers 5 writes them, so its numbers would be wrong.

    name (str): The LLM's name, for the message.
    path (str): Folder or hub id.
    revision (Optional[str]): Revision of a hub id.
    RAISES (LLMNERError): If the LLM is newer.
    """
    try:
        config, _ = PretrainedConfig.get_config_dict(path, revision=revision)
        saved = str(config["transformers_version"])
        newer = _major(saved) > _major(transformers.__version__)
    except Exception:  # if config.json is broken, loading the LLM explains it
        return
    if newer:
        raise needs_newer(name, f"version {saved} saved it, and stores settings differently")


def needs_newer(name: str, reason: str) -> LLMNERError:
    """RETURNS (LLMNERError): The error for an LLM that needs a newer version of transformers."""
    installed = transformers.__version__
    return LLMNERError(Errors.E118.format(name=name, installed=installed, reason=reason))
