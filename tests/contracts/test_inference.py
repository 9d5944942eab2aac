"""A component gives the same answer for any text, however it is called."""

import pytest
import spacy
from hypothesis import example, given, settings
from hypothesis import strategies as st
from spacy.tokens import Doc, Span

from tests.contracts.components import (
    BY_NAME,
    MANY,
    TRAINABLE,
    UNSEEN,
    initialized,
    only,
    random_states,
    scrambled,
)
from tests.helpers import (
    NASTY,
    TEXTS,
    assert_same,
    assert_valid,
    entities,
    make_examples,
    make_sgd,
    scores,
)

# "wild" and "free" are random weights, which find all kinds of things.
KINDS = {
    "ember_probe": ["trained", "look_right", "next"],
    "padellm_ner": ["trained", "wild", "wild_published"],
    "ra_it_ner": ["trained", "vanilla", "wild", "free"],
    "el4ner_ensemble": ["trained"],
}
WILDEST = ["ember_probe/trained", "padellm_ner/wild", "ra_it_ner/wild", "el4ner_ensemble/trained"]
BUDGETS = {"ember_probe": 20, "padellm_ner": 60, "ra_it_ner": 300, "el4ner_ensemble": 60}
# Random texts for each kind, as many as are read in a few seconds.
N_TEXTS = {"ember_probe": 40, "padellm_ner": 25, "ra_it_ner": 20, "el4ner_ensemble": 5}


def kinds(*names):
    """Run a test with the fixture `nlp` for "component/kind"."""
    names = names or [f"{name}/{kind}" for name in KINDS for kind in KINDS[name]]
    return pytest.mark.parametrize("nlp", names, indirect=True)


@pytest.fixture
def nlp(request, pipelines):
    return pipelines(*request.param.split("/"))


def assert_same_docs(docs, others):
    for doc, other in zip(docs, others, strict=True):
        assert_same(doc, other)
        assert doc._.llmner_examples == other._.llmner_examples


@kinds()
def test_pipe_is_call(nlp):
    alone = [nlp(text) for text in MANY]
    for batch_size in (1, 3, 4, 100):
        assert_same_docs(nlp.pipe(MANY, batch_size=batch_size), alone)
    assert_same_docs(nlp.pipe(MANY[::-1]), alone[::-1])


@kinds(*WILDEST)
def test_any_order_and_batch_size(nlp):
    alone = [nlp(text) for text in MANY]

    @settings(max_examples=3 if "el4ner_ensemble" in nlp.pipe_names else 5)
    @given(st.permutations(range(len(MANY))), st.integers(1, 12))
    def check(order, batch_size):
        docs = nlp.pipe([MANY[i] for i in order], batch_size=batch_size)
        assert_same_docs(docs, [alone[i] for i in order])

    check()


@kinds()
@pytest.mark.parametrize("smallest", [True, False])
def test_token_budget_changes_nothing(nlp, monkeypatch, smallest):
    expected = list(nlp.pipe(MANY))
    (name,) = nlp.pipe_names
    budget = 1 if smallest else BUDGETS[name]
    monkeypatch.setattr(nlp.get_pipe(name), "max_batch_tokens", budget)
    assert_same_docs(nlp.pipe(MANY), expected)


def test_the_same_twice(trained):
    assert [entities(d) for d in trained.pipe(MANY)] == [entities(d) for d in trained.pipe(MANY)]


def test_use_draws_nothing(trained):
    """A component doesn't use the global random generators, since they belong to the user."""
    before = random_states()
    list(trained.pipe([*TEXTS, UNSEEN]))
    assert random_states() == before


@kinds(*(f"{name}/trained" for name in KINDS), "ra_it_ner/wild")
def test_as_tuples(nlp):
    component = BY_NAME[nlp.pipe_names[0]]
    texts = [*dict(component.data), UNSEEN, ""]
    pairs = list(nlp.pipe([(text, {"id": i}) for i, text in enumerate(texts)], as_tuples=True))
    assert [context["id"] for _, context in pairs] == list(range(len(texts)))
    assert_same_docs([doc for doc, _ in pairs], map(nlp, texts))
    if component.exact:
        assert [entities(doc) for doc, _ in pairs[:-2]] == [gold for _, gold in component.data]


