import pickle
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from spacy_llmner.errors import LLMNERError, LLMNotFoundError
from spacy_llmner.models import catalogue
from spacy_llmner.retrieval import encoder as encoders
from spacy_llmner.retrieval.encoder import SentenceEncoder, make_sentence_encoder
from tests.retrieval.helpers import TEXTS


def close(a, b):
    np.testing.assert_allclose(a, b, atol=2e-6)


@pytest.fixture
def encoder(tiny_bert):
    return make_sentence_encoder(tiny_bert, device="cpu")


def test_handles_share_weights_and_load_late(tiny_bert, no_encoders):
    one = make_sentence_encoder(tiny_bert)
    other = pickle.loads(pickle.dumps(make_sentence_encoder(tiny_bert, "cpu", 64)))
    assert (other.name, other.device, other.batch_tokens) == (tiny_bert, "cpu", 64)
    assert not no_encoders and "tiny" in repr(one)
    assert make_sentence_encoder(None).name == "all-minilm-l6-v2"
    if not torch.cuda.is_available():
        assert one.load() is other.load()
    one.encode(["Bonn"])
    assert len(pickle.dumps(one)) < 500
    n = len(no_encoders)
    one.unload()
    assert len(no_encoders) == n - 1
    one.unload()
    assert one.width == 16


def test_mean_pooled(encoder):
    model = encoder.load()
    out = encoder.encode(TEXTS[1:3])
    assert out.shape == (2, 16) and out.dtype == np.float32
    for text, vector in zip(TEXTS[1:3], out):
        ids = torch.tensor([model.tokenizer(text)["input_ids"]])
        with torch.no_grad():
            mean = model.model(input_ids=ids).last_hidden_state[0].mean(0).numpy()
        close(vector, mean / np.linalg.norm(mean))
    assert not model.model.training and not any(p.requires_grad for p in model.model.parameters())


def test_batching_and_order_change_nothing(tiny_bert, encoder, monkeypatch):
    texts = TEXTS * 3
    whole = encoder.encode(texts)
    close(encoder.encode(texts[::-1])[::-1], whole)
    close(np.concatenate([encoder.encode([t]) for t in texts]), whole)
    close(SentenceEncoder(tiny_bert, "cpu", batch_tokens=1).encode(texts), whole)
    monkeypatch.setattr(encoders, "CHUNK", 4)
    close(encoder.encode(texts, progress=True), whole)
    close(np.linalg.norm(whole, axis=1), np.ones(len(texts)))


def test_texts_without_words(encoder):
    out = encoder.encode(["", "Bonn", " \n", "\x00\x07"])
    assert not out[[0, 2, 3]].any() and out[1].any()
    assert encoder.encode([]).shape == (0, 16)


def test_long_texts_are_cut(encoder):
    # A window of 24 tokens holds 22 of the text.
    out = encoder.encode(["Bonn " * 22, "Bonn " * 22 + "Rome " * 1000, "Bonn " * 21 + "Rome"])
    close(out[0], out[1])
    assert abs(out[0] - out[2]).max() > 1e-4
    assert encoder.load().window == 24


def test_names_of_special_tokens_are_plain_text(encoder):
    tokens = encoder.load().tokenize(["Bonn [SEP] Rome"])[0]
    assert tokens.ids.count(3) == 1  # the one at the end


def test_span_vectors(encoder):
    model = encoder.load()
    text = TEXTS[0]
    rome = text.index("Bonn")
    spans = [(0, 8), (rome, rome + 4), (1, 2), (3, 4)]
    (out,) = encoder.encode_spans([text], [spans])
    assert out.shape == (4, 16) and out.dtype == np.float32
    tokens = model.tokenize([text])[0]
    ids = torch.tensor([tokens.ids])
    with torch.no_grad():
        hidden = model.model(input_ids=ids).last_hidden_state[0].numpy()
    for (start, end), vector in zip(spans[:3], out):
        touched = [
            i for i, s, e in zip(tokens.inside, tokens.starts, tokens.ends) if s < end and start < e
        ]
        mean = hidden[touched].mean(0)
        close(vector, mean / np.linalg.norm(mean))
    assert not out[3].any()  # a space
    assert abs(out[0] - out[1]).max() > 1e-3


def test_spans_beyond_the_window(encoder):
    long = "Bonn " * 40 + "Rome"
    spans = [[(200, 204)], [], [(0, 4), (90, 130)], [(0, 0)]]
    out = encoder.encode_spans([long, "Bern", long, ""], spans)
    assert [len(x) for x in out] == [1, 0, 2, 1]
    close(out[0], encoder.encode(["Rome"]))
    close(out[2][1], encoder.encode([long[90:130]])[0])
    assert out[1].shape == (0, 16) and not out[3].any()
    assert encoder.encode_spans([], []) == []


def test_without_spacy_transformers(tiny_bert, monkeypatch, no_encoders):
    assert_same_without_spacy_transformers(tiny_bert, monkeypatch)


@pytest.mark.llm
def test_minilm_without_spacy_transformers(minilm, monkeypatch, no_encoders):
    assert_same_without_spacy_transformers(minilm, monkeypatch)


