"""Entities in a text that arrives in pieces: the same as in the finished text, however it is cut."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spacy_llmner.errors import LLMNERError
from spacy_llmner.llm.hidden_states import StepReader
from tests.ember_probe.helpers import (
    NASTY,
    TEXTS,
    assert_same,
    assert_valid,
    entities,
    make_nlp,
    train,
)
from tests.ember_probe.streaming.test_stream import any_streaming, fed, remaining  # noqa: F401

PREFIX = "Find the names in this text:\n"
FRAGMENTS = [
    *("Mira Stone", "Oskar Blum", "Varnholm", "Port Ellam", "Mira", "Port", "tea", "met", "In"),
    *(" ", " ", " ", "  ", "\n", ".\n\n", ". ", ", ", "\t", "\u3000", "\u200b", "'s", "don't"),
    *("王小明", "。", "，", "🚀", "👩\u200d💻", "e\u0301", "\x04", "<|im_end|>", "1,234.5"),
]
ANY_TEXT = st.one_of(
    st.lists(st.sampled_from(FRAGMENTS), max_size=40).map("".join),
    st.text(st.characters(codec="utf8"), max_size=40),
)
# The pipeline is the same for all examples.
repeated = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)


@pytest.fixture(scope="module")
def with_prefix(tiny_llm):
    return train(make_nlp(tiny_llm, width=32, prefix=PREFIX))


def pieces_of(data, text):
    """RETURNS (List[str]): The text, cut anywhere, also in the middle of words."""
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=30)))
    return [text[i:j] for i, j in zip([0, *cuts], [*cuts, len(text)])]


def read(nlp, pieces):
    """RETURNS (Tuple): The Doc, and all events."""
    reader = nlp.get_pipe("ember_probe").reader()
    events = [event for piece in pieces for event in reader.push(piece)]
    events += reader.close()
    assert_consistent(reader, "".join(pieces), events)
    return reader.doc, events


def assert_consistent(reader, text, events):
    assert reader.text == text
    assert reader.settled == len(text)
    assert_valid(reader.doc, text)
    shown = remaining(events)
    assert sorted(shown) == sorted(entities(reader.doc))
    assert all(event.status == "final" for event in shown.values())
    for event in events:
        assert text[event.start : event.end] == event.text
        assert 0.0 <= event.score <= 1.0
    finals = [(e.start, e.end, e.label) for e in events if e.status == "final"]
    assert sorted(finals) == sorted(shown), "a final entity was changed"


@repeated
@given(data=st.data(), text=ANY_TEXT)
def test_any_pieces_of_any_text(with_prefix, data, text):
    whole = with_prefix(text)
    for pieces in ([text], list(text), pieces_of(data, text)):
        doc, _ = read(with_prefix, pieces)
        assert_same(doc, whole)
        assert [t.text_with_ws for t in doc] == [t.text_with_ws for t in whole]


@pytest.mark.parametrize("text", [*TEXTS, " ".join(TEXTS), *NASTY, "", " ", "x", "a  b \n\n c"])
def test_every_probe(any_streaming, text):  # noqa: F811
    whole = any_streaming(text)
    for size in (1, 2, 7, 1000):
        doc, _ = read(any_streaming, [text[i : i + size] for i in range(0, len(text), size)])
        assert_same(doc, whole)


def test_every_shape_of_llm(any_llm):
    nlp = train(make_nlp(any_llm, width=16, prefix=PREFIX), steps=10)
    for text in TEXTS:
        assert_same(read(nlp, list(text))[0], nlp(text))


@pytest.mark.parametrize("kind", ["default", "both"])
def test_windows(with_prefix, paper, kind, fed):  # noqa: F811
    """Long texts are read in the windows of finished texts, each token once, and overlaps once more."""
    nlp = with_prefix if kind == "default" else paper(kind)
    ember = nlp.get_pipe("ember_probe")
    llm, word_reader = ember.shared_llm(), ember.word_reader
    text = " ".join(TEXTS * 12)
    n_tokens = len(llm.tokenizer.encode(text))
    before = word_reader.before(llm)
    size, overlap = word_reader.window(llm, len(before))
    assert n_tokens > 3 * size
    whole = nlp(text)
    n_windows = 1 + -(-(n_tokens - size) // (size - overlap))
    n_end = len(llm.tokenizer.end) if kind == "both" else 0
    expected = n_tokens + n_windows * len(before) + (n_windows - 1) * overlap + n_end
    for pieces in (list(text), [text], [text[i : i + 50] for i in range(0, len(text), 50)]):
        fed.clear()
        assert_same(read(nlp, pieces)[0], whole)
        assert sum(fed) == expected


def test_events_come_while_it_is_read(with_prefix):
    reader = with_prefix.get_pipe("ember_probe").reader()
    text, found = TEXTS[0] + " " + " ".join(TEXTS[3:]), {}
    for i, char in enumerate(text):
        for event in reader.push(char):
            found.setdefault((event.text, event.status), i)
    # The word after an entity is complete when the space after it arrives.
    assert text[: found["Mira Stone", "found"] + 1] == "Mira Stone met "
    assert found["Mira Stone", "final"] < len(text) - 10
    settled = reader.settled
    assert text[:settled].count("Varnholm") == 1
    reader.close()
    assert reader.settled == len(text)


def test_with_block(with_prefix):
    with with_prefix.get_pipe("ember_probe").reader() as reader:
        reader.push(TEXTS[0])
        assert reader.doc is None
    assert_same(reader.doc, with_prefix(TEXTS[0]))
    assert reader.close() == []
    with pytest.raises(LLMNERError, match="is closed"):
        reader.push("more")


def test_exception_in_a_with_block(with_prefix):
    with pytest.raises(KeyError), with_prefix.get_pipe("ember_probe").reader() as reader:
        reader.push(TEXTS[0])
        raise KeyError
    assert reader.doc is None


def test_error_of_the_llm(with_prefix, monkeypatch):
    """A reader can't go on after an error, since tokens are missing."""
    reader = with_prefix.get_pipe("ember_probe").reader()
    with monkeypatch.context() as patch:
        patch.setattr(StepReader, "feed_last", lambda self, ids: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            reader.push(TEXTS[0])
    with pytest.raises(LLMNERError, match="stopped at an error"):
        reader.push(TEXTS[1])
    assert reader.close() == [] and reader.doc is None


@pytest.mark.parametrize("piece", [None, b"Mira", 3])
def test_what_is_not_a_piece(with_prefix, piece):
    with pytest.raises(LLMNERError, match="must be a string"):
        with_prefix.get_pipe("ember_probe").reader().push(piece)


def test_probes_that_see_the_whole_text_cannot_read_pieces(trained_right):
    with pytest.raises(LLMNERError, match="can only read finished texts"):
        trained_right.get_pipe("ember_probe").reader()


def test_several_readers_and_other_use_of_the_llm(with_prefix):
    """Readers take turns, and nothing else that uses the LLM disturbs them."""
    ember = with_prefix.get_pipe("ember_probe")
    readers = [ember.reader() for _ in TEXTS]
    for i in range(max(map(len, TEXTS))):
        for reader, text in zip(readers, TEXTS):
            reader.push(text[i : i + 1])
        with_prefix(TEXTS[i % len(TEXTS)])
    for reader, text in zip(readers, TEXTS):
        reader.close()
        assert_same(reader.doc, with_prefix(text))


def test_features_are_freed(with_prefix):
    """The memory of a reader doesn't grow with the length of the text, except for the text itself."""
    reader = with_prefix.get_pipe("ember_probe").reader()
    kept = []
    for _ in range(10):
        for piece in " ".join(TEXTS).split(" "):
            reader.push(piece + " ")
        kept.append(sum(len(states) > 0 for states in reader._live.hidden))
    assert max(kept) < 10 < len(reader._live.hidden)


def test_words_that_depend_on_the_text_after_them(tiny_llm):
    """If a rule of the tokenizer contains a space, the Doc has the words that were read, and no final
    entity changes. This is where a reader can differ from the finished text."""
    nlp = make_nlp(tiny_llm, width=32)
    train(nlp)
    nlp.tokenizer.add_special_case("Mira Stone", [{"ORTH": "Mira Stone"}])
    text = "Tea. Mira Stone met Oskar Blum in Port Ellam."
    assert [t.text for t in nlp.make_doc(text)][2] == "Mira Stone"
    doc, _ = read(nlp, list(text))
    assert [t.text for t in doc][2:4] == ["Mira", "Stone"]


def test_string_that_a_tokenizer_merges_over_a_space(with_prefix, monkeypatch):
    """If the tokens of the whole text are others, the Doc has the entities of the tokens that were read."""
    from spacy_llmner.llm.tokenization import LLMTokenizer

    text = " ".join(TEXTS)
    usual = read(with_prefix, [text])[0]
    original = LLMTokenizer.encode_inside
    monkeypatch.setattr(
        LLMTokenizer,
        "encode_inside",
        lambda self, part: original(self, part.replace("Port", "port")),
    )
    docs = [read(with_prefix, pieces)[0] for pieces in ([text], list(text))]
    assert_same(*docs)
    assert docs[0].text == usual.text


def test_chinese(tiny_llm):
    nlp = make_nlp(tiny_llm, lang="zh", width=32)
    data = [
        ("王小明在北京大学学习。", [(0, 3, "PER"), (4, 8, "ORG")]),
        ("他住在上海。", [(3, 5, "LOC")]),
    ]
    train(nlp, data=data)
    text = "".join(text for text, _ in data) + " Ada，王小明。"
    for pieces in ([text], list(text), [text[:5], text[5:]]):
        assert_same(read(nlp, pieces)[0], nlp(text))


def test_other_settings(with_prefix):
    """A reader uses the settings that the component had when it was created."""
    ember = with_prefix.get_pipe("ember_probe")
    reader = ember.reader()
    threshold = ember.cfg["threshold"]
    try:
        whole = with_prefix(TEXTS[0])
        ember.cfg["threshold"] = 0.999
        reader.push(TEXTS[0])
        reader.close()
    finally:
        ember.cfg["threshold"] = threshold
    assert_same(reader.doc, whole)
