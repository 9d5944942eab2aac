import threading

import numpy as np
import pytest
import torch

from spacy_llmner.llm.tree_attention import (
    EVERYTHING,
    KVCache,
    TreePass,
    blocks_of,
    causal_pass,
    current_pass,
    run_decoder,
    tree_attention,
)

TEXT = list(range(5, 25))  # four times the window of Gemma's sliding layers
TREE = [  # tokens, parent
    ([*range(5, 17)], None),
    ([30, 31], 0),
    ([32, 33, 34], 0),
    ([35], 1),
    ([36, 37], 1),
    ([30, 40, 41], 2),
]


@pytest.fixture
def llm(any_llm, load):
    return load(any_llm)


@torch.no_grad()
def plain(llm, ids):
    """Logits by transformers itself."""
    return llm.model(torch.tensor([ids])).logits[0]


def assert_close(found, expected, tolerance=1e-4):
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


def flat(tree):
    """RETURNS: ids, positions, and for every token the indices of the tokens that it attends to."""
    ids, positions, seen, last = [], [], [], []
    for tokens, parent in tree:
        path = [] if parent is None else list(seen[last[parent]])
        for token in tokens:
            path = [*path, len(ids)]
            positions.append(len(path) - 1)
            ids.append(token)
            seen.append(path)
        last.append(len(ids) - 1)
    return ids, positions, seen


def tree_pass(positions, seen):
    n = len(positions)
    mask = torch.zeros((1, n, n), dtype=torch.bool)
    for row, keys in enumerate(seen):
        mask[0, row, keys] = True
    place = torch.tensor([positions])
    return TreePass(mask, place, place)


@torch.no_grad()
def read(llm, ids, positions, one_pass):
    """Logits of all tokens of one pass."""
    hidden = run_decoder(llm.decoder, torch.tensor([ids]), torch.tensor([positions]), one_pass)
    return llm.logits(hidden[0])


def test_every_branch_reads_as_alone(llm):
    ids, positions, seen = flat(TREE)
    logits = read(llm, ids, positions, tree_pass(positions, seen))
    for row, path in enumerate(seen):
        assert_close(logits[row], plain(llm, [ids[k] for k in path])[-1])


def test_a_token_sees_its_ancestors_and_nothing_else(llm):
    ids, positions, seen = flat(TREE)
    before = read(llm, ids, positions, tree_pass(positions, seen))
    changed = 13  # the second token of the first branch
    other = [99 if k == changed else token for k, token in enumerate(ids)]
    after = read(llm, other, positions, tree_pass(positions, seen))
    for row, path in enumerate(seen):
        assert torch.equal(before[row], after[row]) == (changed not in path)


def test_causal_pass_is_the_plain_model(llm):
    n = len(TEXT)
    logits = read(llm, TEXT, list(range(n)), causal_pass(0, n, llm.device))
    assert_close(logits, plain(llm, TEXT))


@pytest.mark.parametrize("cuts", [[7], [1, 2, 19], list(range(1, 20))])
def test_cache_goes_on_where_the_last_pass_ended(llm, cuts):
    expected = plain(llm, TEXT)
    cache = KVCache()
    for start, end in zip([0, *cuts], [*cuts, len(TEXT)]):
        one_pass = causal_pass(start, end - start, llm.device)
        one_pass.cache, one_pass.slots = cache, torch.arange(start, end)
        logits = read(llm, TEXT[start:end], list(range(start, end)), one_pass)
        assert_close(logits, expected[start:end])


def test_slots_in_any_order(llm):
    """The tokens of a text are scattered in the cache, between those of another text."""
    expected = plain(llm, TEXT)
    slots = torch.randperm(40, generator=torch.Generator().manual_seed(0))[: len(TEXT)]
    other = torch.tensor([s for s in range(40) if s not in slots])
    cache = KVCache()
    noise = causal_pass(0, len(other), llm.device)
    mask, at = torch.zeros((1, len(other), 40), dtype=torch.bool), torch.zeros((1, 40), dtype=int)
    mask[:, :, other], at[:, other] = noise.mask, noise.key_positions
    one_pass = TreePass(mask, noise.positions, at, cache, other)
    read(llm, [9] * len(other), range(len(other)), one_pass)
    at = torch.full((1, 40), 1000)  # the other text's positions don't matter
    at[:, slots] = torch.arange(len(TEXT))
    for start, end in [(0, 11), (11, 20)]:
        mask = torch.zeros((1, end - start, 40), dtype=torch.bool)
        for row in range(start, end):
            mask[0, row - start, slots[: row + 1]] = True
        place = torch.arange(start, end)[None]
        one_pass = TreePass(mask, place, at, cache, slots[start:end])
        logits = read(llm, TEXT[start:end], range(start, end), one_pass)
        assert_close(logits, expected[start:end])


