"""Translates docstrings from spaCy's style into Google's, which the tools that make the site can read."""

import re
from typing import Any, Dict, List, Optional, Set

from griffe import Extension, Object

# `name (Type): what it is`, or `name: what it is`.
FIELD = re.compile(r"(\w+)(?: \((.+?)\))?: (.*)")
SECTIONS = {"RETURNS": "Returns", "YIELDS": "Yields", "RAISES": "Raises"}


class SpacyDocstrings(Extension):
    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        if obj.docstring is None:
            return
        init = obj.members.get("__init__") if obj.is_class else obj
        parameters = {p.name.strip("*") for p in getattr(init, "parameters", ())}
        obj.docstring.value = translate(obj.docstring.value, parameters)


def translate(docstring: str, parameters: Set[str]) -> str:
    """RETURNS (str): The docstring in Google's style.

    docstring (str): The docstring in spaCy's style.
    parameters (Set[str]): The names of the parameters. Other values are attributes.
    """
    text: List[str] = []
    sections: Dict[str, List[str]] = {}
    entries: Optional[List[str]] = None
    for line in docstring.splitlines():
        field = FIELD.fullmatch(line)
        if field and (field[2] or field[1] in parameters):
            name, kind, what = field.groups()
            section = SECTIONS.get(name) or ("Args" if name in parameters else "Attributes")
            entry = kind if name in SECTIONS else f"{name} ({kind})" if kind else name
            entries = sections.setdefault(section, [])
            entries.append(f"    {entry}: {what}")
        elif entries and line:  # a description goes on
            entries[-1] += f" {line.strip()}"
        else:
            entries = None
            text.append(line)
    blocks = ["\n".join(text).strip(), *("\n".join([f"{s}:", *e]) for s, e in sections.items())]
    return "\n\n".join(block for block in blocks if block)
