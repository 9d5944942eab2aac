"""Many requests on one DecodingEngine: memory, order, errors, threads."""

import threading

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spacy_llmner.decoding.engine import DecodingEngine, Prefix
from spacy_llmner.decoding.generate import decode, run_parallel
from spacy_llmner.decoding.kv_slots import NO_SLOT, KVSlots
from spacy_llmner.decoding.tree import Tree, tree_mask
from spacy_llmner.llm import tree_attention
from tests.decoding.helpers import TEXTS, Anything, assert_same, plain, spelt, writing

FIRST = NO_SLOT + 1


@pytest.fixture
def llm(any_llm, load):
    return load(any_llm)


@pytest.fixture
def llama(tiny_llm, load):
    return load(tiny_llm)


@pytest.mark.parametrize(
    ("max_slots", "max_batch_tokens", "order"),
    [
        (10_000, 10_000, [0, 1, 2, 3, 4]),
        (10_000, 10_000, [3, 0, 4, 2, 1]),
        (60, 10_000, [3, 0, 4, 2, 1]),
        (1, 10_000, [4, 3, 2, 1, 0]),
        (10_000, 7, [0, 1, 2, 3, 4]),
        (60, 7, [4, 1, 3, 0, 2]),
        (60, 1, [2, 0]),
    ],
)
def test_batched_as_one_by_one(llm, max_slots, max_batch_tokens, order):
    alone = [DecodingEngine(llm).run([writing(TEXTS[k])])[0] for k in order]
    decoder = DecodingEngine(llm, max_slots=max_slots, max_batch_tokens=max_batch_tokens)
    assert_same(decoder.run([writing(TEXTS[k]) for k in order]), alone)


def test_every_prefix_goes_through_once(llama):
    text, prompts = TEXTS[3], ((33, 34), (35,), (36, 37, 38))
    decoder = DecodingEngine(llama)
    answers = decoder.run([writing(text, prompts, Anything(4), draft=0)])[0]
    # Nothing is decoded after the last token of an answer, so it doesn't go through the LLM.
    assert [len(a.ids) for a in answers] == [4, 4, 4]
    assert decoder.tokens == len(text) + 6 + 3 * 3
    assert decoder.passes == 4


@pytest.mark.parametrize("size", [1, 3, 50])
def test_attention_block_by_block(llm, monkeypatch, size):
    """The result doesn't depend on how a pass is split into blocks, or on what else is in the cache."""
    monkeypatch.setattr(tree_attention, "BLOCK_SIZE", 10_000)
    alone = [DecodingEngine(llm).run([writing(text)])[0] for text in TEXTS]
    monkeypatch.setattr(tree_attention, "BLOCK_SIZE", size)
    assert_same(DecodingEngine(llm).run(map(writing, TEXTS)), alone)


def test_finished_branches_add_nothing(llama):
    def request(tree):
        parent = tree.add(None, [5, 6, 7])
        lengths = [1, 5, 2]
        branches = [decode(tree, parent, [9 + n], Anything(n), draft=0) for n in lengths]
        return (yield from run_parallel(tree, branches))

    decoder = DecodingEngine(llama)
    tokens = []
    for _ in decoder.steps([request]):
        tokens.append(decoder.tokens - sum(tokens))
    assert tokens == [6, 2, 1, 1, 1]
    assert decoder.passes == 5


def test_prefill_in_pieces(llama):
    decoder = DecodingEngine(llama, max_batch_tokens=10)
    decoder.run([writing(TEXTS[3], ((33,),), Anything(1))])
    assert (decoder.tokens, decoder.passes) == (41, 5)


def count_together(lengths, max_slots, llm):
    """RETURNS: the maximum number of concurrent requests, the number of rounds, and the highest slot."""
    inside, most, slots = set(), [0], []

    def request(i):
        def steps(tree):
            node = tree.add(None, [5] * lengths[i])
            slots.append(int(node.path.max()))
            yield
            inside.add(i)
            most[0] = max(most[0], len(inside))
            yield from decode(tree, node, [6], Anything(2), draft=0)
            inside.remove(i)

        return steps

    rounds = list(DecodingEngine(llm, max_slots=max_slots).steps(map(request, range(len(lengths)))))
    return most[0], len(rounds), max(slots)


