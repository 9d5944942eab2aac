"""project.yml: everything that a workflow calls exists and has valid arguments."""

import shlex
import shutil
import sys
from pathlib import Path

import pytest
import spacy
import typer
from spacy.util import load_config
from weasel.cli.run import project_run
from weasel.util import load_project_config

from spacy_llmner.cli import app
from spacy_llmner.cli.training_config import RECIPES, make_config, make_schedule

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

import ask_server  # noqa: E402
import convert  # noqa: E402
import matcher_data  # noqa: E402

FOLDERS = ("assets/", "configs/", "corpus/", "metrics/", "scripts/", "training/")
SCRIPTS = {
    "scripts/ask_server.py": ask_server,
    "scripts/convert.py": convert,
    "scripts/matcher_data.py": matcher_data,
}
WORKFLOWS = ["all", "compare", "distil", "el4ner", "matcher", "padellm", "ra_it", "serve"]


@pytest.fixture(scope="module", params=["en", "zh"])
def project(request, tmp_path_factory):
    """Read a copy of the project, since reading it creates directories."""
    folder = tmp_path_factory.mktemp("project")
    shutil.copy(ROOT / "project.yml", folder)
    return load_project_config(folder, overrides={"vars.lang": request.param})


def commands_of(project, workflow):
    commands = {command["name"]: command for command in project["commands"]}
    return [commands[name] for name in project["workflows"][workflow]]


def values_of(command, args):
    """RETURNS (List[str]): The values of the arguments, all of which the command knows."""
    given = command.make_context("command", list(args)).params.values()
    return [str(x) for value in given for x in (value if isinstance(value, list) else [value])]


def settings_of(config):
    """RETURNS (Config): A config of the repository, or what `llmner init config` writes to a file that has
    the name of the component."""
    if (ROOT / config).exists():
        return load_config(ROOT / config, interpolate=False)
    component = Path(config).stem
    schedule = make_schedule(RECIPES[component], [100])
    return make_config(component, spacy.blank("en"), schedule, {"paths.train": "train.spacy"})


def check_training(config, *args):
    """RETURNS (List[str]): The config and its overrides. The config contains all overridden settings."""
    overrides = dict(zip(args[::2], args[1::2]))
    output = overrides.pop("--output")
    gpu = overrides.pop("--gpu-id")
    assert output and gpu
    known = settings_of(config)
    for key in overrides:
        at = known
        for part in key.removeprefix("--").split("."):
            assert part in at, f"{key} is not in {config}"
            at = at[part]
    return [config, *overrides.values()]


def check_line(line):
    """RETURNS (List[str]): The arguments of a line, including files."""
    python, *args = shlex.split(line)
    assert python == "python"
    if args[:3] == ["-m", "spacy", "train"]:
        return check_training(*args[3:])
    if args[:3] == ["-m", "spacy", "llmner"]:
        command, args = typer.main.get_command(app), args[3:]
        while hasattr(command, "commands"):
            command, args = command.commands[args[0]], args[1:]
        return values_of(command, args)
    script = typer.Typer()
    script.command()(SCRIPTS[args[0]].main)
    return [args[0], *values_of(typer.main.get_command(script), args[1:])]


def test_all_workflows_are_here(project):
    assert sorted(project["workflows"]) == WORKFLOWS
    used = {name for names in project["workflows"].values() for name in names}
    assert used == {command["name"] for command in project["commands"]}


@pytest.mark.parametrize("workflow", WORKFLOWS)
def test_what_a_workflow_calls(project, workflow):
    """Scripts, configs, options; and what a command needs is made before or comes with the project."""
    there = set()
    for command in commands_of(project, workflow):
        for dep in command.get("deps", []):
            assert dep in there or (ROOT / dep).exists(), f"{command['name']} needs {dep}"
        for line in command["script"]:
            files = {value for value in check_line(line) if value.startswith(FOLDERS)}
            for file in files.difference(command.get("outputs", [])):
                assert file in command["deps"], f"{command['name']} has no dep {file}"
        there.update(command.get("outputs", []))


@pytest.mark.parametrize("workflow", WORKFLOWS)
def test_dry_run(workflow, tmp_path, capfd):
    shutil.copy(ROOT / "project.yml", tmp_path)
    project_run(tmp_path, workflow, dry=True)
    out = capfd.readouterr().out
    for command in commands_of(load_project_config(tmp_path), workflow):
        assert f" {command['name']} =" in out
