"""Translates docstrings from spaCy's style into Google's, which the tools that make the site can read."""

import re
from typing import Any, Dict, List

from griffe import Extension, Object

# `name (Type): what it is`, or `name: what it is`.
FIELD = re.compile(r"(\w+)(?: \((.+?)\))?: (.*)", re.S)
SECTIONS = {"RETURNS": "Returns", "YIELDS": "Yields", "RAISES": "Raises"}


class SpacyDocstrings(Extension):
    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            values = "Attributes" if obj.is_class and "__init__" not in obj.members else "Args"
            obj.docstring.value = translate(obj.docstring.value, values)


def translate(docstring: str, values: str) -> str:
    """RETURNS (str): The docstring in Google's style.

    docstring (str): The docstring in spaCy's style.
    values (str): The section for the described values: "Args" or "Attributes".
    """
    text: List[str] = []
    sections: Dict[str, List[str]] = {}
    # A description continues in indented lines.
    for part in re.split(r"\n(?! )", docstring):
        field = FIELD.fullmatch(part)
        if field is None or not (field[2] or sections):
            text.append(part)
            continue
        name, kind, what = field.groups()
        what = re.sub(r"\s*\n\s*", " ", what)
        section = SECTIONS.get(name, values)
        if section == values:
            entry = f"{name} ({kind}): {what}" if kind else f"{name}: {what}"
        else:
            entry = f"{kind}: {what}" if what else f"{kind}:"
        sections.setdefault(section, []).append(f"    {entry}")
    blocks = ["\n".join(text).strip(), *("\n".join([f"{s}:", *e]) for s, e in sections.items())]
    return "\n\n".join(block for block in blocks if block)
