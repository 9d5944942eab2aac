"""Web pages that show entities and their errors. They need no other file, no script and no network."""

from html import escape
from typing import Dict, Iterable, List, NamedTuple, Optional, Sequence

from spacy.language import Language
from spacy.training import Example

from ..pipeline.extensions import get_score
from ._util import clean
from .entity_errors import BOTH, BOUNDARY, EXTRA, LABEL, MISSED, EntityError, spans_of

# Maximum number of letters at the end of an entity that are kept on the same line as its label.
KEPT_TOGETHER = 8

RIGHT = "right"
TAGS = {
    RIGHT: "{predicted}",
    MISSED: "missed {gold}",
    EXTRA: "extra {predicted}",
    LABEL: "{gold} -> {predicted}",
    BOUNDARY: "boundary {predicted}",
    BOTH: "boundary {gold} -> {predicted}",
}

STYLE = """
:root {
  color-scheme: light dark;
  --text: #1d1f23; --muted: #5c6168; --line: #d8dbe0; --page: #fff; --panel: #f5f6f8; --wrong: #b3261e;
}
@media (prefers-color-scheme: dark) {
  :root {
    --text: #e6e7ea; --muted: #a3a8b0; --line: #3a3e45; --page: #17191d; --panel: #202329; --wrong: #ff8a80;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; max-width: 62rem; padding: 1.5rem 1rem 4rem; background: var(--page); color: var(--text);
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, Helvetica, Arial, sans-serif;
}
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0 0 1rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2rem 0 0.5rem; }
h3 { font-size: 0.9rem; margin: 0 0 0.25rem; color: var(--muted); font-weight: 600; }
p { margin: 0.5rem 0; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0.2rem 1rem; margin: 0; }
dt, .note { color: var(--muted); }
dd { margin: 0; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
caption { text-align: start; color: var(--muted); padding: 0.3rem 0; white-space: nowrap; }
th, td { padding: 0.25rem 0.75rem; border-bottom: 1px solid var(--line); text-align: end; }
th:first-child { text-align: start; padding-inline-start: 0; }
tbody th { font-weight: 500; }
@media (max-width: 32rem) { th, td { padding-inline: 0.35rem; font-size: 0.9rem; } }
article { border-top: 1px solid var(--line); margin: 0 -0.3rem; padding: 0.9rem 0.3rem; overflow-x: auto; }
.text { line-height: 2.1; white-space: pre-wrap; overflow-wrap: anywhere; }
mark {
  background: var(--label); color: #16181c; padding: 0.2em 0.35em; margin: 0 0.1em;
  border: 2px solid transparent; border-radius: 0.35em;
  -webkit-box-decoration-break: clone; box-decoration-break: clone;
}
mark:not(.right) { border-color: var(--wrong); }
mark.missed { background: none; color: inherit; border-style: dashed; }
mark:focus-visible { outline: 3px solid var(--text); outline-offset: 1px; }
/* No line break between an entity and its label; a word joiner, since one entity can end with another. */
.end { white-space: nowrap; }
.tag {
  position: relative; margin-inline-start: 0.45em; font-size: 0.72em; font-weight: 700;
  user-select: none; -webkit-user-select: none;
}
.tag::before { content: "\\2060"; }
mark:focus > .end > .tag::after {
  content: attr(data-score); position: absolute; inset-inline-end: 0; bottom: 1.7em; padding: 0.1em 0.5em;
  border-radius: 0.3em; background: var(--text); color: var(--page); line-height: 1.5; z-index: 1;
}
ul.errors { list-style: none; margin: 0.3rem 0 0; padding: 0; font-size: 0.9rem; overflow-wrap: anywhere; }
ul.errors b { color: var(--wrong); font-weight: 600; }
"""

