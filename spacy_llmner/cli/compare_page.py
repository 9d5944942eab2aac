"""The web page of `spacy llmner compare`: the scores, and each text as every pipeline annotates it."""

from pathlib import Path
from typing import Any, Dict, List, Tuple

from spacy.language import Language
from spacy.training import Example

from ._util import colors_of, folder_name, percent
from .entity_errors import errors_by_kind, find_errors, spans_of
from .web_page import LEGEND, escaped, make_error_list, make_page, make_table, make_text

STYLE = """
body { max-width: 96rem; }
.name { display: block; overflow-wrap: anywhere; }
.name small { display: block; font-weight: 400; color: var(--muted); }
th .name { min-width: min(12rem, 42vw); }
.versions {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr));
  gap: 0.5rem 1.5rem;
}
section { min-width: 0; padding: 0.4rem 0; }
.facts :is(th, td) { text-align: start; }
.differences { font-size: 0.9rem; margin-top: 0.5rem; }
.differences th .name { min-width: 0; }
.differences .wrong { color: var(--wrong); }
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
        "<h2>Pipelines</h2>",
        _facts(ways),
        "<h2>Documents</h2>",
        f"<p>{len(numbered)} documents, those with errors first. {LEGEND}</p>",
    ]
    for number, versions in numbered:
        reference = versions[0][1].reference
        gold = make_text(nlp, Example(reference, reference), [], colors)
        body.append(f'<article><h3>Document {number}</h3><div class="versions">')
        body.append(_section(["reference"], gold))
        for name, eg, errors in versions:
            listed = make_error_list(errors_by_kind(eg, errors))
            body.append(_section(name, make_text(nlp, eg, errors, colors) + listed))
        body.append(f"</div>{_differences([(name, eg) for name, eg, _ in versions])}</article>")
    return make_page(title, body, STYLE)


def _differences(versions: List[Tuple[List[str], Example]]) -> str:
    """RETURNS (str): A table of the entities that not all have found, as HTML. Empty if all agree with the
    reference."""
    reference = versions[0][1].reference
    gold = set(spans_of(reference))
    found = [set(spans_of(eg.predicted)) for _, eg in versions]
    rows = []
    for entity in sorted(gold.union(*found)):
        has = [entity in entities for entities in (gold, *found)]
        if all(has):
            continue
        start, end, label = entity
        cells = ["✓" if x else "–" for x in has]
        # What differs from the reference is also in another color.
        marked = [cells[0], *(c if x == has[0] else _wrong(c) for c, x in zip(cells[1:], has[1:]))]
        rows.append(
            [f"{escaped(reference.text[start:end])} <small>{escaped(label)}</small>", *marked]
        )
    if not rows:
        return ""
    header = ["entity", "reference", *(name[0] for name, _ in versions)]
    return f'<div class="differences">{make_table(header, rows, "Where they differ")}</div>'


def _wrong(cell: str) -> str:
    return f'<span class="wrong">{cell}</span>'


def _facts(ways: List[Dict[str, Any]]) -> str:
    rows = [
        [
            _name(r["name"][:1]),
            *(
                escaped(x)
                for x in (r["source"], ", ".join(r["components"]), ", ".join(r["llms"]) or "none")
            ),
        ]
        for r in ways
    ]
    table = make_table(["pipeline", "where it is from", "components", "LLM"], rows)
    return f'<div class="facts">{table}</div>'


def _scores(ways: List[Dict[str, Any]]) -> str:
    labels = sorted({label for r in ways for label in r["ents_per_type"] or {}})
    rows = [
        [
            _name(r["name"]),
            *(percent(r[f"ents_{x}"]) for x in "prf"),
            *(percent((r["ents_per_type"] or {}).get(label, {}).get("f")) for label in labels),
            f"{r['docs_per_second']:.2f}",
            f"{r['words_per_second']:,.0f}",
        ]
        for r in ways
    ]
    of_labels = [f"F {label}" for label in labels]
    return make_table(["pipeline", "P", "R", "F", *of_labels, "docs/s", "words/s"], rows)


def _section(name: List[str], content: str) -> str:
    return f"<section>{_name(name)}{content}</section>"


def _name(name: List[str]) -> str:
    first, *others = map(escaped, name)
    return f'<b class="name">{first}{"".join(f"<small>{x}</small>" for x in others)}</b>'


def _labels(eg: Example) -> List[str]:
    return [label for doc in (eg.reference, eg.predicted) for _, _, label in spans_of(doc)]
