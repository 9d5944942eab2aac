"""The section of RESULTS.md about redaction over HTTP."""

from typing import Any, Dict, List

from benchmarks.lib.markdown import paragraph


def redaction_table(r: Dict[str, Any]) -> List[str]:
    """RETURNS (List[str]): The lines of a section."""
    differing = r["rows"][0]["texts_that_differ_from_finished_text"]
    out = [
        "## Redaction over HTTP: words held back, and leaks",
        "",
        *paragraph(
            f"{r['texts']:,} made-up texts with {r['entities']:,} entities went in {r['pieces']:,} random",
            "pieces through `spacy llmner serve --upstream` in mode `redact`. The LLM has one layer with",
            "random weights. A text leaks if the client got a character of an entity of the finished text.",
            "Words held back are those that the server has, but not the client, after each piece. The",
            f"probe's entities have up to {r['max_words_of_an_entity']} words. Without `max_hold`,",
            f"{differing} of the texts differ from the redacted finished text.",
        ),
        "",
        "| `max_hold` | texts | texts with leaks | words held back: median | 95 % | highest "
        "| placeholders for words held too long |",
        "|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in r["rows"]:
        hold = "none" if row["max_hold"] is None else row["max_hold"]
        out.append(
            f"| {hold} | {row['texts']:,} | {row['texts_with_leaks']} | {row['held_words_median']:.0f} "
            f"| {row['held_words_p95']:.0f} | {row['held_words_max']} "
            f"| {row['replaced_because_held_for_too_long']:,} |"
        )
    return out
