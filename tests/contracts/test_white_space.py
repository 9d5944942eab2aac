"""Annotated entities that begin or end with white space, as annotation tools and HTML produce them."""

import warnings

import pytest
from spacy.tokens import Doc, Span, SpanGroup
from spacy.training import Example

from spacy_llmner.pipeline.gold import gold_mentions, trim_mentions
from spacy_llmner.pipeline.scorers import llmner_score
from tests.contracts.components import TRAINABLE, initialized, only, pipe_of
from tests.helpers import entities, make_examples, make_sgd, same_state, share_found, state_of

# White space around entities. Between spaces, zero-width characters are separate tokens.
BLANKS = ["\n", " \t ", " \xa0 ", " \u3000\u2028 ", " \u200b ", " \ufeff \u2060 "]
FRAMED = [
    ("Then {0}Mira Stone{1} met {0}Oskar Blum{1} in {0}Varnholm{1} .", ["PER", "PER", "LOC"]),
    ("{0}Oskar Blum{1} likes tea .", ["PER"]),
    ("The river near {0}Varnholm{1}", ["LOC"]),
    ("Nobody saw the red boat .", []),
]


def framed_docs(nlp, before, after, *, wide):
    """RETURNS (List[Doc]): Docs with white space around their entities, or inside them if `wide`."""
    docs = []
    for template, labels in FRAMED:
        doc = nlp.make_doc(template.replace("{0}", before).replace("{1}", after))
        tight = [
            doc.char_span(start, start + len(name), label=label)
            for name, label in zip(("Mira Stone", "Oskar Blum", "Varnholm"), "PPL")
            if (start := doc.text.find(name)) >= 0
            for label in [{"P": "PER", "L": "LOC"}[label]]
        ]
        assert None not in tight and len(tight) == len(labels)
        doc.set_ents([widened(span) if wide else span for span in tight], default="outside")
        docs.append(doc)
    return docs


def widened(span):
    """RETURNS (Span): The span, extended to the white space around it."""
    doc, start, end = span.doc, span.start, span.end
    while start and not doc[start - 1].text.strip(" \n\t\xa0\u3000\u2028\u200b\ufeff\u2060"):
        start -= 1
    while end < len(doc) and not doc[end].text.strip(" \n\t\xa0\u3000\u2028\u200b\ufeff\u2060"):
        end += 1
    return Span(doc, start, end, label=span.label)


def examples_of(nlp, docs):
    return [Example(nlp.make_doc(doc.text), doc) for doc in docs]


@pytest.mark.parametrize("before, after", zip(BLANKS, BLANKS[::-1]))
def test_framed_entities_are_wide(before, after):
    """The other tests rely on this."""
    import spacy

    nlp = spacy.blank("en")
    for wide, tight in zip(*(framed_docs(nlp, before, after, wide=wide) for wide in (True, False))):
        assert [e.label_ for e in wide.ents] == [e.label_ for e in tight.ents]
        assert entities(trim_mentions(wide)) == entities(tight)
        if tight.ents:
            assert entities(wide) != entities(tight)
        assert trim_mentions(tight) is tight


def learnt(nlp, docs):
    """RETURNS (Tuple[Dict, List[str]]): The weights after some updates, and the warnings."""
    examples = examples_of(nlp, docs)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        nlp.initialize(lambda: examples)
    for _ in range(2):
        nlp.update(examples, sgd=make_sgd())
    return state_of(nlp), [str(w.message) for w in caught if "white space" in str(w.message)]


@only(TRAINABLE)
@pytest.mark.parametrize("before, after", [BLANKS[:2], BLANKS[3:1:-1], BLANKS[4:]])
def test_learns_what_it_learns_from_trimmed_entities(component, make, before, after):
    nlps = make(), make()
    states = []
    for nlp, wide in zip(nlps, (True, False)):
        initialized(nlp)  # seeds what is drawn
        docs = framed_docs(nlp, before, after, wide=wide)
        state, caught = learnt(nlp, docs)
        states.append(state)
        if wide:
            (message,) = caught
            assert f"{component.name}" in message
            assert "5 of 5 annotated entities" in message and "0 of these" in message
        else:
            assert not caught
    assert same_state(*states)