LEGEND = (
    "Missed entities have a dashed frame, other errors a solid one. <i>A -&gt; B</i> means that the data "
    "say A and the pipeline says B."
)
PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
{body}
</body>
</html>"""


class Mark(NamedTuple):
    """A span of a text that is marked in a page.

    start (int): The first character.
    end (int): The character after the last one.
    kind (str): The kind of its error, or RIGHT.
    tag (str): What is shown next to the span.
    label (str): The label whose color it has.
    score (Optional[float]): The score, if there is one.
    """

    start: int
    end: int
    kind: str
    tag: str
    label: str
    score: Optional[float]


def make_page(title: str, body: Iterable[str], style: str = "") -> str:
    """Create a web page.

    title (str): The title, as plain text.
    body (Iterable[str]): The parts of the page, as HTML.
    style (str): CSS to add to the style that all pages share.
    RETURNS (str): The page.
    """
    return PAGE.format(title=escaped(title), style=STYLE + style, body="\n".join(body))


def make_table(header: Sequence[str], rows: Iterable[Sequence[str]], caption: str = "") -> str:
    """Create a table, whose last row summarizes the others.

    header (Sequence[str]): The names of the columns, as plain text.
    rows (Iterable[Sequence[str]]): The cells, as HTML. The first one of each row is its header.
    caption (str): The caption, as plain text.
    RETURNS (str): The table, which scrolls if it is too wide for the page.
    """
    head = "".join(f'<th scope="col">{escaped(name)}</th>' for name in header)
    lines = [
        f'<th scope="row">{first}</th>' + "".join(f"<td>{cell}</td>" for cell in cells)
        for first, *cells in rows
    ]
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    caption = f"<caption>{escaped(caption)}</caption>" if caption else ""
    return (
        f'<div class="scroll"><table>{caption}<thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def make_text(
    nlp: Language,
    eg: Example,
    errors: Iterable[EntityError],
    colors: Dict[str, str],
    spans_key: Optional[str] = None,
) -> str:
    """Show a text with its predicted and missed entities.

    nlp (Language): The pipeline, for the language and the writing direction.
    eg (Example): The Docs.
    errors (Iterable[EntityError]): The differences between them.
    colors (Dict[str, str]): The color of each label.
    spans_key (Optional[str]): Show doc.spans[spans_key] instead of doc.ents.
    RETURNS (str): The text, as HTML. Entities inside others are shown too, but if two entities partly
        overlap, only the first one is.
    """
    text = eg.reference.text
    parts: List[str] = []
    opened: List[Mark] = []
    reached = 0

    def write_until(end: int) -> None:
        nonlocal reached
        while opened and opened[-1].end <= end:
            mark = opened.pop()
            # Not the whole last word, which can be longer than a line.
            last = max(text.rfind(" ", reached, mark.end) + 1, mark.end - KEPT_TOGETHER, reached)
            parts.append(escaped(text[reached:last]))
            parts.append(
                f'<span class="end">{escaped(text[last : mark.end])}{_tag(mark)}</span></mark>'
            )
            reached = mark.end
        parts.append(escaped(text[reached:end]))
        reached = end

    for mark in sorted(make_marks(eg, errors, spans_key), key=lambda m: (m.start, -m.end)):
        write_until(mark.start)
        if not opened or mark.end <= opened[-1].end:
            parts.append(_start_of(mark, colors))
            opened.append(mark)
    write_until(len(text))
    direction = nlp.vocab.writing_system.get("direction", "ltr")
    return f'<div class="text" lang="{escaped(nlp.lang or "")}" dir="{direction}">{"".join(parts)}</div>'


def make_marks(
    eg: Example, errors: Iterable[EntityError], spans_key: Optional[str] = None
) -> List[Mark]:
    """RETURNS (List[Mark]): The marks for the predicted and missed entities of an Example, in no particular
    order."""
    marks = []
    errors = list(errors)
    wrong = {error.predicted: error for error in errors}
    for entity, span in spans_of(eg.predicted, spans_key).items():
        start, end, label = entity
        error = wrong.get(entity)
        kind = RIGHT if error is None else error.kind
        gold = error.gold[2] if error is not None and error.gold is not None else ""
        tag = TAGS[kind].format(gold=gold, predicted=label)
        marks.append(Mark(start, end, kind, tag, label, get_score(span)))
    for error in errors:
        if error.kind == MISSED:
            start, end, label = error.entity
            marks.append(Mark(start, end, MISSED, TAGS[MISSED].format(gold=label), label, None))
    return marks


def make_error_list(listed: Dict[str, List[str]]) -> str:
    """RETURNS (str): The errors of a text by kind, as HTML. Empty if there are none."""
    lines = "".join(
        f"<li><b>{kind}</b> {escaped(', '.join(described))}</li>"
        for kind, described in listed.items()
    )
    return f'<ul class="errors">{lines}</ul>' if lines else ""


def escaped(text: str) -> str:
    """RETURNS (str): Plain text, escaped for HTML and its attributes."""
    return escape(clean(text.replace("\r\n", "\n").replace("\r", "\n")))


def css_class(kind: str) -> str:
    """RETURNS (str): The class of the marks and documents with this kind of error."""
    return kind.replace(" ", "-")


def _start_of(mark: Mark, colors: Dict[str, str]) -> str:
    shown = f' tabindex="0" title="{escaped(_title(mark))}"' if mark.score is not None else ""
    color = colors[mark.label]
    return f'<mark class="{css_class(mark.kind)}" style="--label: {color}"{shown}>'


def _tag(mark: Mark) -> str:
    score = f' data-score="{mark.score:.2f}"' if mark.score is not None else ""
    return f'<span class="tag"{score}>{escaped(mark.tag)}</span>'


def _title(mark: Mark) -> str:
    return f"{mark.label}, score {mark.score:.2f}"
