"""The extension attributes of the components' entities.

`span._.llmner_method` is the name of the component that found a span, and `span._.llmner_score` is the
probability that it gave to the span. `doc._.llmner_entities` lists all entities as plain values.
`span._.score` and `span._.method` are short for the first two, unless another library has registered
these names.

Scores are read from the span groups. `Doc.from_docs` and `ent.as_doc(copy_user_data=True)` create Docs
without the attrs of these groups. There, the scores of entities are read from doc.user_data.
"""

import warnings
from typing import Any, Dict, List, Optional, Tuple

from spacy.tokens import Doc, Span

from ..errors import Warnings
from .scorers import chars, span_offsets

# How the keys in doc.user_data begin. Offsets follow, which spaCy adapts when it joins or slices Docs.
FOUND = ("._.", "llmner_found")


def get_score(span: Span) -> Optional[float]:
    """RETURNS (Optional[float]): The probability of a span, if a component has found it."""
    return _found_by(span)[0]


def get_method(span: Span) -> Optional[str]:
    """RETURNS (Optional[str]): The name of the component that has found a span."""
    return _found_by(span)[1]


def get_entities(doc: Doc) -> List[Dict[str, Any]]:
    """RETURNS (List[Dict[str, Any]]): For each entity in doc.ents: "start" and "end" in characters,
    "label", "score" and "method". The last two are None for entities of other components. Made for
    `doc.to_json(underscore=["llmner_entities"])`.
    """
    out = []
    for ent in doc.ents:
        score, method = _found_by(ent)
        offsets = {"start": ent.start_char, "end": ent.end_char, "label": ent.label_}
        out.append({**offsets, "score": score, "method": method})
    return out


# These can't be lambdas, because they are pickled for the processes that `nlp.pipe` spawns.
_SHORT_NAMES = {"score": get_score, "method": get_method}


def set_extensions() -> None:
    """Register the extension attributes, unless they are registered already."""
    for name, getter in _SHORT_NAMES.items():
        if not Span.has_extension(f"llmner_{name}"):
            Span.set_extension(f"llmner_{name}", getter=getter)
        if not Span.has_extension(name):
            Span.set_extension(name, getter=getter)
    if not Doc.has_extension("llmner_entities"):
        Doc.set_extension("llmner_entities", getter=get_entities)


def warn_about_taken_names() -> None:
    """Warn if another library has registered a short name, before or after this one."""
    for name, getter in _SHORT_NAMES.items():
        if Span.get_extension(name)[2] is not getter:
            warnings.warn(Warnings.W015.format(name=name), stacklevel=2)


def _found_by(span: Span) -> Tuple[Optional[float], Optional[str]]:
    """Look up a span in the span groups that the components have written, and then in doc.user_data.

    If several components have found the span, the last group is used, because its component also wrote
    doc.ents last: for example, an `llmner_combine` at the end of the pipeline.

    RETURNS (Tuple[Optional[float], Optional[str]]): The span's score and the component's name.
    """
    span_key = chars(span)
    for group in reversed(list(span.doc.spans.values())):
        offsets = span_offsets(group) if "scores" in group.attrs else []
        if span_key in offsets:
            return float(group.attrs["scores"][offsets.index(span_key)]), group.attrs.get("method")
    user_data: Dict[Any, Any] = span.doc.user_data
    found = user_data.get((*FOUND, span.start_char, span.end_char))
    if found and found[0] == span.label_:
        return found[1], found[2]
    return None, None
