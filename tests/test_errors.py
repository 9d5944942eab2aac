"""The messages of the package: their codes, their documentation, and where they are written."""

import ast
import re
import sys
from pathlib import Path
from string import Formatter

import pytest

import spacy_llmner
from spacy_llmner import errors
from spacy_llmner.errors import Errors, LLMNERError, Warnings, wrong

PACKAGE = Path(spacy_llmner.__file__).parent
SCRIPTS = Path(__file__).parents[1] / "scripts"
CODE = re.compile(r"[EW]\d{3}")
MESSAGES = {
    name: text
    for messages in (Errors, Warnings)
    for name, text in vars(messages).items()
    if CODE.fullmatch(name)
}
TREES = {path: ast.parse(path.read_text(encoding="utf8")) for path in PACKAGE.rglob("*.py")}
CLASSES = {
    name
    for name, value in vars(errors).items()
    if isinstance(value, type) and issubclass(value, LLMNERError)
}


@pytest.fixture
def make_error_docs(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import make_error_docs

    yield make_error_docs
    sys.modules.pop("make_error_docs")


def test_docs_are_up_to_date(make_error_docs):
    # If this fails, run: python scripts/make_error_docs.py
    assert make_error_docs.DOCS.read_text(encoding="utf8") == make_error_docs.make_page()


def test_docs_list_every_message(make_error_docs):
    page = make_error_docs.make_page()
    for name in MESSAGES:
        code = f"LLMNER{name[1:]}" if name[0] == "E" else f"LLMNER-{name}"
        assert page.count(f"| `{code}` | ") == 1
    assert "`spacy.load(dir, config={'paths.llm': NAME})`" in page  # no doubled braces
    assert "The setting `{setting}` of '{name}' is {value}, but must be {must}." in page


def test_codes_are_unique():
    tree = TREES[PACKAGE / "errors.py"]
    names = [
        node.targets[0].id
        for cls in tree.body
        if isinstance(cls, ast.ClassDef) and cls.name in ("Errors", "Warnings")
        for node in cls.body
        if isinstance(node, ast.Assign)
    ]
    assert len(names) == len(set(names))
    assert set(names) == set(MESSAGES)


def test_codes_are_shown():
    assert str(LLMNERError(Errors.E011.format(name="x"))).startswith("[LLMNER011] The tokenizer")
    assert Warnings.W010.startswith("[LLMNER-W010] '{name}' has no")
    assert str(wrong("k", "x", -1, "positive")) == (
        "[LLMNER027] The setting `k` of 'x' is -1, but must be positive."
    )


def test_every_message_is_used():
    used = {
        node.attr
        for tree in TREES.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id in ("Errors", "Warnings")
    }
    assert used == set(MESSAGES)


def test_no_message_stands_elsewhere():
    literal = [
        f"{path.relative_to(PACKAGE)}:{node.lineno}"
        for path, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in CLASSES
        and node.args
        and _is_text(node.args[0])
    ]
    assert not literal


def _is_text(node):
    """RETURNS (bool): Whether an expression is a literal text, an f-string, or made of one."""
    if isinstance(node, ast.Constant):
        return isinstance(node.value, str)
    if isinstance(node, ast.BinOp):
        return _is_text(node.left) or _is_text(node.right)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        return _is_text(node.func.value)  # "...".format(...)
    return isinstance(node, ast.JoinedStr)


def test_calls_fill_all_placeholders():
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            message = node.func.value
            if not (isinstance(message, ast.Attribute) and CODE.fullmatch(message.attr)):
                continue
            given = {keyword.arg for keyword in node.keywords}
            if None not in given:  # else **values
                assert given == placeholders(MESSAGES[message.attr]), f"{path}:{node.lineno}"


def placeholders(text):
    return {field for _, field, _, _ in Formatter().parse(text) if field is not None}


def test_wording():
    for name, text in MESSAGES.items():
        for words in ("is no ", "behind", "makes no sense", "no numbers", "  "):
            assert words not in text, name
        assert text == text.strip(), name
        assert all(field.isidentifier() for field in placeholders(text)), name
