import numpy as np
import pytest
import spacy
import torch
from spacy.tokens import Doc
from transformers import AutoModelForCausalLM

from spacy_llmner.ember_probe.features.words import ATTENTION_KINDS, WordReader, word_bounds
from spacy_llmner.llm.hidden_states import Features, FeatureSpec, read_texts
from spacy_llmner.llm.registry import make_llm
from spacy_llmner.llm.tokenization import Encoding

TEXT = "Ada Hale met Bo  Lund in Bonn, near 北京 🚀🎉 (Zoë's)."
LONG = "The river Aare flows past Bern, and Ada Hale met Bo. " * 9
LAYERS = (1, 4)


@pytest.fixture
def llm(any_llm, load):
    return load(any_llm)


@pytest.fixture(scope="module")
def nlp():
    return spacy.blank("en")


def assert_close(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def places(llm, doc):
    """The first and last token of each word, found character by character."""
    encoding = llm.tokenizer.encode(doc.text)
    first, last = [], []
    for word in doc:
        start, end = word.idx, word.idx + len(word)
        first.append(min(i for i in range(len(encoding)) if encoding.ends[i] > start))
        last.append(max(i for i in range(len(encoding)) if encoding.starts[i] < end))
    return encoding.ids, first, last


def eager_attention(llm, ids):
    """(queries, keys, layers * heads) by transformers itself."""
    model = AutoModelForCausalLM.from_pretrained(llm.spec.name, attn_implementation="eager").eval()
    with torch.no_grad():
        out = model(torch.tensor([ids]), output_attentions=True)
    return torch.cat(out.attentions, dim=1)[0].permute(1, 2, 0)


def test_word_bounds(nlp):
    doc = nlp(TEXT)
    starts, ends = word_bounds(doc)
    assert [TEXT[s:e] for s, e in zip(starts, ends)] == [word.text for word in doc]
    starts, ends = word_bounds(nlp(""))
    assert len(starts) == len(ends) == 0


def test_last_token_of_each_word(llm, nlp):
    doc = nlp(TEXT)
    ids, _, last = places(llm, doc)
    bos = llm.tokenizer.bos
    hidden = read_texts(llm, [bos + ids], FeatureSpec(LAYERS))[0].hidden[len(bos) :]
    words = WordReader(LAYERS).read(llm, [doc])[0]
    assert len(words) == len(doc)
    assert words.hidden.shape == (len(doc), 2, 32)
    assert words.hidden.dtype == torch.float32
    assert words.attention is None
    assert torch.equal(words.hidden, hidden[last])


def test_a_word_does_not_see_what_follows(llm, nlp):
    docs = [nlp("Ada Hale met Bo."), nlp("Ada Hale met nobody at all")]
    a, b = WordReader(LAYERS, "current").read(llm, docs)
    assert_close(a.hidden[:3], b.hidden[:3])
    assert_close(a.attention[:3], b.attention[:3])
    assert (a.hidden[3] - b.hidden[3]).abs().max() > 0.01


@pytest.mark.parametrize("attention", [None, *ATTENTION_KINDS])
def test_docs_in_any_company(llm, nlp, attention):
    reader = WordReader(LAYERS, attention, max_words=3, key_window=8, max_batch_tokens=60)
    texts = [TEXT, "", "Bo", "\n", "  ", "王小明在北京大学学习。", TEXT * 2, "e\u0301", "🎉"]
    docs = [nlp(text) for text in texts]
    together = reader.read(llm, docs)
    backwards = reader.read(llm, docs[::-1])[::-1]
    for doc, words, other in zip(docs, together, backwards):
        alone = reader.read(llm, [doc])[0]
        assert len(words) == len(doc)
        for found in (words, other):
            assert found.hidden.shape == alone.hidden.shape == (len(doc), 2, 32)
            assert_close(found.hidden, alone.hidden)
            assert (found.attention is None) == (attention is None)
            if attention is not None:
                assert_close(found.attention, alone.attention)
    assert reader.read(llm, []) == []


@pytest.mark.parametrize("attention", [None, *ATTENTION_KINDS])
def test_words_without_a_token(tiny_llm, load, nlp, attention):
    """The tokenizer has no token for this character."""
    llm = load(tiny_llm)
    reader = WordReader(LAYERS, attention, max_words=3)
    docs = [Doc(nlp.vocab, words=["\x04", "\x04"]), nlp("Bo")]
    docs.append(Doc(nlp.vocab, words=["\x04", "Bo", "\x04"], spaces=[False] * 3))
    docs.append(Doc(nlp.vocab, words=["\x04\x04"], spaces=[False]))
    found = reader.read(llm, docs)
    assert [len(words) for words in found] == [2, 1, 3, 1]
    assert not found[3].hidden.any()
    for words in found:
        assert torch.isfinite(words.hidden).all()
        if attention is not None:
            assert words.attention.shape[1:] == found[1].attention.shape[1:]
            assert torch.isfinite(words.attention).all()


def test_gather_without_tokens():
    reader = WordReader(LAYERS, "both", max_words=3)
    nothing = Encoding([], np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64))
    tokens = Features(torch.zeros(0, 2, 32), torch.zeros(0, 4, 4, 20))
    words = reader.gather(np.array([0, 1]), np.array([1, 2]), nothing, tokens)
    assert words.hidden.shape == (2, 2, 32)
    assert words.attention.shape == (2, 3, 2, 16)


