"""What an LLM's config.json says, read without transformers and without a download."""

import json
from pathlib import Path
from typing import Any, Dict, Optional

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.utils import HFValidationError

from ..models import catalogue


def read_config(name: str, revision: Optional[str] = None) -> Dict[str, Any]:
    """Read config.json of an LLM that is on this machine.

    name (str): Local folder, name from the catalogue, or hub id.
    revision (Optional[str]): Revision of a hub id.
    RETURNS (Dict[str, Any]): The content. Empty if there is no such file, or if it is not valid.
    """
    folder = Path(name) if name and Path(name).is_dir() else catalogue.path_of(name)
    if folder is not None:
        return read_json(folder / "config.json")
    try:
        cached = try_to_load_from_cache(name, "config.json", revision=revision)
    except HFValidationError:
        return {}
    return read_json(Path(cached)) if isinstance(cached, str) else {}


def read_json(path: Path) -> Dict[str, Any]:
    """RETURNS (Dict[str, Any]): The object in a JSON file; empty if there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
