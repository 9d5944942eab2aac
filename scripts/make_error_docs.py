"""Write docs/errors.md, the list of all errors and warnings, from spacy_llmner/errors.py."""

import re
from pathlib import Path
from string import Formatter
from typing import Iterator, Tuple

from spacy_llmner.errors import Errors, Warnings

DOCS = Path(__file__).parent.parent / "docs" / "errors.md"
INTRO = """\
# Errors and warnings

Every message of spacy-llmner begins with a code in square brackets: `[LLMNER012]` for an error, and
`[LLMNER-W010]` for a warning. The codes are stable across versions, so you can search for them. Words in
braces, such as `{name}`, are replaced by the values that caused the message.

Every error is a `spacy_llmner.LLMNERError`, which is a `ValueError`. Only a `DocumentError`, which concerns
a single document, is passed to spaCy's error handlers.

This page is generated from `spacy_llmner/errors.py` by `scripts/make_error_docs.py`.
"""


def make_page() -> str:
    """RETURNS (str): The page in Markdown."""
    sections = [INTRO]
    for heading, messages in (("Errors", Errors), ("Warnings", Warnings)):
        rows = [f"| `{code}` | {_cell(text)} |\n" for code, text in read_messages(messages)]
        sections.append(f"## {heading}\n\n| Code | Message |\n| --- | --- |\n{''.join(rows)}")
    return "\n".join(sections)


def read_messages(messages: type) -> Iterator[Tuple[str, str]]:
    """Read the messages of a class.

    messages (type): Errors or Warnings.
    YIELDS (Tuple[str, str]): Code ("LLMNER012") and text, in the order of the codes.
    """
    for name in sorted(vars(messages)):
        if re.fullmatch(r"[EW]\d{3}", name):
            code, text = getattr(messages, name)[1:].split("] ", 1)
            yield code, text


def _cell(text: str) -> str:
    """Write a message as a cell of a table, with doubled braces as single ones."""
    parts = []
    for literal, field, _, _ in Formatter().parse(text):
        parts.append(literal if field is None else f"{literal}{{{field}}}")
    return "<br>".join("".join(parts).replace("|", "\\|").splitlines())


if __name__ == "__main__":
    DOCS.write_text(make_page(), encoding="utf8")
    print(f"Wrote {DOCS}")
