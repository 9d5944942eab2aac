"""What a student is trained on: certain entities, unknown tokens, and which texts are left out."""

import pytest
import spacy
from spacy.tokens import Doc, Span, SpanGroup

from spacy_llmner.scale.distil_selection import (
    BLANK,
    DOUBTFUL,
    EMPTY,
    KNOWN,
    REPEATED,
    mark_doubtful,
    select,
)

NLP = spacy.blank("en")
CERTAIN, DOUBT = 0.6, 0.2


def make_doc(text, *spans, ents=None):
    """RETURNS (Doc): With spans (first word, end, label, score). All are entities, or those in `ents`."""
    doc = NLP(text)
    made = [Span(doc, start, end, label=label) for start, end, label, _ in spans]
    scores = [score for *_, score in spans]
    if None not in scores:
        doc.spans["llmner"] = SpanGroup(doc, spans=made, attrs={"scores": scores})
    doc.ents = made if ents is None else [made[i] for i in ents]
    return doc


def iob(doc):
    """RETURNS (str): A letter for each token: B, I, O, or - for unknown."""
    return "".join(token.ent_iob_ or "-" for token in doc)


def test_the_space_between_the_thresholds_is_unknown():
    spans = [(0, 1, "A", 0.6), (2, 4, "A", 0.59), (5, 6, "A", 0.2), (7, 8, "A", 0.19)]
    marked = mark_doubtful(make_doc("a b c d e f g h", *spans), CERTAIN, DOUBT)
    assert iob(marked.doc) == "BO--O-OO" and marked.n_doubtful == 2
    assert [(ent.text, ent.label_) for ent in marked.doc.ents] == [("a", "A")]


def test_spans_that_are_no_entities():
    """Doubtful, unless they overlap a certain entity."""
    spans = [(0, 2, "A", 0.9), (1, 3, "A", 0.3), (4, 5, "B", 0.3), (5, 6, "B", 0.1)]
    marked = mark_doubtful(make_doc("a b c d e f", *spans, ents=[0]), CERTAIN, DOUBT)
    assert iob(marked.doc) == "BIOO-O" and marked.n_doubtful == 1


def test_a_choice_between_two_labels_is_unknown():
    spans = [(0, 1, "A", 0.5), (0, 1, "B", 0.45)]
    marked = mark_doubtful(make_doc("a b", *spans, ents=[0]), CERTAIN, DOUBT)
    assert iob(marked.doc) == "-O" and marked.n_doubtful == 1


def test_without_scores_everything_is_certain():
    marked = mark_doubtful(make_doc("a b", (0, 1, "A", None)), CERTAIN, DOUBT)
    assert iob(marked.doc) == "BO" and marked.n_doubtful == 0


def test_only_words_and_entities_are_copied():
    doc = make_doc("a  b\nc", (0, 1, "A", 0.9))
    doc.user_data["fields"] = {"id": 1}
    marked = mark_doubtful(doc, CERTAIN, DOUBT).doc
    assert marked.text == doc.text and len(marked) == len(doc)
    assert not marked.spans and not marked.user_data


def test_what_is_left_out():
    docs = [
        make_doc("Bonn", (0, 1, "A", 0.9)),
        make_doc("Bonn", (0, 1, "A", 0.9)),
        make_doc("Perhaps", (0, 1, "A", 0.3)),
        make_doc("Known", (0, 1, "A", 0.9)),
        make_doc(" "),
        Doc(NLP.vocab),
        *[make_doc(f"Nothing {i}") for i in range(5)],
        make_doc("Bonn or Ulm", (0, 1, "A", 0.9), (2, 3, "A", 0.4)),
    ]
    selection = select(docs, CERTAIN, DOUBT, known=["Known"])
    assert selection.left_out == {DOUBTFUL: 1, EMPTY: 3, BLANK: 2, REPEATED: 1, KNOWN: 1}
    texts = [doc.text for doc in selection.docs]
    assert len(texts) == 4 and texts[0] == "Bonn" and texts[-1] == "Bonn or Ulm"
    assert selection.n_doubtful == 1 and selection.n_with_doubt == 1
    again = select(docs, CERTAIN, DOUBT, known=["Known"])
    assert [doc.text for doc in again.docs] == texts


@pytest.mark.parametrize("docs", [[], [make_doc("Nothing")]])
def test_nothing_to_learn(docs):
    assert select(docs, CERTAIN, DOUBT).docs == []
