"""Passes of few tokens are recorded on a GPU and replayed. Here recording is a plain second run, so that
everything except CUDA itself is tested without a GPU."""

import logging
import sys
from contextlib import contextmanager

import pytest
import torch

from spacy_llmner.decoding import engine as decoding
from spacy_llmner.decoding.engine import DecodingEngine
from spacy_llmner.decoding.forward import CUDAGraphPasses
from tests.decoding.helpers import TEXTS, writing

CPU = torch.device("cpu")


class Recorded(CUDAGraphPasses):
    """Counts recordings and replays."""

    def __init__(self, capacity=64):
        super().__init__(CPU, capacity)
        self.recorded, self.replayed = [], 0

    def _record(self, run):
        hidden = torch.empty_like(run())
        self.recorded.append(len(hidden))

        def replay():
            self.replayed += 1
            hidden.copy_(run())

        return replay, hidden


@pytest.fixture
def llm(any_llm, load):
    return load(any_llm)


@pytest.fixture
def use(monkeypatch):
    def use(passes):
        @contextmanager
        def forward_passes(*args):
            yield passes

        monkeypatch.setattr(decoding, "forward_passes", forward_passes)
        return passes

    return use


def written(llm, texts, **settings):
    answers = DecodingEngine(llm, **settings).run([writing(text) for text in texts])
    return [[(a.ids, a.log_probs) for a in of_text] for of_text in answers]


def near(answers):
    return [
        [(ids, pytest.approx(log_probs, abs=1e-4)) for ids, log_probs in of_text]
        for of_text in answers
    ]


def test_replayed_passes_answer_as_plain_ones(llm, use):
    expected = near(written(llm, TEXTS))
    passes = use(Recorded())
    for _ in range(2):
        for text, of_text in zip(TEXTS, expected):
            assert written(llm, [text]) == [of_text]
        assert written(llm, TEXTS) == expected
    assert passes.replayed > len(passes.recorded)
    assert set(passes.recorded) <= {8, 32, 128}


def test_what_was_recorded_is_forgotten_when_the_cache_moves(llm, use):
    expected = near(written(llm, TEXTS))
    passes = use(Recorded(capacity=4))
    assert written(llm, TEXTS[:1]) == expected[:1]
    before = len(passes.recorded)
    long = [TEXTS[3] * 6]  # more keys than the cache has slots
    assert len(written(llm, long, max_slots=4096)[0]) == 3
    assert written(llm, TEXTS) == expected
    assert len(passes.recorded) > before


def test_capacity_with_an_unlimited_budget():
    """An engine that stores texts between stages has no budget; its cache grows with its content."""
    assert CUDAGraphPasses(CPU, 2 * sys.maxsize).cache.capacity <= 4096


def test_llm_that_can_not_be_recorded(llm, use, caplog):
    class Broken(Recorded):
        def _record(self, run):
            raise RuntimeError("operation not permitted when stream is capturing")

    expected = near(written(llm, TEXTS))
    passes = use(Broken())
    with caplog.at_level(logging.WARNING, "spacy_llmner"):
        assert written(llm, TEXTS) == expected
        assert written(llm, TEXTS) == expected
    assert passes.replayed == 0
    assert caplog.text.count("No CUDA graphs") == 1