def test_requests_wait_for_memory(llama):
    assert count_together([20] * 6, 10_000, llama) == (6, 3, 120)
    most, rounds, slots = count_together([20] * 6, 50, llama)
    assert (most, rounds) == (2, 9)
    assert slots <= 64
    # A request that is larger than the budget runs alone.
    assert count_together([20, 90, 20], 50, llama)[:2] == (1, 9)
    assert count_together([90], 1, llama)[:2] == (1, 3)


def test_waiting_requests_join_as_others_end(llama):
    def request(n):
        return lambda tree: decode(tree, tree.add(None, [5] * 10), [6], Anything(n), draft=0)

    decoder = DecodingEngine(llama, max_slots=26)
    lengths = [2, 9, 2, 4]
    ends = {}
    for k, results in enumerate(decoder.steps(map(request, lengths)), 1):
        for i, result in enumerate(results):
            if result is not None:
                ends.setdefault(i, k)
    # The third request needs the slots of the first. The long one runs all the time.
    assert ends == {0: 2, 1: 9, 2: 4, 3: 8}
    assert decoder.passes == 9


def test_steps_round_by_round(llama):
    requests = [writing([5, 6, 7], ((8,),), Anything(n)) for n in (3, 1, 2)]
    decoder = DecodingEngine(llama)
    done = []
    for results in decoder.steps(requests):
        done.append([result is not None for result in results])
        assert decoder.passes == len(done)
    assert done[0] == [False, True, False]
    assert done[-1] == [True, True, True]
    assert_same(results, DecodingEngine(llama).run(requests))


def test_nothing_to_do(llama):
    decoder = DecodingEngine(llama)
    assert decoder.run([]) == []
    assert list(decoder.steps([])) == []

    def nothing(tree):
        return 7
        yield

    assert decoder.run([nothing] * 3) == [7, 7, 7]
    assert (decoder.passes, decoder.tokens) == (0, 0)


def test_slots_are_used_again(llama):
    """Memory does not grow with the number of requests."""

    def request(i):
        def steps(tree):
            node = tree.add(None, [5] * (10 + i % 7))
            answer = yield from decode(tree, node, [6], Anything(3), draft=i % 3)
            return int(node.path.max()), answer.ids

        return steps

    decoder = DecodingEngine(llama, max_slots=100)
    first = decoder.run(map(request, range(100)))
    second = decoder.run(map(request, range(100)))
    assert max(slot for slot, _ in first + second) < 128
    assert [ids for _, ids in first] == [ids for _, ids in second]


def most_slots(decoder, request):
    """RETURNS: the result of a request, and the maximum number of slots in use."""
    rounds = [(decoder.slots.used, results) for results in decoder.steps([request])]
    return rounds[-1][1][0], max(used for used, _ in rounds)


def test_branches_of_one_request_wait_for_memory(llm):
    """Only as many branches run as the budget allows. Branches release their slots when they end."""

    def leaf(tree, parent, k):
        return decode(tree, parent, [6, 10 + k % 50], Anything(1 + k % 7), draft=k % 3)

    def branch(tree, stem, k):
        node = tree.add(stem, [30 + k % 40, 31, 32])
        yield
        return (yield from run_parallel(tree, [leaf(tree, node, k + n) for n in range(k % 5)]))

    def request(tree):
        stem = tree.add(None, TEXTS[3])
        return (yield from run_parallel(tree, [branch(tree, stem, k) for k in range(80)]))

    found, most = most_slots(DecodingEngine(llm, max_slots=100), request)
    expected, without_budget = most_slots(DecodingEngine(llm, max_slots=100_000), request)
    # One step of one branch and the rest of the first one can exceed the budget.
    assert most <= 100 + 25
    assert without_budget > 800
    assert_same(found, expected)


def test_what_was_not_read_is_dropped(llama):
    """A branch that ends also releases the slots of nodes that did not go through the LLM."""

    def careless(tree, parent):
        tree.add(parent, [6] * 20)
        return 7
        yield

    def request(tree):
        parent = tree.add(None, [5])
        return (yield from run_parallel(tree, [careless(tree, parent), decode_after(tree, parent)]))

    def decode_after(tree, parent):
        yield
        return (yield from decode(tree, parent, [6], Anything(2), draft=0)).ids

    decoder = DecodingEngine(llama)
    (found,) = decoder.run([request])
    (alone,) = decoder.run([lambda tree: decode(tree, tree.add(None, [5]), [6], Anything(2))])
    assert found == [7, alone.ids]
    assert decoder.slots.used == 0
    assert decoder.tokens == 2 * 3


