"""The web page of `spacy llmner evaluate`: the scores, and the texts with their errors."""

from collections import Counter
from typing import List, Optional, Tuple

from spacy.training import Example

from ._util import folder_name, llm_names
from .entity_errors import KINDS, EntityError, errors_by_kind, find_errors
from .evaluation import Evaluation, label_colors, score_rows
from .web_page import LEGEND, css_class, escaped, make_error_list, make_page, make_table, make_text

STYLE = """
.overall { display: flex; flex-wrap: wrap; gap: 0.75rem; padding: 0; margin: 1.25rem 0; list-style: none; }
.overall li { background: var(--panel); border-radius: 0.5rem; padding: 0.4rem 1rem; color: var(--muted); }
.overall b { display: block; font-size: 1.5rem; line-height: 1.3; color: var(--text); }
tr:last-child > * { font-weight: 700; }
fieldset { border: 0; padding: 0; margin: 0.75rem 0; display: flex; flex-wrap: wrap; gap: 0.4rem; }
legend { float: inline-start; padding: 0.2rem 0.5rem 0.2rem 0; }
fieldset label {
  position: relative; border: 1px solid var(--line); border-radius: 1rem; padding: 0.2rem 0.8rem;
}
fieldset input { position: absolute; opacity: 0; }
fieldset label:has(:checked) { background: var(--text); color: var(--page); border-color: var(--text); }
fieldset label:has(:focus-visible) { outline: 3px solid var(--muted); outline-offset: 1px; }
"""
SHOW = "body:has(#show-{name}:checked) article:not(.{name}) {{ display: none; }}\n"

# The position of an Example in the data, the Example, and its errors.
Document = Tuple[int, Example, List[EntityError]]


def evaluation_page(result: Evaluation, limit: int) -> str:
    """Create a web page with the scores and the texts. Documents with errors come first. The reader can
    select the documents with one kind of error.

    result (Evaluation): The evaluation.
    limit (int): Maximum number of Docs in the page.
    RETURNS (str): The page.
    """
    documents: List[Document] = [
        (number, eg, find_errors(eg, result.spans_key))
        for number, eg in enumerate(result.examples, start=1)
    ]
    documents.sort(key=lambda document: not document[2])
    shown = documents[:limit]
    name = folder_name(result.model)
    body = [
        f"<h1>{escaped(name)}</h1>",
        _facts(result),
        _overall(result),
        *(_scores(result, key) for key in dict.fromkeys([None, result.spans_key])),
        "<h2>Documents</h2>",
        f"<p>{len(shown)} of {len(documents)} documents, those with errors first. {LEGEND}</p>",
        _filter(shown),
        *(_document(result, document) for document in shown),
    ]
    names = ["errors", "no-errors", *map(css_class, KINDS)]
    return make_page(
        f"Evaluation of {name}", body, STYLE + "".join(SHOW.format(name=x) for x in names)
    )


def _facts(result: Evaluation) -> str:
    llms = llm_names(pipe for _, pipe in result.nlp.pipeline)
    facts = {
        "LLM": ", ".join(llms),
        "Components": ", ".join(result.nlp.pipe_names),
        "Data": folder_name(result.data_path),
        "Failed": f"{result.scores['n_failed']} documents, which count as empty"
        if result.scores["n_failed"]
        else "",
    }
    lines = [f"<dt>{name}</dt><dd>{escaped(fact)}</dd>" for name, fact in facts.items() if fact]
    return f"<dl>{''.join(lines)}</dl>"


def _overall(result: Evaluation) -> str:
    *_, (_, prf, _, _) = score_rows(result)
    names = ("precision", "recall", "F")
    items = "".join(f"<li><b>{value}</b> {name}</li>" for name, value in zip(names, prf))
    return f'<ul class="overall">{items}</ul>'


def _scores(result: Evaluation, spans_key: Optional[str]) -> str:
    rows = [
        [escaped(label), *prf, str(n_gold), str(n_predicted)]
        for label, prf, n_gold, n_predicted in score_rows(result, spans_key)
    ]
    header = ["label", "P", "R", "F", "in the data", "predicted"]
    caption = "doc.ents" if spans_key is None else f"doc.spans[{spans_key!r}]"
    return make_table(header, rows, caption)


def _filter(shown: List[Document]) -> str:
    """RETURNS (str): Buttons that select the documents with a kind of error. They need no script."""
    n_wrong = sum(1 for _, _, errors in shown if errors)
    counts = {
        "all": len(shown),
        "errors": n_wrong,
        **Counter(kind for _, _, errors in shown for kind in {error.kind for error in errors}),
        "no errors": len(shown) - n_wrong,
    }
    buttons = [
        f'<label><input type="radio" name="show" id="show-{css_class(name)}" autocomplete="off"'
        f"{' checked' if name == 'all' else ''}> {name} ({counts[name]})</label>"
        for name in ("all", "errors", *KINDS, "no errors")
        if counts.get(name)
    ]
    return f"<fieldset><legend>Show</legend>{''.join(buttons)}</fieldset>"


def _document(result: Evaluation, document: Document) -> str:
    number, eg, errors = document
    listed = errors_by_kind(eg, errors)
    classes = " ".join(map(css_class, ["errors", *listed] if errors else ["no errors"]))
    text = make_text(result.nlp, eg, errors, label_colors(result), result.spans_key)
    return f'<article class="{classes}"><h3>Document {number}</h3>{text}{make_error_list(listed)}</article>'
