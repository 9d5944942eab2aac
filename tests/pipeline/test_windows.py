import logging

import pytest
import spacy
from hypothesis import given
from hypothesis import strategies as st

from spacy_llmner.errors import LLMNERError
from spacy_llmner.padellm_ner.templates import TEMPLATES, max_text_tokens
from spacy_llmner.pipeline.windows import drop_unreadable, read_windows
from spacy_llmner.util import is_blank
from tests.helpers import NASTY
from tests.padellm_ner.helpers import make_prompt_encoder

NLP = spacy.blank("en")
TEXT = "Ada met Bo. They left Bonn! Nobody came? Rain fell on Rome. Bo and Ada spoke."


@pytest.fixture(scope="module", params=sorted(TEMPLATES))
def prompt_encoder(request, tiny_tokenizers):
    return make_prompt_encoder(tiny_tokenizers["byte-level"], request.param)


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizers):
    return make_prompt_encoder(tiny_tokenizers["byte-level"]).tokenizer


def texts_of(doc, windows):
    return [doc[w.tokens[0] : w.tokens[-1] + 1].text for w in windows]


def n_tokens(tokenizer, doc):
    return len(read_windows(doc, tokenizer, 1000)[0].words.ids)


def assert_cover(doc, windows, size):
    """Each word that is not blank is in one window, in order. Only single words are longer than one."""
    assert [i for w in windows for i in w.tokens] == [t.i for t in doc if not is_blank(t.text)]
    for w in windows:
        assert len(w.tokens) == len(w.words) > 0
        assert len(w.words.ids) <= size or len(w.tokens) == 1
        for i, (start, end) in zip(w.tokens, w.words.bounds):
            assert doc.text[start:end] == doc[i].text


def test_words_that_are_too_long_are_counted(tokenizer, caplog):
    doc = NLP("Ada " + "x" * 300 + " Bo " + "y" * 300)
    windows = read_windows(doc, tokenizer, 20)
    with caplog.at_level(logging.DEBUG, "spacy_llmner"):
        assert texts_of(doc, drop_unreadable(windows, 20, "padellm_ner")) == ["Ada", "Bo"]
    assert "padellm_ner: 2 of 4 words are too long for the LLM (20 tokens)" in caplog.text
    caplog.clear()
    assert len(drop_unreadable(windows, 1000, "padellm_ner")) == 4 and not caplog.text


def test_one_window(tokenizer):
    doc = NLP(TEXT)
    (window,) = read_windows(doc, tokenizer, 256)
    assert_cover(doc, [window], 256)
    assert tokenizer.hf.decode(window.words.ids.tolist()) == TEXT


@pytest.mark.parametrize("size", [1, 10, 20, 30, 60])
def test_windows_cover_every_word_once(tokenizer, size):
    doc = NLP(TEXT)
    assert_cover(doc, read_windows(doc, tokenizer, size), size)


def test_windows_end_with_a_sentence(tokenizer):
    doc = NLP(TEXT)
    longest = max(len(tokenizer.encode(s + "?")) for s in TEXT.split(". "))
    windows = read_windows(doc, tokenizer, longest + 8)
    assert len(windows) > 1
    assert all(text[-1] in ".!?" for text in texts_of(doc, windows))


def test_sentences_of_the_doc_count(tokenizer):
    doc = NLP(TEXT)
    for token in doc:
        token.is_sent_start = token.text in ("Ada", "left", "fell")
    windows = read_windows(doc, tokenizer, 40)
    assert {w.tokens[0] for w in windows[1:]} <= {t.i for t in doc if t.is_sent_start}


def test_lines_end_sentences(tokenizer):
    doc = NLP("Ada met Bo in Bonn\nthey left Rome and Bern\nnobody came to the bridge")
    lines = doc.text.split("\n")
    windows = read_windows(
        doc, tokenizer, max(n_tokens(tokenizer, NLP(line)) for line in lines) + 1
    )
    assert texts_of(doc, windows) == lines


