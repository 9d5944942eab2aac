"""Text and tables of RESULTS.md."""

import textwrap
from typing import List


def paragraph(*sentences: str) -> List[str]:
    """RETURNS (List[str]): The lines of a paragraph. Empty sentences, such as a missing note, are left
    out."""
    text = " ".join(sentence for sentence in sentences if sentence)
    return textwrap.wrap(text, 100, break_long_words=False, break_on_hyphens=False)
