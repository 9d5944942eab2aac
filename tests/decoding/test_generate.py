import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spacy_llmner.decoding.constraints import Choices
from spacy_llmner.decoding.engine import DecodingEngine
from spacy_llmner.decoding.generate import decode
from spacy_llmner.llm.registry import make_llm
from tests.decoding.helpers import (
    END,
    TEXTS,
    Anything,
    assert_same,
    plain,
    reference,
    spelt,
    writing,
)


@pytest.fixture
def llm(any_llm, load):
    return load(any_llm)


@pytest.fixture
def llama(tiny_llm, load):
    return load(tiny_llm)


def test_logits_under_a_tree(llm):
    """One pass scores the tokens after all positions of texts with nested branches."""
    every = np.arange(llm.model.config.vocab_size)

    def ask(ids):
        return dict.fromkeys(range(len(ids)), every)

    def request(text):
        def steps(tree):
            nodes = [(tree.add(None, text, ask(text)), text)]
            for parent, ids in [(0, [3, 4]), (0, [4]), (1, [8, 9, 7]), (1, [3]), (4, [6, 6])]:
                node, before = nodes[parent]
                nodes.append((tree.add(node, ids, ask(ids)), before + ids))
            yield
            return nodes

        return steps

    decoder = DecodingEngine(llm, raw=True)
    texts = [TEXTS[1], TEXTS[3], TEXTS[0]]
    for nodes in decoder.run(map(request, texts)):
        for node, ids in nodes:
            assert len(node) == len(ids)
            for k in range(len(node.ids)):
                scores = node.scores(k)
                expected = plain(llm, ids[: node.first + k + 1])
                np.testing.assert_allclose(scores.log_probs, expected, rtol=0, atol=1e-4)
                assert scores.total == pytest.approx(0, abs=1e-4)
                assert scores.best()[0] == int(expected.argmax())
    assert decoder.passes == 1
    assert decoder.tokens == sum(len(text) + 9 for text in texts)


def test_writes_what_the_plain_model_writes(llm):
    found = DecodingEngine(llm, raw=True).run([writing(text, raw=True) for text in TEXTS])
    for answers, text in zip(found, TEXTS):
        for answer, prompt in zip(answers, ((33, 34), (35,), (36, 37, 38))):
            expected = reference(llm, [*text, *prompt], spelt(text))
            assert answer.ids == expected.ids
            assert answer.complete
            for name in ("log_probs", "raw_log_probs"):
                values = getattr(answer, name), getattr(expected, name)
                np.testing.assert_allclose(*values, rtol=0, atol=1e-4)


def test_half_precision(tiny_llm, load):
    """The same as in float32 up to rounding errors: 0.1 in log-probabilities over 300 tokens."""
    prompts, rule = ((33,), (34, 35)), Anything(1)
    requests = [writing(text, prompts, rule) for text in TEXTS]
    full = DecodingEngine(load(tiny_llm)).run(requests)
    half = load(tiny_llm, "bfloat16")
    together_, alone = (
        DecodingEngine(half).run(requests),
        [DecodingEngine(half).run([p])[0] for p in requests],
    )
    for a, b, c in zip(together_, alone, full):
        for x, y, z in zip(a, b, c):
            assert x.log_probs[0] == pytest.approx(y.log_probs[0], abs=0.1)
            assert x.log_probs[0] == pytest.approx(z.log_probs[0], abs=0.3)


def test_forced_continuations_are_not_asked(llama):
    decoder = DecodingEngine(llama)
    one = Choices([(3, 4, 5, END)])
    answer = decoder.run([lambda tree: decode(tree, tree.add(None, [5, 6]), [7], one)])[0]
    assert (answer.ids, answer.log_probs) == ([3, 4, 5, END], [0, 0, 0, 0])
    assert all(math.isnan(p) for p in answer.raw_log_probs)
    assert decoder.passes == 0
    # There is one choice in the middle. The forced tokens before it are read along with the prompt.
    two = Choices([(3, 4, 5, 6, END), (3, 4, 9, 8, END)])
    answer = decoder.run([lambda tree: decode(tree, tree.add(None, [5, 6]), [7], two)])[0]
    assert answer.ids == reference(llama, [5, 6, 7], two).ids
    assert (decoder.passes, decoder.tokens) == (1, 5)
    assert [p != 0 for p in answer.log_probs] == [False, False, True, False, False]


def test_raw_asks_for_forced_ones_too(llama):
    rule = Choices([(3, 4, 5, 6, END), (3, 4, 9, 8, END)])
    request = writing([5, 6], ((7,),), rule, raw=True)
    answer = DecodingEngine(llama, raw=True).run([request])[0][0]
    expected = reference(llama, [5, 6, 7], rule)
    assert answer.ids == expected.ids
    np.testing.assert_allclose(answer.raw_log_probs, expected.raw_log_probs, rtol=0, atol=1e-4)
    np.testing.assert_allclose(answer.log_probs, expected.log_probs, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("most", "complete"), [(0, False), (3, False), (4, True), (9, True)])