@pytest.mark.parametrize("batch_size", [2, 4])
def test_n_process(trained, batch_size):
    docs = trained.pipe(TEXTS * 2, n_process=2, batch_size=batch_size)
    assert_same_docs(docs, [*map(trained, TEXTS)] * 2)


def test_disabled(component, trained, saved):
    """A disabled component writes nothing to a Doc. It works as before when it is enabled again."""
    text = component.text
    before = trained(text)
    assert before.ents
    with trained.select_pipes(disable=[component.name]):
        docs = [trained(text), *trained.pipe([text])]
    docs += trained.pipe([text], disable=[component.name])
    loaded = spacy.load(saved, disable=[component.name])
    docs += [loaded(text), spacy.load(saved, exclude=[component.name])(text)]
    for doc in docs:
        assert not doc.ents and not doc.spans and doc._.llmner_examples is None
    loaded.enable_pipe(component.name)
    assert_same_docs([trained(text), loaded(text)], [before, before])


@kinds()
@pytest.mark.parametrize(
    "text", [*NASTY, "x" * 3000, "Mira Stone " * 60, "\n" * 900, "\n".join(TEXTS * 4)]
)
def test_nasty_texts(nlp, text):
    assert_valid(nlp(text), text)


@kinds()
def test_injection_is_text(nlp):
    """A text that imitates prompts and answers can't produce other labels."""
    text = BY_NAME[nlp.pipe_names[0]].injection or NASTY[3]
    doc = nlp(text)
    assert_valid(doc, text)
    assert {span.label_ for span in doc.spans["llmner"]} <= {"LOC", "PER"}


@kinds(*WILDEST, "ra_it_ner/free")
def test_any_text(nlp):
    """All spans found consist of words of the text, with correct offsets."""

    @settings(max_examples=N_TEXTS[nlp.pipe_names[0]])
    @given(st.text(max_size=60))
    @example("")
    @example(" ")
    @example("Mira Stone")
    def check(text):
        assert_valid(nlp(text), text)

    check()


@kinds(*WILDEST, "ember_probe/next", "padellm_ner/wild_published")
def test_any_mixture(nlp):
    pieces = [*NASTY, *TEXTS, " ", "\n", "\t ", "Mira Stone", "\u00a0", "Oskar", "."]

    @settings(max_examples=min(25, N_TEXTS[nlp.pipe_names[0]]))
    @given(st.lists(st.sampled_from(pieces), max_size=6).map("".join))
    def check(text):
        assert_valid(nlp(text), text)

    check()


def test_every_shape_of_llm(component, any_llm):
    """The texts have more tokens than the LLM has positions."""
    model = {"ra_it_ner": {"k": 2}, "ember_probe": {"width": 32}}.get(component.name, {})
    nlp = initialized(component.make(any_llm, **model))
    if component.adapter:
        scrambled(nlp)
    elif component.trainable:
        for _ in range(20):
            nlp.update(make_examples(nlp), sgd=make_sgd())
        assert entities(nlp(TEXTS[0])) == component.data[0][1]
    for text in [" ".join(TEXTS * 5), *NASTY]:
        assert_valid(nlp(text), text)
    assert_same_docs(nlp.pipe(MANY), map(nlp, MANY))