def assert_same_without_spacy_transformers(name, monkeypatch):
    """transformers alone gives the same vectors."""
    module = pytest.importorskip("spacy_transformers.layers.transformer_model")
    load = Mock(wraps=module.huggingface_from_pretrained)
    monkeypatch.setattr(module, "huggingface_from_pretrained", load)
    spans = [[(0, 3)]] * len(TEXTS)
    encoder = make_sentence_encoder(name, device="cpu")
    expected = [encoder.encode(TEXTS), *encoder.encode_spans(TEXTS, spans)]
    window, fingerprint = encoder.load().window, encoder.fingerprint
    encoder.unload()
    monkeypatch.setitem(sys.modules, module.__name__, None)  # as if it were not installed
    found = [encoder.encode(TEXTS), *encoder.encode_spans(TEXTS, spans)]
    for vectors, same in zip(found, expected):
        np.testing.assert_allclose(vectors, same, atol=1e-6)
    assert (encoder.load().window, encoder.fingerprint) == (window, fingerprint)
    assert load.call_count == 1


def test_threads(encoder):
    truth = encoder.encode(TEXTS)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: encoder.encode(TEXTS), range(12)):
            close(found, truth)


def test_fingerprint(tiny_bert, other_bert, tmp_path):
    one = make_sentence_encoder(tiny_bert)
    assert one.fingerprint != make_sentence_encoder(other_bert).fingerprint
    shutil.copytree(tiny_bert, tmp_path / "moved")
    assert one.fingerprint == make_sentence_encoder(str(tmp_path / "moved")).fingerprint


def test_without_pooler(tiny_bert, tmp_path):
    shutil.copytree(tiny_bert, tmp_path / "bare")
    file = tmp_path / "bare" / "model.safetensors"
    state = {name: t for name, t in load_file(file).items() if "pooler" not in name}
    save_file(state, file, metadata={"format": "pt"})
    bare = make_sentence_encoder(str(tmp_path / "bare"))
    close(bare.encode(TEXTS), make_sentence_encoder(tiny_bert).encode(TEXTS))
    assert bare.fingerprint == make_sentence_encoder(tiny_bert).fingerprint


def test_messages(tiny_bert, tmp_path, monkeypatch):
    with pytest.raises(
        LLMNotFoundError, match="sentence encoder '/no/such'.*llmner download all-mini"
    ):
        make_sentence_encoder("/no/such").encode(["Bonn"])
    shutil.copytree(tiny_bert, tmp_path / "broken")
    file = tmp_path / "broken" / "model.safetensors"
    state = {name: t for name, t in load_file(file).items() if "layer.1" not in name}
    save_file(state, file, metadata={"format": "pt"})
    with pytest.raises(LLMNERError, match="no weights for encoder.layer.1"):
        make_sentence_encoder(str(tmp_path / "broken")).load()
    (tmp_path / "empty").mkdir()
    with pytest.raises(LLMNERError, match="Can't load the sentence encoder"):
        make_sentence_encoder(str(tmp_path / "empty")).load()
    with pytest.raises(LLMNERError, match="'gpu' is not a valid device"):
        make_sentence_encoder(tiny_bert, device="gpu")
    with pytest.raises(LLMNERError, match="batch_tokens.*must be 1 or more"):
        make_sentence_encoder(tiny_bert, batch_tokens=0)
    if not torch.cuda.is_available():
        with pytest.raises(LLMNERError, match="'cuda' is not available"):
            make_sentence_encoder(tiny_bert, device="cuda").load()
    monkeypatch.setenv(catalogue.HOME_VARIABLE, str(tmp_path / "home"))
    monkeypatch.setattr(encoders, "_LOADED", {})
    with pytest.raises(
        LLMNotFoundError, match="Download it with: python -m spacy llmner download all-mini"
    ):
        make_sentence_encoder().load()


def test_slow_tokenizer(tiny_bert, monkeypatch, no_encoders):
    class Slow:
        is_fast = False

    monkeypatch.setattr(encoders, "_from_pretrained", lambda path: (Slow(), None))
    with pytest.raises(LLMNERError, match="not a fast tokenizer"):
        make_sentence_encoder(tiny_bert).load()


@pytest.mark.llm
def test_minilm(minilm):
    encoder = make_sentence_encoder(minilm, device="cpu")
    texts = [
        "The mayor of Northby opened the new bridge on Friday.",
        "A bridge was inaugurated by the town's mayor last week.",
        "Whisk the eggs with sugar until the mixture is pale.",
        "Beat sugar and eggs together until light in colour.",
        "The protein binds to the receptor of T cells.",
    ]
    vectors = encoder.encode(texts)
    similar = vectors @ vectors.T
    assert encoder.width == 384 and encoder.load().window == 256
    assert similar[0, 1] > 0.5 and similar[2, 3] > 0.5
    unrelated = [similar[i, j] for i in (0, 1) for j in (2, 3, 4)] + [similar[2, 4], similar[3, 4]]
    assert max(unrelated) < 0.25
    # The released code of RA-IT embedded the name of the field, so that all vectors were equal.
    assert (similar[np.triu_indices(5, 1)] < 0.9).all()
    words = ["Ada Hale sailed from Bonn to Rome."] * 2
    person, cities = encoder.encode_spans(words, [[(0, 8)], [(21, 25), (29, 33)]])
    assert cities[0] @ cities[1] > (cities @ person[0]).max()
