"""LLM handles, and the registry of loaded LLMs: one per LLMSpec and process, shared by all components
and pipelines that name it.
"""

import gc
import threading
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any, Dict, List, Optional, Union

import torch

from ..errors import Errors, LLMNERError, LLMNotFoundError
from ..models import catalogue
from .loading import LoadedLLM, load_llm
from .quantization import canonical
from .self_check import self_check
from .spec import LLMSpec, canonical_device_map, refuse_forked_process

_LOADED: Dict[LLMSpec, LoadedLLM] = {}
_HANDLES: "weakref.WeakSet[LLM]" = weakref.WeakSet()
_LOCK = threading.RLock()


class LLM:
    """A lightweight handle on a shared LLM. Creating, copying or pickling it never loads the weights.

    spec (LLMSpec): The LLM to load at first use.
    """

    def __init__(self, spec: LLMSpec) -> None:
        self.spec = spec
        self._loaded_key: Optional[LLMSpec] = None
        _HANDLES.add(self)

    def load(self) -> LoadedLLM:
        """Get the shared LLM. It is loaded if it is not in memory yet.

        RETURNS (LoadedLLM): The same object for all handles whose names resolve to the same weights.
        RAISES (LLMNERError): If the model or the device is not available, if the folder is broken, or if
            the device is a GPU and this is a forked process.
        """
        if not self.spec.name:
            raise LLMNotFoundError(Errors.E001.format(component="COMPONENT"))
        refuse_forked_process(self.spec.main_device)
        with _LOCK:
            key = self._loaded_key
            if key is None or key not in _LOADED:  # otherwise no need to look for its files again
                key = self._loaded_key = self.key
            llm = _LOADED[key] if key in _LOADED else load_llm(self.spec.resolve())
            if self.spec.self_check:
                # A handle without the check can have loaded it before.
                llm.findings = llm.findings or self_check(llm)
                llm.require("reads")
            _LOADED[key] = llm
            return llm

    @property
    def key(self) -> LLMSpec:
        """RETURNS (LLMSpec): The key, equal for handles that share weights. See `key_of`."""
        return key_of(self.spec)

    def unload(self) -> None:
        """Free the weights of this spec. Any handle loads them again at its next use."""
        unload(self.spec)

    def __reduce__(self):
        return LLM, (self.spec,)

    def __repr__(self) -> str:
        spec = self.spec
        revision = f", revision={spec.revision!r}" if spec.revision else ""
        state = "loaded" if self._loaded_key in _LOADED else "not loaded"
        place = f"device={spec.device}"
        if spec.device_map is not None:
            place = f"device_map={spec.device_map}"
        quantized = f", quantization={spec.quantization}" if spec.quantization else ""
        return f"LLM({spec.name!r}{revision}, dtype={spec.dtype}{quantized}, {place}, {state})"


def make_llm(
    name: Optional[str] = None,
    revision: Optional[str] = None,
    dtype: str = "auto",
    device: str = "auto",
    quantization: Union[None, str, Dict[str, Any]] = None,
    device_map: Union[None, str, Dict[str, Any]] = None,
    self_check: bool = True,
) -> LLM:
    """Create an LLM handle. Registered as `spacy_llmner.LLM.v1` in `@misc`, for the LLM block of a
    component's config.

    name (Optional[str]): Local folder, name from the catalogue, or hub id.
    revision (Optional[str]): Revision of a hub id.
    dtype (str): "auto", "float32", "bfloat16" or "float16".
    device (str): "auto", "cpu", "cuda" or "cuda:N".
    quantization (Union[None, str, Dict[str, Any]]): Quantize the weights when they are loaded:
        "bitsandbytes-4bit", "bitsandbytes-8bit", or a table with the options of transformers'
        BitsAndBytesConfig, or with `quant_method` and the options of another method.
    device_map (Union[None, str, Dict[str, Any]]): Spread the LLM over several devices: "auto", or a table
        with the device of each module. Only one of `device` and `device_map` can be set.
    self_check (bool): Check at the first load that the LLM's results are those of transformers.
    RETURNS (LLM): The handle. Nothing is loaded.
    RAISES (LLMNERError): If a setting is not valid.
    """
    spec = LLMSpec(
        name=name or "",
        revision=revision,
        dtype=dtype,
        device=device,
        quantization=canonical(quantization),
        device_map=canonical_device_map(device_map),
        self_check=self_check,
    )
    return LLM(spec)


def as_llm(llm: Union[str, LLM]) -> LLM:
    """RETURNS (LLM): The handle itself; for a name, a new handle with default settings."""
    return make_llm(llm) if isinstance(llm, str) else llm


def loaded() -> List[LoadedLLM]:
    """RETURNS (List[LoadedLLM]): The LLMs that are in memory now."""
    with _LOCK:
        return list(_LOADED.values())


def key_of(spec: LLMSpec) -> LLMSpec:
    """Compute the key that the weights of a spec are stored under. The spec itself keeps its name, since
    the files can be elsewhere on another machine.

    RETURNS (LLMSpec): The resolved spec. For a local folder or a name from the catalogue, its name
        is the absolute path of the folder.
    RAISES (LLMNERError): If the device is not available.
    """
    resolved = replace(spec.resolve(), self_check=True)
    if spec.name and Path(spec.name).is_dir():
        folder: Optional[Path] = Path(spec.name)
    else:
        folder = catalogue.path_of(spec.name)
    if folder is None:
        return resolved
    return replace(resolved, name=str(folder.resolve()), revision=None)


def count_handles(spec: LLMSpec) -> int:
    """RETURNS (int): The number of live handles that share the weights of a spec."""
    key = key_of(spec)
    return sum(1 for llm in list(_HANDLES) if llm.spec.name and _has_key(llm.spec, key))


def _has_key(spec: LLMSpec, key: LLMSpec) -> bool:
    try:
        return key_of(spec) == key
    except LLMNERError:  # the device is not available
        return False


def unload(spec: LLMSpec) -> None:
    """Free the weights of a spec."""
    with _LOCK:
        _LOADED.pop(key_of(spec), None)
    _free()


def clear() -> None:
    """Free all weights."""
    with _LOCK:
        _LOADED.clear()
    _free()


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