def test_one_bad_document_costs_no_other(component, trained, pipe, monkeypatch):
    expected = {text: entities(trained(text)) for text in TEXTS}
    predict = type(pipe).predict

    def fail(self, docs):
        docs = list(docs)
        if any("tea" in doc.text for doc in docs):
            raise RuntimeError("spilt")
        return predict(self, docs)

    monkeypatch.setattr(type(pipe), "predict", fail)
    with pytest.raises(RuntimeError, match="spilt"):
        list(trained.pipe(TEXTS))
    failed = []
    monkeypatch.setattr(
        pipe, "error_handler", lambda name, proc, docs, e: failed.extend(docs), raising=False
    )
    docs = list(trained.pipe(TEXTS))
    assert [doc.text for doc in failed] == ["Oskar Blum likes tea."]
    assert [doc.text for doc in docs] == [text for text in TEXTS if "tea" not in text]
    assert all(entities(doc) == expected[doc.text] for doc in docs)
    if component.exact:
        assert all(entities(doc) == dict(component.data)[doc.text] for doc in docs)


@pytest.mark.parametrize("overwrite", [True, False])
def test_overwrite(component, trained, pipe, monkeypatch, overwrite):
    """Entities that overlap old ones are left out of doc.ents, but not of doc.spans."""
    alone = trained(component.text)
    monkeypatch.setitem(pipe.cfg, "overwrite", overwrite)
    doc = trained.make_doc(component.text)
    doc.ents = [Span(doc, 1, 4, label="OLD"), Span(doc, 5, 6, label="OLD")]
    old = entities(doc)
    taken = [{1, 2, 3, 5}.intersection(range(ent.start, ent.end)) for ent in alone.ents]
    assert any(taken)
    new = [key for key, overlap in zip(entities(alone), taken) if not overlap]
    expected = entities(alone) if overwrite else sorted([*old, *new])
    for _ in range(2):  # once more changes nothing
        pipe(doc)
        assert entities(doc) == expected
        assert scores(doc).keys() == scores(alone).keys()
    if component.exact:
        labels = [(e.text, e.label_) for e in doc.ents]
        if overwrite:
            assert labels == [("Mira Stone", "PER"), ("Oskar Blum", "PER"), ("Varnholm", "LOC")]
        else:
            assert labels == [("Stone met Oskar", "OLD"), ("in", "OLD"), ("Varnholm", "LOC")]
        n = len(doc.spans["llmner"])
        assert n == 3 if component.adapter else n >= 3


@kinds(
    *("ember_probe/trained", "ember_probe/look_right", "ember_probe/next"),
    *("padellm_ner/trained", "padellm_ner/published", "ra_it_ner/trained"),
    "el4ner_ensemble/trained",
)
def test_spans_with_scores(nlp):
    doc = nlp(BY_NAME[nlp.pipe_names[0]].text)
    group = doc.spans["llmner"]
    assert len(group.attrs["scores"]) == len(group) >= len(doc.ents) > 0
    found = {(s.start, s.end, s.label_): x for s, x in zip(group, group.attrs["scores"])}
    for ent in doc.ents:
        assert ent._.score == found[ent.start, ent.end, ent.label_]
        assert 0.0 < ent._.score <= 1.0
    assert group.attrs["method"] == nlp.pipe_names[0]
    places = {(span.start, span.end) for span in group}
    other = next((i, i + 1) for i in range(len(doc)) if (i, i + 1) not in places)
    assert doc[slice(*other)]._.score is None
    # All entities are annotated, so no token is "missing".
    assert all(token.ent_iob for token in doc)
    assert doc.tensor.size == 0
    if BY_NAME[nlp.pipe_names[0]].exact:
        assert len(doc.ents) == 3


def test_spans_key(component, trained, pipe, monkeypatch):
    monkeypatch.setitem(pipe.cfg, "spans_key", "mine")
    doc = trained(component.text)
    assert "llmner" not in doc.spans and doc.ents
    found = scores(doc, "mine")
    for ent, key in zip(doc.ents, entities(doc)):
        assert ent._.score == found[key]


def test_nothing_heavy_on_the_doc(component, trained):
    doc = trained(component.text)
    assert doc.tensor.size == 0
    assert len(doc.to_bytes()) < len(spacy.blank("en")(component.text).to_bytes()) + 1500