def test_entities_of_white_space_only_are_left_out(component, make):
    nlp = make()
    doc = nlp.make_doc("Mira Stone \n\n met Oskar Blum .")
    blank = next(token.i for token in doc if token.is_space)
    ents = [Span(doc, 0, 2, "PER"), Span(doc, blank, blank + 1, "LOC")]
    doc.set_ents(ents, default="outside")
    examples = examples_of(nlp, [doc]) * 2
    assert gold_mentions(examples[0]) == ([(0, 2, "PER")], [])
    with pytest.warns(UserWarning, match="2 of 4 annotated .* 2 of these entities consist of noth"):
        nlp.initialize(lambda: examples)
    assert pipe_of(nlp).labels == ("PER",)


@only(["el4ner_ensemble"])
def test_demonstrations_are_trimmed(component, make):
    nlp = make()
    docs = framed_docs(nlp, "\n", " \xa0 ", wide=True)
    with pytest.warns(UserWarning, match="5 of 5 annotated entities"):
        nlp.initialize(lambda: examples_of(nlp, docs))
    texts = pipe_of(nlp).pool.index.examples
    strings = {(t.text[a:b], x) for t in texts for a, b, x in t.entities}
    assert strings == {("Mira Stone", "PER"), ("Oskar Blum", "PER"), ("Varnholm", "LOC")}


def test_scorer_ignores_white_space_at_the_borders(component, trained, pipe):
    docs = [trained(doc.text) for doc in framed_docs(trained, "\n", " \xa0 ", wide=False)] + list(
        trained.pipe(component.texts)
    )
    docs = [doc for doc in docs if doc.ents]
    assert docs
    examples, n_wide = [], 0
    for doc in docs:
        reference = Doc(doc.vocab, [t.text for t in doc], [bool(t.whitespace_) for t in doc])
        ents = [widened(Span(reference, e.start, e.end, e.label)) for e in doc.ents]
        n_wide += sum(a.text != b.text for a, b in zip(ents, doc.ents))
        reference.set_ents(ents, default="outside")
        examples.append(Example(doc, reference))
    if n_wide:
        total = sum(len(doc.ents) for doc in docs)
        with pytest.warns(UserWarning, match=f"the scorer: {n_wide} of {total} annotated"):
            scores = pipe.score(examples)
    else:
        scores = pipe.score(examples)
    assert scores["ents_f"] == scores["ents_set_f"] == 1.0
    assert scores["ents_per_type"].keys() == {e.label_ for doc in docs for e in doc.ents}


def test_scorer_trims_other_components_entities_and_groups(trained):
    """Even if a component that runs before ours has found them."""
    doc = trained.make_doc("Then \n Mira Stone \n met Tea .")
    reference = doc.copy()
    tight = next(Span(doc, t.i, t.i + 2, "PER") for t in doc if t.text == "Mira")
    doc.set_ents([widened(tight)], default="outside")
    reference.set_ents([Span(reference, tight.start, tight.end, "PER")], default="outside")
    doc.spans["gold"] = SpanGroup(doc, spans=[tight])
    reference.spans["gold"] = SpanGroup(reference, spans=[widened(Span(reference, 0, 0))][:0])
    reference.spans["gold"].append(widened(Span(reference, tight.start, tight.end, "PER")))
    doc.spans["llmner"] = SpanGroup(doc, spans=[tight])
    with pytest.warns(UserWarning, match="the scorer: 1 of 1"):
        scores = llmner_score([Example(doc, reference)], train_spans="gold")
    assert scores["ents_f"] == scores["spans_f"] == 1.0


@only(["ember_probe", "padellm_ner"])
def test_line_ends_inside_an_entity(component, make):
    """An entity that is broken over two lines is learned and found, including the line break."""
    data = [
        ("Yesterday Mira\nStone met tea .", [(10, 20, "PER")]),
        ("Mira Stone likes Port\nEllam .", [(0, 10, "PER"), (17, 27, "LOC")]),
        ("Nobody likes cold tea .", []),
    ]
    nlp = initialized(make(), data)
    examples = make_examples(nlp, data)
    for _ in range(60):
        nlp.update(examples, sgd=make_sgd(grad_clip=1.0))
    assert share_found(nlp, data) == 1.0
