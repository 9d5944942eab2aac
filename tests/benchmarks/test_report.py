"""RESULTS.md is up to date, and the commands in it work."""

import re
from importlib.util import find_spec

import pytest

from benchmarks.lib.common import RESULTS, ROOT, command_line
from benchmarks.lib.markdown import paragraph
from benchmarks.lib.provenance import MODULES, current_command
from benchmarks.report import report


def test_results_are_up_to_date():
    assert (RESULTS.parent / "RESULTS.md").read_text() == report()
    assert len(list(RESULTS.glob("*.json"))) > 40


def test_commands_name_modules_that_exist():
    commands = [line for line in report().splitlines() if line.startswith("python ")]
    assert len(commands) > 40
    for command in commands:
        module = re.match(r"python -m (benchmarks\.\w+\.\w+|benchmarks\.\w+)( |$)", command)[1]
        assert find_spec(module), command
    assert all(find_spec(f"benchmarks.{module}") for module in MODULES.values())


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (
            "python benchmarks/ra_it_speed.py a.spacy --docs 2",
            "python -m benchmarks.ra_it.speed a.spacy --docs 2",
        ),
        ("python benchmarks/retrieval_index.py", "python -m benchmarks.retrieval.index"),
        ("python -m benchmarks.ember.memory x", "python -m benchmarks.ember.memory x"),
    ],
)
def test_current_command(old, new):
    assert current_command(old) == new


def test_command_line():
    argv = [str(ROOT / "benchmarks" / "ember" / "quality.py"), "wnut17", "--note", "two words"]
    assert command_line(argv) == "python -m benchmarks.ember.quality wnut17 --note 'two words'"
    assert current_command(command_line(argv)) == command_line(argv)


def test_paragraph():
    lines = paragraph("word " * 30, "", "End.")
    assert " ".join(lines).split() == ["word"] * 30 + ["End."]
    assert max(map(len, lines)) <= 100