@pytest.mark.parametrize("attention", [None, "both"])
def test_long_texts_are_read_in_windows(llm, nlp, attention):
    doc = nlp(LONG)
    reader = WordReader(LAYERS, attention, max_words=3, max_length=40, overlap=10)
    whole = WordReader(LAYERS, attention, max_words=3).read(llm, [doc])[0]
    cut, short = reader.read(llm, [doc, nlp("Bo")])
    ids, _, last = places(llm, doc)
    bos = llm.tokenizer.bos
    size = 40 - len(bos) - (1 if attention else 0)
    assert len(ids) > 3 * size
    assert cut.hidden.shape == whole.hidden.shape
    first = [word for word, token in enumerate(last) if token < size - 1]
    assert_close(cut.hidden[first], whole.hidden[first])
    if attention is not None:
        assert_close(cut.attention[first], whole.attention[first])
    # The second window begins 10 tokens before the end of the first.
    start = size - 10
    second = read_texts(llm, [bos + ids[start : start + size]], FeatureSpec(LAYERS))[0].hidden
    for word, token in enumerate(last):
        if size <= token < start + size:
            assert_close(cut.hidden[word], second[len(bos) + token - start])
    assert len(short) == 1


def test_longer_than_the_llm_can_read(llm, nlp):
    doc = nlp(LONG * 5)
    words = WordReader(LAYERS, max_length=100_000, overlap=1_000).read(llm, [doc])[0]
    assert len(llm.tokenizer.encode(doc.text)) > 2 * llm.max_length
    assert len(words) == len(doc)
    assert torch.isfinite(words.hidden).all()


def test_read_twice(llm, nlp):
    doc = nlp(TEXT)
    ids, _, last = places(llm, doc)
    front = llm.tokenizer.bos + ids + llm.tokenizer.encode("\n").ids
    hidden = read_texts(llm, [front + ids], FeatureSpec(LAYERS))[0].hidden[len(front) :]
    reader = WordReader(LAYERS, read_twice=True)
    assert_close(reader.read(llm, [doc])[0].hidden, hidden[last])
    other = reader.read(llm, [nlp("Ada Hale met nobody")])[0].hidden
    assert (other[0] - hidden[last[0]]).abs().max() > 0.01  # the LLM has seen the following text
    assert reader.read(llm, [nlp(""), doc])[0].hidden.shape == (0, 2, 32)


@pytest.mark.parametrize("read_twice", [False, True])
def test_prefix_is_what_stands_in_front(llm, nlp, read_twice):
    prefix = "Find the names in this text:\n"
    docs = [nlp("Ada Hale met Bo Lund."), nlp("Nobody came."), nlp("Rain.")]
    read = WordReader(LAYERS, prefix=prefix, read_twice=read_twice).read(llm, docs)
    front = [*llm.tokenizer.bos, *llm.tokenizer.encode(prefix).ids]
    for doc, words in zip(docs, read):
        encoding = llm.tokenizer.encode(doc.text)
        ids = [*encoding.ids]
        if read_twice:
            ids = [*encoding.ids, *llm.tokenizer.encode("\n").ids, *encoding.ids]
        by_hand = read_texts(llm, [[*front, *ids]], FeatureSpec(LAYERS))[0].hidden[-len(encoding) :]
        last = encoding.last_tokens(word_bounds(doc)[1])
        assert torch.allclose(words.hidden, by_hand[torch.as_tensor(last)], atol=1e-4)