def test_prefix_in_front_of_a_batch(llm):
    prefix, texts = TEXT[:9], [TEXT[9:], TEXT[9:][::-1]]
    cache = KVCache()
    first = causal_pass(0, 9, llm.device)
    first.cache, first.slots = cache, torch.arange(9)
    read(llm, prefix, range(9), first)
    one_pass = causal_pass(9, 11, llm.device)
    one_pass.prefix = cache.copy(torch.arange(9))
    place = torch.arange(9, 20)[None].expand(2, -1)
    with torch.no_grad():
        hidden = run_decoder(llm.decoder, torch.tensor(texts), place, one_pass)
    for row, text in enumerate(texts):
        assert_close(llm.logits(hidden[row]), plain(llm, prefix + text)[9:])


def test_cache_grows_and_keeps():
    cache = KVCache()
    values = torch.arange(2.0 * 300 * 3).reshape(2, 300, 3)
    for start, end in [(0, 3), (3, 70), (70, 300)]:
        part = values[:, start:end]
        keys, found = cache.write(0, torch.arange(start, end), end, part, -part)
        assert torch.equal(keys, values[:, :end])
        assert torch.equal(found, -values[:, :end])
    copied = cache.copy(torch.tensor([4, 1, 2]))
    cache.write(0, torch.tensor([2]), 3, torch.zeros(2, 1, 3), torch.zeros(2, 1, 3))
    assert torch.equal(copied.keys[0], values[:, [4, 1, 2]])  # a copy without spare capacity
    assert torch.equal(copied.values[0], -values[:, [4, 1, 2]])
    assert copied.keys[0].untyped_storage().nbytes() == copied.keys[0].nbytes


def test_blocks():
    """Each block has all keys that its tokens attend to. A pass that needs most keys isn't split."""
    mask = np.zeros((150, 400), dtype=bool)
    mask[:70, 5:20], mask[70:, 200:300], mask[149, 399] = True, True, True
    first, second, third = blocks_of(mask)
    assert [block.rows for block in (first, second, third)] == [
        slice(0, 64),
        slice(64, 128),
        slice(128, 192),
    ]
    assert first.keys.tolist() == [*range(5, 20)]
    assert second.keys.tolist() == [*range(5, 20), *range(200, 300)]
    assert third.keys.tolist() == [*range(200, 300), 399]
    assert [block.keys.tolist() for block in blocks_of(mask[:64])] == [[*range(5, 20)]]
    assert blocks_of(mask[:64, :25]) == [EVERYTHING]


def test_outside_of_the_block_all_is_as_before(llm):
    expected = plain(llm, TEXT)
    ids, positions, seen = flat(TREE)
    one_pass = tree_pass(positions, seen)
    assert current_pass() is None
    with pytest.raises(RuntimeError, match="stop"), tree_attention(one_pass):
        assert current_pass() is one_pass
        raise RuntimeError("stop")
    assert current_pass() is None
    with pytest.raises(IndexError):
        read(llm, [10_000_000, *ids[1:]], positions, one_pass)
    assert current_pass() is None
    assert torch.equal(plain(llm, TEXT), expected)


def test_blocks_are_nested(llm):
    outer, inner = causal_pass(0, 3, llm.device), causal_pass(0, 4, llm.device)
    with tree_attention(outer):
        with tree_attention(inner):
            assert current_pass() is inner
        assert current_pass() is outer


def test_another_thread_attends_causally(llm):
    expected = plain(llm, TEXT)
    ids, positions, seen = flat(TREE)
    found = {}

    def other():
        found["pass"] = current_pass()
        found["logits"] = plain(llm, TEXT)

    with tree_attention(tree_pass(positions, seen)):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert found["pass"] is None
    assert torch.equal(found["logits"], expected)
