"""The command group `spacy llmner` in spaCy's command line."""

import typer
from spacy.cli._util import app as spacy_app

from .annotate import annotate_cli
from .calibrate import calibrate_cli
from .chat import chat_cli
from .check import check_cli
from .compare import compare_cli
from .convert import convert_cli
from .distil import distil_cli
from .download import download_cli
from .evaluate import evaluate_cli
from .export import export_cli
from .generate import generate_cli
from .index import index_cli
from .info import info_cli
from .init_config import init_config_cli
from .layers import layers_cli
from .pretrain_matcher import pretrain_matcher_cli
from .serve import serve_cli
from .train import train_cli

# Any other options are settings of a training config, as in `spacy train`.
OVERRIDES = {"allow_extra_args": True, "ignore_unknown_options": True}

app = typer.Typer(
    name="llmner",
    help="Local LLMs for entity recognition: download, check, train, evaluate, compare and chat.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command("download")(download_cli)
app.command("info")(info_cli)
app.command("check")(check_cli)
app.command("convert")(convert_cli)
app.command("evaluate")(evaluate_cli)
app.command("annotate")(annotate_cli)
app.command("distil", context_settings=OVERRIDES)(distil_cli)
app.command("compare")(compare_cli)
app.command("calibrate")(calibrate_cli)
app.command("layers")(layers_cli)
app.command("pretrain-matcher")(pretrain_matcher_cli)
app.command("generate")(generate_cli)
app.command("index")(index_cli)
app.command("export")(export_cli)
app.command("chat")(chat_cli)
app.command("serve")(serve_cli)
app.command("train", context_settings=OVERRIDES)(train_cli)

init_app = typer.Typer(help="Write a training config for a corpus.", no_args_is_help=True)
init_app.command("config")(init_config_cli)
app.add_typer(init_app, name="init")

# spaCy imports this module through its entry point, but doesn't register the group itself.
spacy_app.add_typer(app, name="llmner")