def test_chinese_sentences(tokenizer):
    nlp = spacy.blank("zh")
    sentences = ["王小明在北京大学学习。", "他住在上海。"]
    doc = nlp("".join(sentences))
    windows = read_windows(doc, tokenizer, n_tokens(tokenizer, nlp(sentences[0])) + 4)
    assert texts_of(doc, windows) == sentences


def test_a_sentence_longer_than_a_window_is_cut(tokenizer):
    doc = NLP("and " * 50)
    windows = read_windows(doc, tokenizer, 9)
    assert len(windows) > 3
    assert_cover(doc, windows, 9)


def test_a_long_word_has_a_window_of_its_own(tokenizer):
    doc = NLP("Ada " + "x" * 200 + " Bo")
    windows = read_windows(doc, tokenizer, 16)
    assert [len(w.tokens) for w in windows] == [1, 1, 1]
    assert_cover(doc, windows, 16)


@pytest.mark.parametrize(
    "sentences",
    [
        ['"They left Bonn."', "Nobody came to Rome (or Bern.)", "Ada 'met' Bo!\""],
        ["“They left Bonn.”", '"Did rain fall?"', '"No."'],
    ],
)
def test_what_closes_belongs_to_the_sentence(tokenizer, sentences):
    doc = NLP(" ".join(sentences))
    size = max(n_tokens(tokenizer, NLP(" " + sentence)) for sentence in sentences)
    assert texts_of(doc, read_windows(doc, tokenizer, size)) == sentences


@pytest.mark.parametrize("text", ["", " ", "\n\n", "\t \u00a0"])
def test_nothing_to_read(tokenizer, text):
    assert read_windows(NLP(text), tokenizer, 16) == []


def test_white_space_is_no_text(tokenizer):
    """Long runs of white space, which have tokens of their own, are not read."""
    doc = NLP("\n \n" * 40 + "Ada" + "\n \n" * 40 + "Bo" + "\n \n" * 40)
    windows = read_windows(doc, tokenizer, 20)
    assert_cover(doc, windows, 20)
    assert len(windows) == 2


@given(st.lists(st.sampled_from([*NASTY, TEXT, " ", "\n", "xyz"]), max_size=5), st.integers(1, 40))
def test_any_text(tokenizer, pieces, size):
    doc = NLP("".join(pieces))
    windows = read_windows(doc, tokenizer, size)
    assert_cover(doc, windows, size)
    for w in windows:  # first to last token of each word, none of them shared
        spans = [(a, b) for a, b in zip(w.words.first, w.words.last) if b >= a]
        assert all(a >= 0 and b < len(w.words.ids) for a, b in spans)
        assert all(a[1] < b[0] for a, b in zip(spans, spans[1:]))


def test_max_text_tokens(prompt_encoder):
    most = max_text_tokens(prompt_encoder, ["X", "a longer label"], 256, "ner")
    assert 2 * most + prompt_encoder.overhead("a longer label") in (255, 256)


def test_no_room_for_a_text(tiny_tokenizers):
    words = {"X": "a very long description of this label " * 20}
    prompt_encoder = make_prompt_encoder(tiny_tokenizers["byte-level"], "compact", words)
    match = "'ner' is too long.* for the label 'X', .* leaves.*reads at most 64"
    with pytest.raises(LLMNERError, match=match):
        max_text_tokens(prompt_encoder, ["X", "Y"], 64, "ner")
    with pytest.raises(LLMNERError, match="the label 'a long label a long .*\\.\\.\\.'"):
        max_text_tokens(prompt_encoder, ["Y", "a long label " * 40], 64, "ner")


@pytest.mark.parametrize("gap", [" ", "  "])
def test_abbreviations_end_no_window(tokenizer, gap):
    """Neither does a double space. So no name is cut there. The window ends at an earlier full stop."""
    doc = NLP(f"Rain fell on Bern. The{gap}U.S.{gap}Army and J.{gap}K.{gap}Lund came")
    longest = n_tokens(tokenizer, NLP(doc.text[doc.text.index("The") :])) + 1
    for size in range(longest, n_tokens(tokenizer, doc)):
        _, second = read_windows(doc, tokenizer, size)
        assert doc[second.tokens[0]].text == "The"
