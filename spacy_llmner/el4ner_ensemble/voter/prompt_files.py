"""What the LLMs are told: text files with slots, of the package or your own."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Mapping

from ...errors import Errors, LLMNERError

FOLDER = Path(__file__).parent.parent / "prompts"
AUTO = "auto"
# Sections of a file, and the slots that each of them has exactly once.
SLOTS: Dict[str, List[str]] = {
    "instruction": ["{types}"],
    "text": ["{text}"],
    "list": [],
    "type": ["{span}"],
    "check": ["{span}", "{type}"],
    "none": [],
    "true": [],
    "false": [],
}
_HEADING = re.compile(rf"^# ({'|'.join(SLOTS)})[ \t]*$", re.MULTILINE)


@dataclass(frozen=True)
class Prompts:
    """The wording of one voter.

    instruction (str): Stands first, with {types}.
    text (str): Shows a text, with {text}.
    list (str): Asks for a list of all names in it.
    type (str): Asks for the type of one, with {span}.
    check (str): Asks whether it is of a type, with {span} and {type}.
    none (str): The answer to `type` for what is no entity.
    true (str), false (str): The answers to `check`.
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
    """Read a file with a section for each prompt, headed by "# " and its name.

    source (str): Where it is from, for messages.
    RAISES (LLMNERError): About the first section or slot that is missing or there twice.
    """
    parts = _HEADING.split(content)
    sections: Dict[str, str] = {}
    for heading, said in zip(parts[1::2], parts[2::2]):
        if heading in sections:
            raise _broken(source, f"the section '# {heading}' is there twice")
        sections[heading] = said.strip()
    for heading, slots in SLOTS.items():
        if not sections.get(heading):
            raise _broken(source, f"the section '# {heading}' is missing or empty")
        for slot in slots:
            n = sections[heading].count(slot)
            if n != 1:
                raise _broken(
                    source, f"'# {heading}' has the slot {slot} {n} times instead of once"
                )
    return Prompts(**sections)


def read_prompts(name: str, lang: str, chat: bool) -> str:
    """Get the text of a prompt file.

    name (str): "auto", which goes by the language and by whether the LLM is asked as in a chat; the name of
        a file of the package ("en_chat"); or the path of a file.
    RAISES (LLMNERError): If it is not there.
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
    """RETURNS (List[str]): Names of the files of the package."""
    return sorted(path.stem for path in FOLDER.glob("*.txt"))


def fill(template: str, values: Mapping[str, str]) -> str:
    """Put values into slots. What a value says is no slot.

    values (Mapping[str, str]): By slot, with its braces.
    """
    pattern = "|".join(re.escape(slot) for slot in values)
    return "".join(values.get(part, part) for part in re.split(f"({pattern})", template))


def _broken(source: str, fault: str) -> LLMNERError:
    return LLMNERError(Errors.E063.format(source=source, fault=fault, sections=", ".join(SLOTS)))