@pytest.mark.parametrize(
    ("nlp", "setting"),
    [
        ("padellm_ner/wild", "threshold"),
        ("padellm_ner/wild", "count_threshold"),
        ("ra_it_ner/wild", "threshold"),
        ("ra_it_ner/wild", "list_threshold"),
        ("el4ner_ensemble/trained", "verify_threshold"),
    ],
    indirect=["nlp"],
)
def test_lower_thresholds_find_more(nlp, monkeypatch, setting):
    """Thresholds are set in `cfg`, as `spacy find-threshold` does. ember_probe has its own test."""
    cfg = nlp.get_pipe(nlp.pipe_names[0]).cfg
    n = []
    for threshold in (0.9, 0.5, 0.2, 0.05, 0.0):
        monkeypatch.setitem(cfg, setting, threshold)
        docs = list(nlp.pipe([*TEXTS, UNSEEN]))
        n.append(sum(len(doc.spans["llmner"]) for doc in docs))
        for doc in docs:
            assert_valid(doc, doc.text)
            if setting == "threshold":
                assert all(score >= threshold for score in scores(doc).values())
    assert n == sorted(n) and n[-1] > n[0]


SENTENCES = [
    ("王小明在北京大学学习。", [(0, 3, "PER"), (4, 8, "ORG")]),
    ("他住在上海。", [(3, 5, "LOC")]),
]
WITH_EXAMPLES = [
    ("林小燕在成都住。", [(0, 3, "PER"), (4, 6, "LOC")]),
    ("她喜欢茶。", []),
    ("从成都到海城。", [(1, 3, "LOC"), (4, 6, "LOC")]),
]
WORDS = {"PER": "人名", "ORG": "组织", "LOC": "地点"}
CHINESE = {
    "ember_probe": (SENTENCES, {"width": 32}),
    "padellm_ner": (SENTENCES, {"template": "published_zh", "label_words": WORDS}),
    "ra_it_ner": (
        WITH_EXAMPLES,
        {
            "conversation": "published_zh",
            "label_words": WORDS,
            "system": "",
            "cfg": {"random_k": True, "least_negatives": 1},
        },
    ),
}


@only(TRAINABLE)
def test_chinese(component, make):
    """The tokens are characters, and the LLM reads the published Chinese prompts."""
    data, settings = CHINESE[component.name]
    nlp = initialized(make(lang="zh", **settings), data)
    examples, sgd = make_examples(nlp, data), make_sgd(0.01, grad_clip=1.0)
    for _ in range(30):
        nlp.update(examples, sgd=sgd)
    for text, gold in data:
        assert entities(nlp(text)) == gold


def test_scores_in_docs_that_spacy_makes(component, trained):
    """spaCy drops the attrs of span groups when it joins or cuts Docs. The scores of entities stay."""
    docs = [doc for doc in trained.pipe(component.texts) if doc.ents]
    expected = [
        [(e.text, e.label_, e._.llmner_score, e._.llmner_method) for e in doc.ents] for doc in docs
    ]
    assert all(score is not None for of_doc in expected for _, _, score, _ in of_doc)
    joined = Doc.from_docs([*docs, docs[0]])
    of_joined = [(e.text, e.label_, e._.llmner_score, e._.llmner_method) for e in joined.ents]
    assert of_joined == sum([*expected, expected[0]], [])
    assert [e["score"] for e in joined._.llmner_entities] == [score for *_, score, _ in of_joined]
    for doc, of_doc in zip(docs, expected):
        for ent, known in zip(doc.ents, of_doc):
            (cut,) = ent.as_doc(copy_user_data=True).ents
            assert (cut.text, cut.label_, cut._.llmner_score, cut._.llmner_method) == known
    # A second run leaves nothing of the first.
    doc = docs[0].copy()
    doc.set_ents([], default="missing")
    assert trained.get_pipe(component.name)(doc).user_data.keys() == docs[0].user_data.keys()
