"""The common prefix of all requests: it is read once, and stored."""

import gc

import pytest

from spacy_llmner.decoding.engine import DecodingEngine, Prefix
from spacy_llmner.decoding.generate import decode
from spacy_llmner.llm.registry import make_llm
from tests.decoding.helpers import TEXTS, Anything, assert_same, spelt, writing


@pytest.fixture
def llm(any_llm, load):
    return load(any_llm)


@pytest.fixture
def llama(tiny_llm, load):
    return load(tiny_llm)


@pytest.mark.parametrize(
    ("max_slots", "max_batch_tokens"), [(10_000, 10_000), (60, 10_000), (1, 10_000), (10_000, 7)]
)
def test_prefix_is_read_once(llm, max_slots, max_batch_tokens):
    """The prefix of all texts goes through the LLM only once, for all runs of all engines."""
    begin = [50, 60, 50, 70, 80]
    expected, tokens = [], []
    for text in TEXTS:
        alone = DecodingEngine(llm)
        rule = spelt(text)
        expected += alone.run([writing([*begin, *text], constraint=rule)])
        tokens.append(alone.tokens)
    prefix = Prefix(begin)
    for first in (True, False):
        decoder = DecodingEngine(
            llm, prefix=prefix, max_slots=max_slots, max_batch_tokens=max_batch_tokens
        )
        assert_same(decoder.run(map(writing, TEXTS)), expected)
        assert decoder.slots.used == 0
        n_begins = sum(n > 0 for n in tokens) - first
        assert max_slots < 10_000 or decoder.tokens == sum(tokens) - n_begins * len(begin)
    assert_same(decoder.run(map(writing, TEXTS)), expected)
    other = Prefix([50, 60])
    assert_same(
        DecodingEngine(llm, prefix=other).run(
            [writing([50, 70, 80, *TEXTS[0]], constraint=spelt(TEXTS[0]))]
        ),
        expected[:1],
    )


def rooted(prompt):
    """A request: decode after a prompt that begins with the prefix."""

    def request(tree):
        node = tree.root(prompt)
        return [(yield from decode(tree, node, [9], Anything(3)))]

    return request


@pytest.mark.parametrize("begin", [None, [5], [5, 6, 7]])
def test_root(llama, begin):
    """`root` adds a prompt, which can consist of the prefix only."""
    prompts = [[5, 6, 7], [5, 6, 7, 8, 9]]
    alone = [DecodingEngine(llama).run([rooted(prompt)])[0] for prompt in prompts]
    decoder = DecodingEngine(llama, prefix=begin and Prefix(begin))
    for _ in range(2):
        assert_same(decoder.run(map(rooted, prompts)), alone)


@pytest.mark.parametrize("prompt", [[5, 7, 8], [5]])
def test_root_begins_with_the_prefix(llama, prompt):
    decoder = DecodingEngine(llama, prefix=Prefix([5, 6]))
    with pytest.raises(AssertionError):
        decoder.run([rooted(prompt)])
    assert decoder.slots.used == 0


def test_prefix_is_not_read_for_nothing(llama):
    def nothing(tree):
        return 7
        yield

    decoder = DecodingEngine(llama, prefix=Prefix([5, 6]))
    assert decoder.run([nothing] * 3) == [7, 7, 7] and decoder.run([]) == []
    assert (decoder.passes, decoder.tokens, decoder.slots.used) == (0, 0, 0)


def test_prefix_goes_with_the_llm(tiny_llm):
    handle = make_llm(tiny_llm, device="cpu")
    prefix = Prefix([5, 6])
    DecodingEngine(handle.load(), prefix=prefix).run([rooted([5, 6, 7])])
    assert len(prefix.read) == 1
    handle.unload()
    gc.collect()
    assert not prefix.read


def test_prefix_of_each_decoder_is_its_own(llama, load, other_llm):
    prefix = Prefix([5, 6, 7])
    for llm in (llama, load(other_llm)):
        alone = DecodingEngine(llm).run([writing([5, 6, 7, *TEXTS[0]], constraint=spelt(TEXTS[0]))])
        for _ in range(2):
            assert_same(DecodingEngine(llm, prefix=prefix).run([writing(TEXTS[0])]), alone)


def test_steps_that_are_left_behind_a_prefix(llama):
    prefix = Prefix([5, 6, 7])
    alone = DecodingEngine(llama).run([rooted([5, 6, 7, 8])])
    for n_rounds in (0, 1, 2):
        decoder = DecodingEngine(llama, prefix=prefix)
        steps = decoder.steps([rooted([5, 6, 7, 8])])
        for _ in range(n_rounds):
            next(steps)
        steps.close()
        assert decoder.slots.used == 0
        assert_same(decoder.run([rooted([5, 6, 7, 8])]), alone)
