"""Requests for the tests of the decoding engine, and reference results of the plain model."""

from types import SimpleNamespace

import numpy as np
import torch

from spacy_llmner.decoding.generate import decode, run_parallel
from spacy_llmner.decoding.substrings import substring_constraint
from spacy_llmner.llm.word_tokens import WordTokens

END = 1
TEXTS = [
    [5, 6, 7, 8, 9, 10, 11, 12],
    [20, 21, 20, 22, 20, 21, 23, 24, 25, 26, 20, 21, 27, 28, 29, 30, 31],
    [40],
    list(range(50, 90)),
    [7, 7, 7, 7, 7],
]


class Anything:
    """A constraint: n tokens, each from the first `size` tokens of the vocabulary."""

    def __init__(self, n, size=300):
        self.n = n
        self.every = np.arange(size)
        self.start = ()

    def allowed(self, state):
        return self.every if len(state) < self.n else self.every[:0]

    def advance(self, state, token):
        return (*state, token)

    def guess(self, state):
        return 17


def spelt(ids, size=2):
    """A constraint: substrings of a text with `size` tokens per word."""
    first = np.arange(0, len(ids), size)
    last = np.append(first, len(ids))[1:] - 1
    return substring_constraint(
        WordTokens(np.array(ids), first, last, np.stack([first, last + 1], 1)), END
    )


def writing(text, prompts=((33, 34), (35,), (36, 37, 38)), constraint=None, **how):
    """A request: a text after the engine's prefix, if any, with branches that decode substrings."""

    def request(tree):
        parent = tree.add(tree.prefix, text)
        rule = constraint or spelt(text)
        branches = [decode(tree, parent, prompt, rule, **how) for prompt in prompts]
        return (yield from run_parallel(tree, branches))

    return request


@torch.no_grad()
def plain(llm, ids):
    """Compute log-probabilities of the next token with transformers itself."""
    return llm.model(torch.tensor([ids])).logits[0, -1].double().log_softmax(0).numpy()


def reference(llm, ids, constraint, max_tokens=256):
    """Decode with the plain model, without a tree, a cache or drafts."""
    out = SimpleNamespace(ids=[], log_probs=[], raw_log_probs=[])
    state = constraint.start
    while len(constraint.allowed(state)) and len(out.ids) < max_tokens:
        allowed = constraint.allowed(state)
        raw = plain(llm, [*ids, *out.ids])[allowed]
        k = int(raw.argmax())
        out.ids.append(int(allowed[k]))
        out.log_probs.append(float(raw[k] - np.logaddexp.reduce(raw)))
        out.raw_log_probs.append(float(raw[k]))
        state = constraint.advance(state, out.ids[-1])
    return out


def assert_same(found, expected, tolerance=1e-4):
    """Compare the results of two lists of requests. Each result is a list of answers."""
    assert len(found) == len(expected)
    for answers, others in zip(found, expected):
        assert [a.ids for a in answers] == [a.ids for a in others]
        for a, b in zip(answers, others):
            np.testing.assert_allclose(a.log_probs, b.log_probs, rtol=0, atol=tolerance)
