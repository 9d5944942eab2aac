"""Text and tables of RESULTS.md."""

import textwrap
from typing import Any, Dict, List


def paragraph(*sentences: str) -> List[str]:
    """RETURNS (List[str]): The lines of a paragraph. Empty sentences, such as a missing note, are left
    out."""
    text = " ".join(sentence for sentence in sentences if sentence)
    return textwrap.wrap(text, 100, break_long_words=False, break_on_hyphens=False)


def overhead_rows(r: Dict[str, Any], unit: str) -> List[str]:
    """RETURNS (List[str]): A table with the time of each step before and after, from a result of
    `overhead.summary`."""
    before, after = r["before"]["us"], r["after"]["us"]
    out = ["", f"| µs a {unit} | before | after |", "|---|--:|--:|"]
    out += [f"| {step} | {before[step]:.1f} | {us:.1f} |" for step, us in after.items()]
    return [*out, f"| **sum** | **{r['before']['sum']:.1f}** | **{r['after']['sum']:.1f}** |"]
