"""The result of an evaluation, which `spacy llmner evaluate` shows in the terminal and as a web page."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional

from spacy.language import Language
from spacy.training import Example

from ._util import colors_of, percent
from .entity_errors import spans_of


@dataclass
class Evaluation:
    """The result of an evaluation.

    model (str): The pipeline: a folder or the name of a package.
    data_path (Path): The annotated Docs.
    nlp (Language): The pipeline.
    examples (List[Example]): The reference Docs with the predicted Docs.
    scores (Dict[str, Any]): spaCy's scores, and "speed" (words per second), "seconds", "seconds_load" and
        the counts "n_docs", "n_words", "n_failed", "n_ents_gold" and "n_ents_predicted".
    spans_key (Optional[str]): The key of the span group that was evaluated as well, if any.
    """

    model: str
    data_path: Path
    nlp: Language
    examples: List[Example]
    scores: Dict[str, Any]
    spans_key: Optional[str]


class ScoreRow(NamedTuple):
    """A row of the table of scores.

    label (str): The label.
    prf (List[str]): Precision, recall and F-score in percent.
    n_gold (int): The number of entities in the data.
    n_predicted (int): The number of predicted entities.
    """

    label: str
    prf: List[str]
    n_gold: int
    n_predicted: int


def score_rows(result: Evaluation, spans_key: Optional[str] = None) -> List[ScoreRow]:
    """RETURNS (List[ScoreRow]): One row for each label, and a last row for "all" labels. The scores are
    those of doc.spans[spans_key], or of doc.ents if `spans_key` is None."""
    prefix = "ents" if spans_key is None else f"spans_{spans_key}"
    gold, predicted = (
        Counter(
            label
            for eg in result.examples
            for _, _, label in spans_of(getattr(eg, side), spans_key)
        )
        for side in ("reference", "predicted")
    )
    rows = [
        ScoreRow(label, [percent(prf[x]) for x in "prf"], gold[label], predicted[label])
        for label, prf in sorted((result.scores[f"{prefix}_per_type"] or {}).items())
    ]
    micro = [percent(result.scores[f"{prefix}_{x}"]) for x in "prf"]
    return [*rows, ScoreRow("all", micro, gold.total(), predicted.total())]


def label_colors(result: Evaluation) -> Dict[str, str]:
    """RETURNS (Dict[str, str]): The color of each label in the predictions or the reference."""
    docs = [doc for eg in result.examples for doc in (eg.reference, eg.predicted)]
    keys = {None, result.spans_key}
    return colors_of(label for doc in docs for key in keys for _, _, label in spans_of(doc, key))
