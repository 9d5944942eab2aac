"""Find an LLM's weights: a local folder, a model of the catalogue, or a model of the hub."""

from difflib import get_close_matches
from pathlib import Path
from typing import Optional

from huggingface_hub import constants, hf_hub_url, try_to_load_from_cache
from huggingface_hub.utils import HFValidationError, build_hf_headers, get_session

from ..errors import Errors, LLMNotFoundError
from ..models import catalogue
from .folder_config import read_json


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
    _refuse_gguf(folder)
    if folder.is_dir():
        if not (folder / "config.json").exists():
            reason = "no config.json"
            if (folder / "adapter_config.json").exists():
                base = read_json(folder / "adapter_config.json").get("base_model_name_or_path")
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
        raise not_found(name, revision, missing)
    return name


def _refuse_gguf(path: Path) -> None:
    """RAISES (LLMNotFoundError): If a path is a GGUF file, or a folder whose weights are GGUF files."""
    others = ("*.safetensors", "*.bin")
    found = [path] if path.suffix.lower() == ".gguf" else sorted(path.glob("*.gguf"))
    if found and not any(file for pattern in others for file in path.glob(pattern)):
        raise LLMNotFoundError(Errors.E128.format(path=found[0]))


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


def not_found(name: str, revision: Optional[str], reason: str) -> LLMNotFoundError:
    known = [n for n, m in catalogue.CATALOGUE.items() if m.kind == "causal-lm"]
    nearest = get_close_matches(name.casefold(), known, n=1, cutoff=0.7)
    shown = f"'{name}'" + (f" of revision '{revision}'" if revision else "")
    hint = f" Did you mean '{nearest[0]}'?" if nearest else ""
    return LLMNotFoundError(
        Errors.E003.format(
            name=shown, known=", ".join(known), reason=reason, hint=hint, first=known[0]
        )
    )
