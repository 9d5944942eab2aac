"""`spacy llmner info`: print versions, devices and models."""

import json
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Dict, List

from spacy.cli._util import Opt
from wasabi import Printer

from ..models import catalogue
from ..models.wheels import size_of

PACKAGES = ("spacy-llmner", "spacy", "torch", "transformers", "tokenizers", "spacy-transformers")
MB = 1_000_000


def info_cli(
    # fmt: off
    as_json: bool = Opt(False, "--json", "-j", help="Print JSON"),
    # fmt: on
) -> None:
    """
    Print versions, devices, the cache folder, and the models of the catalogue with
    their status.
    """
    found = info()
    if as_json:
        print(json.dumps(found, indent=2))
        return
    msg = Printer()
    msg.divider("spacy-llmner")
    rows = [(package, found["versions"][package]) for package in PACKAGES]
    rows += [("Python", found["python"]), ("Platform", found["platform"])]
    rows += [("Devices", ", ".join(found["devices"])), ("Cache folder", found["home"])]
    rows += [("Feature caches", f"{found['features_mb']} MB")]
    msg.table(rows)
    msg.divider("Models")
    for model in found["models"]:
        title = f"{model['name']}: {model['description']}"
        details = "\n".join(_details(model))
        if model["path"] is not None:
            msg.good(title, f"{details}\n{model['path']}")
        else:
            msg.info(title, f"{details}\nDownload it with: {model['command']}")


def info() -> Dict[str, Any]:
    """Collect the data that `spacy llmner info` prints.

    RETURNS (Dict[str, Any]): Values that JSON supports. The "path" of a model is None if it is not
        downloaded. Its "size_mb" is the measured size on disk if it is downloaded, and the expected size
        otherwise. Its "memory_mb" is the size of the weights in memory, by dtype.
    """
    home = catalogue.home()
    return {
        "versions": {package: _version(package) for package in PACKAGES},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "devices": _devices(),
        "home": str(home),
        "features_mb": _size_mb(home / "features"),
        "models": [_describe(model) for model in catalogue.CATALOGUE.values()],
    }


def _details(model: Dict[str, Any]) -> List[str]:
    memory = ", ".join(f"{mb} MB in {dtype}" for dtype, mb in model["memory_mb"].items())
    return [
        f"{model['parameters'] / MB:.0f} million parameters, {model['size_mb']} MB on disk",
        f"Memory of the weights: {memory}",
        f"Licence: {model['licence']} ({model['licence_url']})",
        f"Checked: {model['checked']}",
    ]


def _describe(model: catalogue.CatalogueModel) -> Dict[str, Any]:
    path = catalogue.path_of(model.name)
    # The sentence encoder always runs in float32.
    dtypes = ("float32", "bfloat16", "4-bit") if model.kind == "causal-lm" else ("float32",)
    return {
        "name": model.name,
        "kind": model.kind,
        "description": model.description,
        "path": None if path is None else str(path),
        "parameters": model.parameters,
        "size_mb": model.size_mb() if path is None else _size_mb(path),
        "memory_mb": {dtype: model.size_mb(dtype) for dtype in dtypes},
        "licence": model.licence,
        "licence_url": model.licence_url,
        "checked": model.checked,
        "command": model.command,
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _devices() -> List[str]:
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return ["cpu"] + [f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(count)]


def _size_mb(path: Path) -> int:
    return round(size_of(path) / MB)
