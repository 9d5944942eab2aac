"""The documentation: links, code and commands in it are right, and the site can be built."""

import ast
import importlib
import re
import subprocess
import sys

import pytest
import srsly
import typer
from spacy.cli import app as spacy_app

import spacy_llmner.cli  # noqa: F401  (adds the command group to spacy_app)
from tests.docs.helpers import FENCE, ROOT, blocks, command_lines

sys.path.insert(0, str(ROOT / "scripts"))

PAGES = [*ROOT.glob("*.md"), *sorted(ROOT.glob("docs/**/*.md")), ROOT / "benchmarks" / "RESULTS.md"]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
LINK = re.compile(r"\]\((?!\w+:)([^)#\s]*)(?:#([^)\s]+))?\)")


def anchors(page):
    """RETURNS (Set[str]): The anchors of a page on GitHub."""
    text = FENCE.sub("", page.read_text())
    found = set(re.findall(r'<a id="([^"]+)"', text))
    for heading in re.findall(r"^#+ (.+)$", text, re.M):
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        n = sum(x == slug or re.fullmatch(re.escape(slug) + r"-\d+", x) is not None for x in found)
        found.add(f"{slug}-{n}" if n else slug)
    return found


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links(page):
    wrong = []
    for path, anchor in LINK.findall(FENCE.sub("", page.read_text())):
        target = page.parent / path if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            wrong.append(f"{path}#{anchor}")
    assert not wrong


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_python_blocks(page):
    """Python blocks can be compiled, and what they import exists."""
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("spacy_llmner"):
                module = importlib.import_module(node.module)
                assert [a.name for a in node.names if not hasattr(module, a.name)] == []


def calls_in(page):
    """RETURNS (List[List[str]]): The arguments of each call of spaCy in code blocks and in inline code."""
    inline = re.findall(r"`([^`]+)`", FENCE.sub("", page.read_text()))
    code = [*blocks(page, "bash", "console"), *(line.replace("\n", " ") for line in inline)]
    return [call for part in code for call in command_lines(part)]


def unknown(args):
    """RETURNS (List[str]): What spaCy's command line doesn't know in a call."""
    command, args = typer.main.get_command(spacy_app), list(args)
    while hasattr(command, "commands") and args and not args[0].startswith("-"):
        name = args.pop(0)
        if name not in command.commands:
            return [name]
        command = command.commands[name]
    options = {"--help"}.union(*(set(p.opts) | set(p.secondary_opts) for p in command.params))
    # Settings of the config, such as --paths.train
    used = [
        arg.partition("=")[0] for arg in args if re.match(r"--?[a-zA-Z]", arg) and "." not in arg
    ]
    # `spacy llmner train` passes on what `spacy train` knows.
    if command.ignore_unknown_options:
        train = typer.main.get_command(spacy_app).commands["train"]
        options |= {opt for param in train.params for opt in param.opts}
    return [option for option in used if option not in options]


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_commands(page):
    assert [(args, unknown(args)) for args in calls_in(page) if unknown(args)] == []


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_project_commands(page):
    project = srsly.read_yaml(ROOT / "project.yml")
    known = {*project["workflows"], *(command["name"] for command in project["commands"])}
    run = [args[2] for args in calls_in(page) if args[:2] == ["project", "run"]]
    assert [name for name in run if name not in known] == []


def test_unknown_commands_are_found():
    assert unknown(["llmner", "evaluat"]) == ["evaluat"]
    assert unknown(["llmner", "evaluate", "a", "b", "--htm", "x"]) == ["--htm"]
    assert unknown(["llmner", "train", "a.cfg", "--paths.train", "x", "--output", "y"]) == []


def test_members_in_the_api_exist():
    """The reference leaves out members that don't exist without a warning."""
    text = (ROOT / "docs" / "api.md").read_text()
    for path, members in re.findall(
        r"^::: (\S+)\n(?:    options:\n      members: \[(.*)\])?", text, re.M
    ):
        module, name = path.rsplit(".", 1)
        value = getattr(importlib.import_module(module), name)
        assert [m for m in members.split(", ") if m and not hasattr(value, m)] == []


def test_everything_public_is_in_the_api():
    text = (ROOT / "docs" / "api.md").read_text()
    names = set(spacy_llmner.__all__) - {"__version__"}
    assert [name for name in names if f"::: spacy_llmner.{name}\n" not in text] == []


DOCSTRING = """Count words.

text (str): The text.
settings: Others, which
    go on.
RETURNS (Tuple[int, int]): The counts, in
    this order.
RAISES (ValueError): If the text is empty."""
TRANSLATED = """Count words.

Args:
    text (str): The text.
    settings: Others, which go on.

Returns:
    Tuple[int, int]: The counts, in this order.

Raises:
    ValueError: If the text is empty."""


def test_docstrings():
    from site_docstrings import translate

    assert translate(DOCSTRING, {"text", "settings"}) == TRANSLATED
    # Lines after the first one can begin at the margin.
    assert translate("RETURNS (int): One,\ntwo.", set()) == "Returns:\n    int: One, two."
    assert translate("Words: see below.\n\nn (int): One.", set()).endswith(
        "Attributes:\n    n (int): One."
    )


def test_site_can_be_built(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    commands = (tmp_path / "cli" / "index.html").read_text()
    assert 'id="annotate"' in commands and "--shard-size" in commands
    api = (tmp_path / "api" / "index.html").read_text()
    assert "RETURNS" not in api and "RAISES" not in api
    # Nothing is loaded from other servers.
    for page in tmp_path.rglob("*.html"):
        assert not re.findall(
            r'<(?:script|img)[^>]+src="http|<link[^>]+href="http', page.read_text()
        )