@pytest.mark.parametrize("when", ["at once", 0, 1, 2])
def test_program_that_raises(llm, when):
    def broken(tree):
        node = tree.add(None, [5] * 30)
        if when == "at once":
            raise KeyError("broken")
        return broken_later(tree, node)

    def broken_later(tree, node):
        for k in range(3):
            if k == when:
                raise KeyError("broken")
            yield
            node = tree.add(node, [6])

    before = plain(llm, TEXTS[1])
    decoder = DecodingEngine(llm)
    expected = decoder.run([writing(TEXTS[1])])
    for _ in range(5):
        with pytest.raises(KeyError, match="broken"):
            decoder.run([writing(TEXTS[3]), broken, writing(TEXTS[0])])
        assert_same(decoder.run([writing(TEXTS[1])]), expected)
    assert np.array_equal(plain(llm, TEXTS[1]), before)
    # The slots of the failed runs were released.
    slots = decoder.run([first_slot])
    assert slots == [FIRST]


def test_program_that_never_asks(llama):
    def request(tree):
        tree.add(None, [5] * 30)
        return 7
        yield

    decoder = DecodingEngine(llama)
    assert decoder.run([request, request]) == [7, 7]
    assert (decoder.passes, decoder.run([first_slot])) == (0, [FIRST])


def first_slot(tree):
    node = tree.add(None, [5])
    yield
    return int(node.path[0])


def test_steps_that_are_left(llama):
    decoder = DecodingEngine(llama)
    closed = []

    def request(tree):
        try:
            yield from decode(tree, tree.add(None, [5] * 9), [6], Anything(5))
        finally:
            closed.append(True)

    steps = decoder.steps([request, request])
    next(steps)
    steps.close()
    assert closed == [True, True]
    assert decoder.run([first_slot]) == [FIRST]


@pytest.mark.parametrize("begin", [None, [5, 6, 7]])
def test_model_that_fails(llama, monkeypatch, begin):
    decoder = DecodingEngine(llama, prefix=begin and Prefix(begin))
    rule = spelt(TEXTS[1])
    expected = DecodingEngine(llama).run([writing([*(begin or ()), *TEXTS[1]], constraint=rule)])

    def fail(*args, **kwargs):
        raise torch.OutOfMemoryError("full")

    with monkeypatch.context() as context:
        context.setattr(llama.model.model.layers[2].mlp, "forward", fail)
        with pytest.raises(torch.OutOfMemoryError):
            decoder.run([writing(TEXTS[1])])
    assert decoder.slots.used == 0
    assert_same(decoder.run([writing(TEXTS[1])]), expected)
    decoder.prefix = None
    assert decoder.run([first_slot]) == [FIRST]


def test_threads_do_not_mix(llm, monkeypatch):
    """Two threads go through the blocks in step, each with its own requests."""
    jobs = [[writing(TEXTS[k], ((33,), (34,)), Anything(4), draft=0)] for k in (1, 3)]
    expected = [DecodingEngine(llm).run(job) for job in jobs]
    barrier = threading.Barrier(2)
    block = type(next(m for n, m in llm.decoder.named_modules() if n.endswith(".0")))
    forward = block.forward

    def in_step(self, *args, **kwargs):
        barrier.wait(timeout=60)
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(block, "forward", in_step)
    found = {}

    def work(k):
        found[k] = DecodingEngine(llm).run(jobs[k])

    threads = [threading.Thread(target=work, args=(k,)) for k in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for k in range(2):
        assert_same(found[k], expected[k], 0)


@given(st.data())
def test_mask_of_a_pass_that_splits_nodes(data):
    """Each token attends to the slots on its path from the root, also if a node doesn't fit into a pass."""
    tree = Tree(KVSlots(100))
    nodes = []
    for _ in range(data.draw(st.integers(1, 5))):
        parent = data.draw(st.sampled_from([None, *nodes]))
        nodes.append(tree.add(parent, range(data.draw(st.integers(1, 4)))))
    tokens = [(node, k) for node in nodes for k in range(len(node.ids))]
    start = data.draw(st.integers(0, len(tokens) - 1))
    tokens = tokens[start : data.draw(st.integers(start + 1, len(tokens)))]
    mask, n_slots = tree_mask(tokens)
    assert mask.shape == (len(tokens), n_slots)
    for row, (node, k) in zip(mask, tokens):
        assert np.flatnonzero(row).tolist() == sorted(node.path[: node.first + k + 1].tolist())
