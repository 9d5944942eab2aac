"""The web page of `spacy llmner compare`: the scores, and each text as every pipeline annotates it."""

from pathlib import Path
from typing import Any, Dict, List

from spacy.language import Language
from spacy.training import Example

from ._util import colors_of, folder_name, percent
from .entity_errors import errors_by_kind, find_errors, spans_of
from .web_page import LEGEND, escaped, make_error_list, make_page, make_table, make_text

STYLE = """
.name { display: block; overflow-wrap: anywhere; }
.name small { display: block; font-weight: 400; color: var(--muted); }
section { padding: 0.4rem 0; }
th .name { min-width: min(12rem, 42vw); }
@media (min-width: 48rem) {
  section > .name { padding-top: 0.3rem; }
  section { display: grid; grid-template-columns: 12rem 1fr; gap: 0 1rem; }
  section .text, section ul.errors { grid-column: 2; }
}
"""


def comparison_page(nlp: Language, data_path: Path, results: Dict[str, Dict[str, Any]]) -> str:
    """Create a web page with the scores and the texts. Texts with errors come first.

    nlp (Language): The pipeline that was compared, for the language.
    data_path (Path): The annotated Docs.
    results (Dict[str, Dict[str, Any]]): The result of `compare`.
    RETURNS (str): The page.
    """
    ways = list(results.values())
    documents = list(zip(*(r["examples"] for r in ways)))
    labels = {label for r in ways for eg in r["examples"] for label in _labels(eg)}
    colors = colors_of(labels)
    title = f"Comparison on {folder_name(data_path)}"
    numbered = [
        (number, [(r["name"], eg, find_errors(eg)) for r, eg in zip(ways, egs)])
        for number, egs in enumerate(documents, start=1)
    ]
    numbered.sort(key=lambda document: not any(errors for _, _, errors in document[1]))
    body = [
        f"<h1>{escaped(title)}</h1>",
        _scores(ways),
        "<h2>Documents</h2>",
        f"<p>{len(numbered)} documents, those with errors first. {LEGEND}</p>",
    ]
    for number, versions in numbered:
        reference = versions[0][1].reference
        gold = make_text(nlp, Example(reference, reference), [], colors)
        body.append(f"<article><h3>Document {number}</h3>{_section(['reference'], gold)}")
        for name, eg, errors in versions:
            listed = make_error_list(errors_by_kind(eg, errors))
            body.append(_section(name, make_text(nlp, eg, errors, colors) + listed))
        body.append("</article>")
    return make_page(title, body, STYLE)


def _scores(ways: List[Dict[str, Any]]) -> str:
    labels = sorted({label for r in ways for label in r["ents_per_type"] or {}})
    rows = [
        [
            _name(r["name"]),
            *(percent(r[f"ents_{x}"]) for x in "prf"),
            *(percent((r["ents_per_type"] or {}).get(label, {}).get("f")) for label in labels),
            f"{r['docs_per_second']:.2f}",
        ]
        for r in ways
    ]
    return make_table(
        ["pipeline", "P", "R", "F", *(f"F {label}" for label in labels), "docs/s"], rows
    )


def _section(name: List[str], content: str) -> str:
    return f"<section>{_name(name)}{content}</section>"


def _name(name: List[str]) -> str:
    first, *others = map(escaped, name)
    return f'<b class="name">{first}{"".join(f"<small>{x}</small>" for x in others)}</b>'


def _labels(eg: Example) -> List[str]:
    return [label for doc in (eg.reference, eg.predicted) for _, _, label in spans_of(doc)]
