"""The section of RESULTS.md about families of LLMs, and the same table in docs/llms.md."""

from pathlib import Path
from typing import Any, Dict, List

from benchmarks.lib.markdown import paragraph

DOCS = Path(__file__).parents[2] / "docs" / "llms.md"
BEGIN, END = "<!-- families: begin -->", "<!-- families: end -->"
USES = ("reads", "streams", "trees", "attention", "trains")


def families_table(results: Dict[str, Any]) -> List[str]:
    """RETURNS (List[str]): The lines of the section."""
    return [
        "## Families of LLMs",
        "",
        *paragraph(
            "What a tiny random LLM of each family can be used for, by version of transformers. Reads:",
            "finished texts in `ember_probe`. Streams: streaming in `ember_probe`. Trees: prompts with",
            "a common prefix, which all other components need. Attention: `EmberPaper`. Trains: LoRA.",
            "Families that could not be built at a small size are left out.",
        ),
        "",
        *family_rows(results),
    ]


def family_rows(results: Dict[str, Any]) -> List[str]:
    """RETURNS (List[str]): A table with a row for each group of families that have the same uses."""
    versions = results["versions"]
    groups: Dict[Any, List[str]] = {}
    for family in sorted({family for rows in versions.values() for family in rows}):
        cells = tuple(_cell(rows.get(family)) for rows in versions.values())
        if any(cell != NOT_BUILT for cell in cells):
            groups.setdefault(cells, []).append(family)
    header = [f"transformers {version}" for version in versions]
    out = ["| families | " + " | ".join(header) + " |", "|" + "---|" * (len(header) + 1)]
    for cells, families in sorted(groups.items(), key=lambda group: -len(group[1])):
        out.append(f"| {', '.join(families)} | " + " | ".join(cells) + " |")
    return out


NOT_BUILT = "not tested"


def _cell(row: Any) -> str:
    if row is None or "not_built" in row:
        return NOT_BUILT
    if "refused" in row or row["reads"]["reason"]:
        return "refused"
    works = [use for use in USES if not row[use]["reason"]]
    return "all" if len(works) == len(USES) else ", ".join(works)


def update_docs(results: Dict[str, Any]) -> None:
    """Write the table into docs/llms.md, between its two marks."""
    before, rest = DOCS.read_text(encoding="utf8").split(BEGIN)
    after = rest.split(END)[1]
    table = "\n".join(family_rows(results))
    DOCS.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}", encoding="utf8")