def test_long_texts_are_read_twice_in_windows(llm, nlp):
    doc = nlp(LONG)
    words = WordReader(LAYERS, max_length=61, overlap=8, read_twice=True).read(llm, [doc])[0]
    ids, _, last = places(llm, doc)
    bos, between = llm.tokenizer.bos, llm.tokenizer.encode("\n").ids
    size = (61 - len(bos) - len(between)) // 2
    window = ids[size - 8 : 2 * size - 8]
    front = bos + window + between
    second = read_texts(llm, [front + window], FeatureSpec(LAYERS))[0].hidden[len(front) :]
    for word, token in enumerate(last):
        if size <= token < 2 * size - 8:
            assert_close(words.hidden[word], second[token - size + 8])


def test_attention_of_spans(llm, nlp):
    doc = nlp(TEXT)
    ids, first, last = places(llm, doc)
    bos, end = llm.tokenizer.bos, llm.tokenizer.end
    assert (len(bos), len(end)) == (1, 1)
    full = eager_attention(llm, bos + ids + end)
    window, max_words = 9, 4
    expected = torch.zeros(len(doc), max_words, 2, 16)
    filled = 0
    for e in range(len(doc)):
        for k in range(min(max_words, e + 1)):
            key = first[e - k]
            for kind in (0, 1):
                query = last[e] + kind
                if query - key < window:
                    expected[e, k, kind] = full[query + 1, key + 1]
                    filled += 1
    assert filled > 3 * len(doc)
    found = {}
    for attention in ("current", "next", "both"):
        reader = WordReader(LAYERS, attention, max_words, key_window=window)
        found[attention] = reader.read(llm, [doc])[0].attention
    assert_close(found["both"], expected)
    assert torch.equal(found["current"], found["both"][:, :, :1])
    assert torch.equal(found["next"], found["both"][:, :, 1:])
    assert (found["current"] - found["next"]).abs().max() > 0.05


def test_adjacency(llm, nlp):
    doc = nlp(TEXT)
    ids, first, _ = places(llm, doc)
    full = eager_attention(llm, llm.tokenizer.bos + ids)
    near = torch.zeros(len(doc), 6, 16)
    for word, token in enumerate(first):
        for back in range(min(6, token + 2)):
            near[word, back] = full[token + 1, token + 1 - back]
    found = WordReader(LAYERS, "adjacency").read(llm, [doc])[0].attention
    assert found.shape == (len(doc), 1, 1, 16)
    assert_close(found[:, 0, 0], near.softmax(dim=1)[:, 1])
    assert ((found > 0) & (found < 1)).all()


def test_key_names_what_changes_the_features():
    plain = WordReader(LAYERS).key()
    assert WordReader(LAYERS, max_words=3, key_window=9, max_batch_tokens=7).key() == plain
    others = [
        WordReader((1,)),
        WordReader(LAYERS, "next"),
        WordReader(LAYERS, "both"),
        WordReader(LAYERS, "both", max_words=3),
        WordReader(LAYERS, "both", key_window=9),
        WordReader(LAYERS, max_length=99),
        WordReader(LAYERS, overlap=9),
        WordReader(LAYERS, read_twice=True),
        WordReader(LAYERS, prefix="Names:"),
    ]
    keys = [str(reader.key()) for reader in others]
    assert len({str(plain), *keys}) == 10


@pytest.mark.llm
def test_smollm2_drops_characters(smollm2, nlp):
    llm = make_llm(str(smollm2), dtype="float32", device="cpu").load()
    docs = [nlp("\x04\x06 \x13"), nlp("\U00040000"), nlp("Ada met\x04 Bo."), nlp("")]
    for words, doc in zip(WordReader((1,), "both").read(llm, docs), docs):
        assert words.hidden.shape == (len(doc), 1, 576)
        assert words.attention.shape == (len(doc), 8, 2, 270)
        assert torch.isfinite(words.hidden).all()
    make_llm(str(smollm2), dtype="float32", device="cpu").unload()
