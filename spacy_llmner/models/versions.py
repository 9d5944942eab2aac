"""What differs between the versions of transformers. No other module depends on the version."""

import inspect
from typing import Any, Dict

import transformers
from transformers import DynamicCache

IS_5 = int(transformers.__version__.partition(".")[0]) >= 5


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
