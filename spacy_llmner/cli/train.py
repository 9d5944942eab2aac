"""`spacy llmner train`: spaCy's training in several processes."""

from pathlib import Path
from typing import Optional

import typer
from spacy.cli._util import import_code, parse_config_overrides

from ..scale.data_parallel import train
from ._util import exit_on_error


def train_cli(
    ctx: typer.Context,
    config_path: Path = typer.Argument(..., metavar="CONFIG", help="Training config", exists=True),
    output: Optional[Path] = typer.Option(None, "--output", "-o", help="Folder for the pipelines"),
    code_path: Optional[Path] = typer.Option(None, "--code", "-c", help="Python file to import"),
    use_gpu: bool = typer.Option(False, "--gpu", help="Use one GPU per process"),
) -> None:
    """
    Train like `spacy train`, but in several processes, each on a share of every batch:
    torchrun --nproc-per-node 2 -m spacy_llmner train config.cfg --output out. Settings can be overridden
    as in `spacy train`: --paths.train train.spacy.
    """
    with exit_on_error():
        overrides = parse_config_overrides(ctx.args)
        import_code(code_path)
        train(config_path, output, use_gpu, overrides)
