import pytest
import torch

from spacy_llmner.llm.attention import SLICE, Recorder, attention_rows
from spacy_llmner.llm.hidden_states import FeatureSpec, read_texts


def dense(query, key, allowed, scaling):
    """The full attention map: (batch, heads, queries, keys)."""
    key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    weights = torch.einsum("bhqd,bhkd->bhqk", query, key) * scaling
    return weights.masked_fill(~allowed, float("-inf")).softmax(dim=-1)


def tensors(n_queries, n_keys, heads=4, key_heads=2, n_batch=2):
    generator = torch.Generator().manual_seed(n_queries + n_keys)
    query = torch.randn(n_batch, heads, n_queries, 8, generator=generator)
    key = torch.randn(n_batch, key_heads, n_keys, 8, generator=generator)
    position = torch.arange(n_keys - n_queries, n_keys)[:, None]
    return query, key, position, torch.arange(n_keys)[None]


def assert_rows(rows, expected, window):
    """rows (Tensor): (batch, queries, heads, window)."""
    n_queries, n_keys = expected.shape[2:]
    assert rows.shape == (expected.shape[0], n_queries, expected.shape[1], window)
    assert rows.dtype == torch.float32
    for q in range(n_queries):
        for back in range(window):
            k = q + n_keys - n_queries - back
            cell = expected[:, :, q, k] if k >= 0 else torch.zeros(expected.shape[:2])
            torch.testing.assert_close(rows[:, q, :, back], cell, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("window", [1, 3, 12])
@pytest.mark.parametrize(("n_queries", "n_keys"), [(1, 1), (7, 7), (1, 9), (3, 9)])
@pytest.mark.parametrize("key_heads", [1, 2, 4])
def test_causal(window, n_queries, n_keys, key_heads):
    query, key, position, keys = tensors(n_queries, n_keys, key_heads=key_heads)
    rows = attention_rows(query, key, None, None, window)
    assert_rows(rows, dense(query, key, keys <= position, 8**-0.5), window)


@pytest.mark.parametrize("n_keys", [SLICE - 1, SLICE, SLICE + 1, 2 * SLICE + 5])
def test_long_texts_are_cut_in_slices(n_keys):
    query, key, position, keys = tensors(n_keys, n_keys, n_batch=1)
    expected = dense(query, key, keys <= position, 0.5)
    assert_rows(attention_rows(query, key, None, 0.5, 2), expected, 2)


@pytest.mark.parametrize("kind", ["bool", "additive"])
def test_mask(kind):
    query, key, position, keys = tensors(6, 10)
    allowed = (keys <= position) & (keys > position - 3)
    mask = allowed[None, None].expand(2, 1, 6, 10)
    if kind == "additive":
        mask = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    rows = attention_rows(query, key, mask, None, 8)
    assert_rows(rows, dense(query, key, allowed, 8**-0.5), 8)
    assert not rows[..., 3:].any()
    torch.testing.assert_close(rows.sum(-1), torch.ones(2, 6, 4))


def test_inputs_stay_as_they_are():
    query, key, _, _ = tensors(5, 5)
    copies = query.clone(), key.clone()
    attention_rows(query, key, None, None, 3)
    assert torch.equal(query, copies[0])
    assert torch.equal(key, copies[1])


def test_half_precision_does_not_overflow():
    query = torch.full((1, 1, 4, 64), 60.0, dtype=torch.float16)
    rows = attention_rows(query, query, None, None, 4)
    torch.testing.assert_close(rows[0, 3, 0], torch.full((4,), 0.25), rtol=1e-2, atol=0)


def test_recorders_are_nested(tiny_llm, load):
    llm = load(tiny_llm)
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad(), Recorder(2) as outer:
        with pytest.raises(RuntimeError), Recorder(3) as inner:
            llm.model(ids)
            raise RuntimeError
        assert not outer.rows
        llm.model(ids)
        with Recorder(4) as last:
            pass
    assert not last.rows
    assert {rows.shape[-1] for rows in inner.rows.values()} == {3}
    assert {rows.shape[-1] for rows in outer.rows.values()} == {2}
    assert sorted(outer.rows) == [0, 1, 2, 3]
    before = dict(outer.rows)
    read_texts(llm, [[5, 6]], FeatureSpec((1,)))
    assert outer.rows == before
