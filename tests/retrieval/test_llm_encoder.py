import pickle

import numpy as np
import pytest

from spacy_llmner.errors import LLMMismatchError, LLMNERError
from spacy_llmner.llm import registry as pool
from spacy_llmner.llm.registry import make_llm
from spacy_llmner.retrieval import llm_encoder
from spacy_llmner.retrieval.index import ExampleIndex
from spacy_llmner.retrieval.llm_encoder import make_llm_encoder
from tests.retrieval.helpers import TEXTS, example


def close(a, b):
    np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.fixture
def encoder(tiny_llm):
    return make_llm_encoder(make_llm(tiny_llm, device="cpu"))


def test_loads_late(tiny_llm):
    pool.clear()
    encoder = pickle.loads(pickle.dumps(make_llm_encoder(make_llm(tiny_llm), layer=2)))
    assert encoder.name == f"{tiny_llm} (layer 2)" and "layer=2" in repr(encoder)
    assert pool.loaded() == []
    assert encoder.width == 32 and len(pool.loaded()) == 1
    encoder.unload()
    assert pool.loaded() == []


def test_text_vectors(encoder, monkeypatch, capsys):
    assert encoder.width == 32
    capsys.readouterr()  # transformers 5 shows a bar while it loads an LLM
    out = encoder.encode(["", *TEXTS, " \n"], progress=True)
    assert not capsys.readouterr().err  # no bar, since this is no terminal
    assert out.shape == (8, 32) and out.dtype == np.float32
    assert not out[[0, 7]].any()
    close(np.linalg.norm(out[1:7], axis=1), np.ones(6))
    close(encoder.encode(TEXTS[::-1])[::-1], out[1:7])
    close(np.concatenate([encoder.encode([t]) for t in TEXTS]), out[1:7])
    monkeypatch.setattr(llm_encoder, "CHUNK", 2)
    close(encoder.encode(TEXTS), out[1:7])
    assert encoder.encode([]).shape == (0, 32)
    similar = out[1:7] @ out[1:7].T
    assert similar[np.triu_indices(6, 1)].max() < 0.9


def test_long_texts_are_cut(encoder, monkeypatch):
    monkeypatch.setattr(llm_encoder, "WINDOW", 40)
    long = "Bonn " * 100
    assert encoder.encode([long]).any()
    out = encoder.encode_spans([long, "Ada"], [[(0, 4), (400, 404)], []])
    assert out[0].shape == (2, 32) and out[1].shape == (0, 32)
    close(out[0][1], encoder.encode(["Bonn"])[0])


def test_span_vectors(encoder):
    text = TEXTS[0]
    whole, none = encoder.encode_spans([text, TEXTS[1]], [[(0, len(text)), (0, 3)], []])
    close(whole[0], encoder.encode([text])[0])
    assert abs(whole[1] - whole[0]).max() > 0.01 and none.shape == (0, 32)


def test_fingerprint(tiny_llm, other_llm):
    made = {
        make_llm_encoder(make_llm(path), layer).fingerprint
        for path in (tiny_llm, other_llm)
        for layer in (1, 2, None)
    }
    assert len(made) == 6
    index = ExampleIndex(make_llm_encoder(make_llm(tiny_llm)))
    index.add([example(text) for text in TEXTS])
    assert len(index.search([example("Ada in Bonn")], 2)[0]) == 2
    other = ExampleIndex(make_llm_encoder(make_llm(tiny_llm), 1)).from_bytes(index.to_bytes())
    with pytest.raises(LLMMismatchError, match="layer 1"):
        other.search([example("Ada")], 1)


def test_no_such_layer(tiny_llm):
    with pytest.raises(LLMNERError, match="Layer 9 was requested"):
        make_llm_encoder(make_llm(tiny_llm), 9).encode(["Bonn"])


@pytest.mark.llm
def test_smollm2(smollm2):
    encoder = make_llm_encoder(make_llm(str(smollm2), device="cpu"))
    texts = [
        "The mayor of Northby opened the new bridge on Friday.",
        "A bridge was inaugurated by the town's mayor last week.",
        "Whisk the eggs with sugar until the mixture is pale.",
        "Beat sugar and eggs together until light in colour.",
    ]
    similar = encoder.encode(texts) @ encoder.encode(texts).T
    # As they come, all of these are above 0.85.
    unrelated = [similar[i, j] for i in (0, 1) for j in (2, 3)]
    assert min(similar[0, 1], similar[2, 3]) > max(unrelated) + 0.1
