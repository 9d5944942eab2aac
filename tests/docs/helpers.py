"""The code blocks of the documentation."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^ *```$", re.M | re.S)


def blocks(page, *languages):
    """RETURNS (List[str]): The code blocks of a page in some languages."""
    return [body for _, lang, body in FENCE.findall(page.read_text()) if lang in languages]
