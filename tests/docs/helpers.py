"""The code blocks of the documentation."""

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^ *```$", re.M | re.S)


def blocks(page, *languages):
    """RETURNS (List[str]): The code blocks of a page in some languages."""
    return [body for _, lang, body in FENCE.findall(page.read_text()) if lang in languages]


def command_lines(code):
    """RETURNS (List[List[str]]): The arguments of each call of spaCy in shell commands."""
    lines = code.replace("\\\n", " ").splitlines()
    parts = [part for line in lines for part in re.split(r"&&|\|\||[|;]", line)]
    calls = [
        re.match(r"\s*(?:\$ )?(?:\w+=\S+ )*(?:python -m )?spacy (.+)", part, re.S) for part in parts
    ]
    return [shlex.split(call[1], comments=True) for call in calls if call]


def expected(block):
    """RETURNS (str): The lines that a block prints: its comments that aren't indented."""
    return "".join(line[2:] + "\n" for line in block.splitlines() if line.startswith("# "))
