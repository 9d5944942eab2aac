"""RESULTS.md is up to date, and the commands in it work."""

import re
from importlib.util import find_spec
from xml.etree import ElementTree

import pytest

from benchmarks.lib.common import RESULTS, ROOT, command_line
from benchmarks.lib.markdown import paragraph
from benchmarks.lib.provenance import MODULES, current_command
from benchmarks.report import DOCS, plots, read_results, report
from benchmarks.scaling.tables import scaling_plot, scaling_results, scaling_rows
from spacy_llmner.models.catalogue import CATALOGUE


def test_results_are_up_to_date():
    assert (RESULTS.parent / "RESULTS.md").read_text() == report()
    cells = scaling_results(read_results())
    for name, plot in plots().items():
        assert (DOCS / f"{name}.svg").read_text() == plot
    assert "\n".join(scaling_rows(cells)) in (ROOT / "docs" / "llms.md").read_text()
    assert len(list(RESULTS.glob("*.json"))) > 40


def test_commands_name_modules_that_exist():
    commands = [line for line in report().splitlines() if line.startswith("python ")]
    assert len(commands) > 40
    for command in commands:
        module = re.match(r"python -m (benchmarks\.\w+\.\w+|benchmarks\.\w+)( |$)", command)[1]
        assert find_spec(module), command
    assert all(find_spec(f"benchmarks.{module}") for module in MODULES.values())


def test_plot_of_sizes():
    """One line for each component and corpus with several LLMs, from the smallest LLM to the largest."""
    cells = {
        f"scaling_{component}_{llm}": {"component": component, "set": "own", "llm": llm, "f": f}
        for component, llm, f in (
            ("few_shot", "qwen2.5-coder-0.5b-instruct", 60.0),
            ("few_shot", "smollm2-135m-instruct", 50.0),
            ("ra_it_ner", "smollm2-135m-instruct", 10.0),
        )
    }
    for cell in cells.values():
        cell["parameters"] = CATALOGUE[cell["llm"]].parameters
    plot = ElementTree.fromstring(scaling_plot(scaling_results(cells)))
    texts = [text.text for text in plot.iter("{http://www.w3.org/2000/svg}text")]
    assert "ember_probe, few-shot, own corpus" in texts
    assert not any("ra_it_ner" in text for text in texts)
    circles = list(plot.iter("{http://www.w3.org/2000/svg}circle"))
    (x1, y1), (x2, y2) = [(float(c.get("cx")), float(c.get("cy"))) for c in circles]
    assert x1 < x2 and y1 > y2  # y grows downwards


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
