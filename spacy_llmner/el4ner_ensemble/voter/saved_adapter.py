"""An adapter that another component trained on a voter's LLM. The LLM's weights stay shared."""

from hashlib import sha256
from pathlib import Path
from typing import Any, Tuple

import srsly
from safetensors.torch import load
from spacy.util import load_config

from ...errors import Errors, LLMMismatchError, LLMNotFoundError
from ...llm.loading import LoadedLLM
from ...llm.lora import Adapter, AdapterSettings
from ...pipeline.adapter_pipe import AdapterCache
from ...pipeline.torch_pipe import TENSORS


class SavedAdapter:
    """The adapter of a saved component. It is read at first use.

    folder (str): The folder of a trained padellm_ner or ra_it_ner in a saved pipeline.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self._cache = AdapterCache()

    @property
    def resolved_folder(self) -> str:
        """RETURNS (str): The absolute path of the folder, with links resolved."""
        return str(self.folder.resolve())

    def attach(self, llm: LoadedLLM, name: str) -> Tuple[Any, str]:
        """Get a view of the LLM's decoder that uses the adapter. It is created once for each LLM.

        llm (LoadedLLM): The LLM.
        name (str): The names of the voter and its component, for messages.
        RETURNS (Tuple[nn.Module, str]): The view, and a fingerprint of the adapter.
        RAISES (LLMNERError): If the folder doesn't contain an adapter, or one that was trained on another
            LLM.
        """
        if llm not in self._cache.by_llm:
            try:
                self._cache.by_llm[llm] = self._read(llm, name)
            except LLMMismatchError as e:
                raise LLMMismatchError(self._broken(name, str(e))) from None
            except (OSError, ValueError, KeyError, TypeError, RuntimeError) as e:
                reason = self._broken(name, f"{type(e).__name__}: {e}")
                raise LLMNotFoundError(reason) from e
        return self._cache.by_llm[llm]

    def _read(self, llm: LoadedLLM, name: str) -> Tuple[Any, str]:
        cfg = srsly.read_json(self.folder / "cfg")
        if not llm.has_fingerprint(cfg["llm"]["fingerprint"], name):
            reason = f"it was trained on '{cfg['llm']['name']}', another LLM"
            raise LLMMismatchError(reason)
        components = load_config(self.folder.parent / "config.cfg", interpolate=True)["components"]
        model = components[self.folder.name]["model"]
        settings = AdapterSettings(*(model[key] for key in ("rank", "alpha", "first_layer")))
        content = (self.folder / TENSORS).read_bytes()
        adapter = Adapter(cfg["shapes"])
        adapter.load_state_dict(load(content))
        adapter.requires_grad_(False)
        return adapter.attach(llm, settings), sha256(content).hexdigest()[:16]

    def _broken(self, name: str, reason: str) -> str:
        return Errors.E075.format(path=self.folder, name=name, reason=reason)
