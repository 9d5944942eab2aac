"""Prompt files: the wording of a voter's prompts, from the package or from the user."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Mapping

from ...errors import Errors, LLMNERError

FOLDER = Path(__file__).parent.parent / "prompts"
AUTO = "auto"
# The sections of a file, and the placeholders that each section must contain exactly once.
PLACEHOLDERS: Dict[str, List[str]] = {
    "instruction": ["{types}"],
    "text": ["{text}"],
    "list": [],
    "type": ["{span}"],
    "check": ["{span}", "{type}"],
    "none": [],
    "true": [],
    "false": [],
}
_HEADING = re.compile(rf"^# ({'|'.join(PLACEHOLDERS)})[ \t]*$", re.MULTILINE)


@dataclass(frozen=True)
class Prompts:
    """The wording of a voter's prompts, one attribute for each section of a file.

    instruction (str): The instruction at the beginning, with the placeholder {types}.
    text (str): Introduces a text, with {text}.
    list (str): Asks for a list of all names in the text.
    type (str): Asks for the type of a name, with {span}.
    check (str): Asks whether a name has a type, with {span} and {type}.
    none (str): The answer to `type` for a span that is not an entity.
    true (str): The answer to `check` if the name has the type.
    false (str): The answer to `check` if it doesn't.
    """

    instruction: str
    text: str
    list: str
    type: str
    check: str
    none: str
    true: str
    false: str


def parse_prompts(source: str, content: str) -> Prompts:
    """Parse the content of a prompt file. It has a section for each prompt, with the heading "# " and the
    name of the prompt.

    source (str): Where the content is from, for messages.
    content (str): The content.
    RETURNS (Prompts): The prompts.
    RAISES (LLMNERError): If a section or a placeholder is missing or repeated.
    """
    parts = _HEADING.split(content)
    sections: Dict[str, str] = {}
    for heading, section in zip(parts[1::2], parts[2::2]):
        if heading in sections:
            raise _broken(source, f"the section '# {heading}' occurs twice")
        sections[heading] = section.strip()
    for heading, placeholders in PLACEHOLDERS.items():
        if not sections.get(heading):
            raise _broken(source, f"the section '# {heading}' is missing or empty")
        for placeholder in placeholders:
            n = sections[heading].count(placeholder)
            if n != 1:
                fault = f"'# {heading}' contains {placeholder} {n} times, but must contain it once"
                raise _broken(source, fault)
    return Prompts(**sections)


def read_prompts(name: str, lang: str, chat: bool) -> str:
    """Read a prompt file.

    name (str): The name of a file of the package ("en_chat"), the path of a file, or "auto", which chooses
        a file of the package by `lang` and `chat`.
    lang (str): Language code of the pipeline. "auto" chooses the Chinese prompts for "zh", and the English
        prompts for all other languages.
    chat (bool): Whether the LLM is prompted with its chat template.
    RETURNS (str): The content of the file.
    RAISES (LLMNERError): If the file can't be read.
    """
    if name == AUTO:
        name = f"{'zh' if lang.startswith('zh') else 'en'}_{'chat' if chat else 'base'}"
    path = FOLDER / f"{name}.txt" if name in known_prompts() else Path(name)
    try:
        return path.read_text(encoding="utf8")
    except (OSError, UnicodeDecodeError) as e:
        known = ", ".join([AUTO, *known_prompts()])
        raise LLMNERError(Errors.E062.format(path=name, reason=e, known=known)) from e


def known_prompts() -> List[str]:
    """RETURNS (List[str]): The names of the package's prompt files."""
    return sorted(path.stem for path in FOLDER.glob("*.txt"))


def fill(template: str, values: Mapping[str, str]) -> str:
    """Replace placeholders with values. Placeholders inside a value are not replaced.

    template (str): The text with placeholders.
    values (Mapping[str, str]): The values by placeholder, such as {"{text}": "..."}.
    RETURNS (str): The text with the values.
    """
    pattern = "|".join(re.escape(placeholder) for placeholder in values)
    return "".join(values.get(part, part) for part in re.split(f"({pattern})", template))


def _broken(source: str, fault: str) -> LLMNERError:
    return LLMNERError(
        Errors.E063.format(source=source, fault=fault, sections=", ".join(PLACEHOLDERS))
    )