def test_length_runs_out(llama, most, complete):
    request = writing([5, 6], ((7,),), Anything(4), max_tokens=most)
    answer = DecodingEngine(llama).run([request])[0][0]
    assert len(answer.ids) == len(answer.log_probs) == min(most, 4)
    assert answer.complete is complete
    assert answer.state == tuple(answer.ids)


@pytest.mark.parametrize("most", [1, 3, 6])
def test_nothing_is_read_behind_the_last_token(llama, most):
    """Not even guesses are read, since the LLM may have no positions for them."""
    decoder = DecodingEngine(llama)
    how = {"max_tokens": most, "guess": [17] * 8}
    answer = decoder.run([writing([5, 6], ((7,),), Anything(8), **how)])[0][0]
    assert len(answer.ids) == most
    assert decoder.slots.positions.max() < 3 + most - 1


def test_empty_constraint(llama):
    decoder = DecodingEngine(llama)
    answers = decoder.run([writing([5, 6], constraint=rule) for rule in (Anything(0), spelt([]))])
    assert [a.ids for pair in answers for a in pair] == [[]] * 6
    assert all(a.complete for pair in answers for a in pair)
    assert decoder.passes == 0


def test_answer_behind_what_was_asked_before(llama):
    """Without a prompt, the first token is chosen with the scores of the parent."""
    rule = Anything(3)

    def request(tree):
        node = tree.add(None, [5, 6, 7], {-1: rule.allowed(rule.start)})
        yield
        return (yield from decode(tree, node, [], rule, draft=0))

    decoder = DecodingEngine(llama)
    answer = decoder.run([request])[0]
    assert answer.ids == reference(llama, [5, 6, 7], rule).ids
    assert (decoder.passes, decoder.tokens) == (3, 5)


TOKENS = st.integers(0, 300)
# Few different tokens, so that substrings have many occurrences.
SMALL_TEXTS = st.lists(st.integers(5, 9), min_size=1, max_size=16)


@settings(max_examples=60)
@given(
    text=SMALL_TEXTS,
    size=st.integers(1, 3),
    right=st.integers(0, 12),
    wrong=st.lists(TOKENS, max_size=5),
    draft=st.integers(0, 6),
    raw=st.booleans(),
    max_tokens=st.sampled_from([2, 5, 256]),
)
def test_guesses_change_nothing(tiny_llm, text, size, right, wrong, draft, raw, max_tokens):
    llm = make_llm(tiny_llm, dtype="float32", device="cpu").load()
    rule = spelt(text, size)
    how = {"raw": raw, "max_tokens": max_tokens}
    slow = DecodingEngine(llm, raw=raw)
    expected = slow.run([writing(text, ((10, 11),), rule, draft=0, **how)])[0][0]
    guess = [*expected.ids[:right], *wrong]
    fast = DecodingEngine(llm, raw=raw)
    answer = fast.run([writing(text, ((10, 11),), rule, draft=draft, guess=guess, **how)])[0][0]
    assert_same([[answer]], [[expected]])
    np.testing.assert_allclose(answer.raw_log_probs, expected.raw_log_probs, rtol=0, atol=1e-4)
    assert rule.spans(answer.state) == rule.spans(expected.state)
    assert answer.complete == expected.complete
    assert fast.passes <= slow.passes


@pytest.mark.parametrize("draft", [0, 3])
def test_right_guesses_save_passes(llm, draft):
    rule = Anything(8)
    request = writing(TEXTS[3], ((33,),), rule, draft=draft)
    slow = DecodingEngine(llm)
    expected = slow.run([request])[0][0]
    assert slow.passes == 8
    fast = DecodingEngine(llm)
    guessed = writing(TEXTS[3], ((33,),), rule, draft=draft, guess=expected.ids)
    assert_same(fast.run([guessed]), [[expected]])
    assert fast.passes == 1


@pytest.mark.llm
def test_smollm2_batched_as_the_plain_model(smollm2):
    handle = make_llm(str(smollm2), dtype="float32", device="cpu")
    llm = handle.load()
    texts = [
        "Ada Hale met Bo Lund in Bonn.",
        "王小明在北京大学学习。",
        "Nobody came to Rome, he said.",
    ]
    ids = [llm.tokenizer.bos + llm.tokenizer.encode(text).ids for text in texts]
    prompt = tuple(llm.tokenizer.encode("\nName: ").ids)
    decoder = DecodingEngine(llm, raw=True, max_batch_tokens=20)
    found = decoder.run(
        [writing(text, (prompt, (33, 34)), spelt(text, 1), raw=True) for text in ids]
    )
    for answers, text in zip(found, ids):
        for answer, ask in zip(answers, (prompt, (33, 34))):
            expected = reference(llm, [*text, *ask], spelt(text, 1))
            assert answer.ids == expected.ids
            for name in ("log_probs", "raw_log_probs"):
                values = getattr(answer, name), getattr(expected, name)
                np.testing.assert_allclose(*values, rtol=0, atol=1e-3)
    handle.unload()
