"""`spacy llmner ...`: a group of commands of its own in spaCy's command line."""

import typer

from .download import download_cli
from .evaluate import evaluate_cli
from .info import info_cli

app = typer.Typer(
    name="llmner",
    help="Local LLMs for entity recognition: get one, train on it, measure, chat.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command("download")(download_cli)
app.command("info")(info_cli)
app.command("evaluate")(evaluate_cli)
