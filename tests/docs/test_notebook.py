"""The notebook runs, cell by cell, and finds what its text says."""

import json

import pytest

import spacy_llmner.cli  # noqa: F401  (adds the command group to spaCy's command line)
from tests.docs.helpers import ROOT, command_lines

NOTEBOOK = ROOT / "docs" / "notebooks" / "first_steps.ipynb"


def code_cells():
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def test_no_outputs_are_saved():
    cells = code_cells()
    assert len(cells) == 10
    assert not any(cell["outputs"] or cell["execution_count"] for cell in cells)


@pytest.mark.llm
def test_notebook(smollm2, run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    # pip is not run, and the LLM is there already.
    namespace = {"shell": lambda line: [run(*args) for args in command_lines(line)]}
    values = []
    for cell in code_cells()[1:]:
        lines = "".join(cell["source"]).splitlines()
        lines = [f"shell({line[1:]!r})" if line.startswith("!") else line for line in lines]
        # The value of the last statement, which a notebook shows.
        *before, last = split(lines)
        exec("\n".join(before), namespace)
        values.append(value_of(last, namespace))
    labels, other, wrong, right, _, _, redacted, _, small = values
    assert [ent[:2] for ent in labels] == [
        ("Nils Aune", "person"), ("Sea Robin", "ship"), ("Varnhavn", "port"), ("Port Ellam", "port")
    ]  # fmt: skip
    assert other == [("ibuprofen", "drug"), ("migraine", "disease")]
    assert ("Wren", "person") in wrong and ("Wren", "ship") in right
    assert redacted == "Dear [person_1], the Sea Robin is in Varnhavn. [person_2] waves."
    assert ("Mira Stone", "person") in small
    printed = capsys.readouterr().out
    assert "ember_probe on smollm2-135m-instruct" in printed and "Varnhavn port" in printed


def split(lines):
    """RETURNS (List[str]): The lines, of which the last is a whole statement."""
    k = max(k for k, line in enumerate(lines) if line and line[0] not in " )]}")
    return [*lines[:k], "\n".join(lines[k:])]


def value_of(statement, namespace):
    try:
        return eval(statement, namespace)
    except SyntaxError:
        exec(statement, namespace)
        return None
