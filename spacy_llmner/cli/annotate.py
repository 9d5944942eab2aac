"""`spacy llmner annotate`: annotate a corpus of any size."""

import signal
from pathlib import Path
from typing import Any, Optional

import typer

from ..scale.run import annotate
from ..scale.writers import OutputFormat
from ._util import exit_on_error


def annotate_cli(
    texts: str = typer.Argument(
        ...,
        metavar="IN",
        help="Texts: a .jsonl, .txt (one text per line), .csv (all also with .gz), .parquet or .spacy "
        "file, a folder with such files, or - for JSONL on the standard input",
    ),
    output: Path = typer.Argument(..., metavar="OUT", help="Output folder"),
    model: str = typer.Option(
        ..., "--model", "-m", help="Pipeline: a folder or the name of a package"
    ),
    text_field: str = typer.Option("text", "--text-field", help="Field or column of the texts"),
    format: OutputFormat = typer.Option(OutputFormat.jsonl, "--format", "-f", help="Output format"),
    spans: bool = typer.Option(False, "--spans", help="Also write all spans in doc.spans"),
    shard_size: int = typer.Option(
        1000, "--shard-size", min=1, help="Maximum number of documents in a shard"
    ),
    resume: bool = typer.Option(
        False, "--resume", help="Continue the run in OUT, if there is one: annotate what is missing"
    ),
    workers: int = typer.Option(
        1, "--workers", min=1, help="Number of processes. Each loads the LLM"
    ),
    gpus: int = typer.Option(
        0, "--gpus", min=0, help="Number of GPUs, with one process for each; 0 for `--workers`"
    ),
    ray: Optional[str] = typer.Option(
        None,
        "--ray",
        metavar="ADDRESS",
        help="Run the workers on a Ray cluster: its address, auto (the one of this machine) or local "
        "(start one)",
    ),
    max_length: Optional[int] = typer.Option(
        None,
        "--max-length",
        min=1,
        help="Annotate texts up to this number of characters. Default: the pipeline's max_length",
    ),
    code_path: Optional[Path] = typer.Option(None, "--code", "-c", help="Python file to import"),
) -> None:
    """
    Annotate a corpus of any size. OUT contains the documents in shards, which are written whole or not at
    all, and failed.jsonl with the documents that failed. Start a stopped run again with --resume.
    """
    before_signal = signal.signal(signal.SIGTERM, _terminate)
    try:
        with exit_on_error():
            done = annotate(
                texts,
                output,
                model,
                text_field=text_field,
                format=format,
                spans=spans,
                shard_size=shard_size,
                resume=resume,
                workers=workers,
                gpus=gpus,
                ray=ray,
                max_length=max_length,
                code_path=code_path,
                progress=True,
            )
    except KeyboardInterrupt as e:
        typer.echo(
            f"✘ Stopped. The finished shards are in {output}. To continue, run the same command with "
            "--resume.",
            err=True,
        )
        raise typer.Exit(143 if isinstance(e, _Terminated) else 130) from None
    finally:
        signal.signal(signal.SIGTERM, before_signal)
    before = f" ({done.n_shards_before} of them existed before)" if done.n_shards_before else ""
    typer.echo(f"✔ {done.n_documents} documents in {len(done.shards)} shards{before}: {output}")
    if done.n_failed:
        typer.echo(f"✘ {done.n_failed} of them failed: {output / 'failed.jsonl'}")


class _Terminated(KeyboardInterrupt):
    """The process was asked to end."""


def _terminate(signum: int, frame: Any) -> None:
    raise _Terminated
