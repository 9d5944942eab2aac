"""Streams side by side: each has the text, the events and the Doc that it has alone."""

import threading

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spacy_llmner.ember_probe.streaming import rounds
from spacy_llmner.ember_probe.streaming.events import EntityEvent, TextPiece
from spacy_llmner.ember_probe.streaming.pool import PooledStream
from spacy_llmner.ember_probe.streaming.redaction import Redactor
from spacy_llmner.ember_probe.streaming.rounds import StreamRounds
from spacy_llmner.errors import LLMNERError
from spacy_llmner.llm.growing_texts import GrowingTexts, SeparateTexts
from tests.ember_probe.helpers import entities
from tests.ember_probe.streaming.test_stream import (  # noqa: F401
    any_streaming,
    assert_consistent,
    run,
    stream_of,
    streaming_llm,
)

PROMPTS = [
    "Mira Stone met Oskar Blum in Varnholm. In Port",
    "Tea",
    "Oskar Blum in Port Ellam, and then Mira in Varnholm: " * 3,
    "In Varnholm, it rains.",
    "王小明 met Mira",
]


def streams_of(nlp, max_streams=8):
    return nlp.get_pipe("ember_probe").streams(max_streams)


def summary(stream, text, events):
    final = [(e.start, e.end, e.label, e.status) for e in events]
    return text, final, entities(stream.doc), stream.stop_reason


def assert_same_as_alone(nlp, prompt, stream, **options):
    text, events = run(stream)
    assert_consistent(stream, text, events)
    alone = stream_of(nlp, prompt, **options)
    assert summary(stream, text, events) == summary(alone, *run(alone))


def test_several_streams(any_streaming):  # noqa: F811
    with streams_of(any_streaming) as pool:
        started = [pool.start(prompt, max_new_tokens=12) for prompt in PROMPTS]
        for prompt, stream in zip(PROMPTS, started):
            assert_same_as_alone(any_streaming, prompt, stream, max_new_tokens=12)


def test_every_kind_of_llm(streaming_llm):  # noqa: F811
    nlp = streaming_llm()
    with streams_of(nlp, max_streams=3) as pool:
        started = [pool.start(prompt, max_new_tokens=10) for prompt in PROMPTS]
        for prompt, stream in zip(PROMPTS, started):
            assert_same_as_alone(nlp, prompt, stream, max_new_tokens=10)


def test_each_stream_has_its_own_settings(trained):
    options = [
        {"max_new_tokens": 20, "temperature": 0.8, "top_p": 0.9, "seed": 3},
        {"max_new_tokens": 7, "repetition_penalty": 1.3},
        {"max_new_tokens": 15, "temperature": 1.1, "seed": 4, "stop": ["a"]},
        {"max_new_tokens": 0},
        {"max_new_tokens": 1},
    ]
    with streams_of(trained) as pool:
        started = [pool.start(prompt, **own) for prompt, own in zip(PROMPTS, options)]
        for prompt, own, stream in zip(PROMPTS, options, started):
            assert_same_as_alone(trained, prompt, stream, **own)


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True, max_examples=25
)
@given(
    plan=st.lists(
        st.tuples(st.integers(0, 9), st.sampled_from(PROMPTS), st.integers(0, 12), st.booleans()),
        min_size=1,
        max_size=6,
    ),
    part=st.integers(1, 40),
)
def test_streams_begin_and_end_at_any_time(trained, plan, part):
    """Begin streams after any number of rounds, with prompts in parts of any size, and cancel some."""
    predictor = trained.get_pipe("ember_probe").predictor()
    side_by_side = StreamRounds(predictor.llm, predictor.reader.probed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rounds, "PROMPT_PART", part)
        made = []
        for k in range(200):
            for begin, prompt, n, is_cancelled in plan:
                if begin == k:
                    stream = PooledStream(predictor, prompt, max_new_tokens=n)
                    side_by_side.add(stream)
                    made.append((stream, prompt, n, is_cancelled))
            if k == 10:
                for stream, *_, is_cancelled in made:
                    if is_cancelled:
                        stream.cancel()
            side_by_side.round()
        assert not side_by_side.running
    assert not side_by_side.texts._texts and not side_by_side.texts._prompts
    for stream, prompt, n, is_cancelled in made:
        if is_cancelled:
            text, events = run(stream)
            if stream.doc is not None:
                assert_consistent(stream, text, events)
        else:
            assert_same_as_alone(trained, prompt, stream, max_new_tokens=n)


def test_the_tokens_of_all_streams_share_a_pass(trained):
    predictor = trained.get_pipe("ember_probe").predictor()
    side_by_side = StreamRounds(predictor.llm, predictor.reader.probed)
    for prompt in PROMPTS:
        side_by_side.add(PooledStream(predictor, prompt, max_new_tokens=10))
    for _ in PROMPTS:
        side_by_side.round()
    shapes = []
    hook = predictor.llm.model.model.embed_tokens.register_forward_hook(
        lambda module, args, out: shapes.append(tuple(args[0].shape))
    )
    try:
        side_by_side.round()
    finally:
        hook.remove()
    assert shapes == [(len(PROMPTS), 1)]


def test_attention_rows_are_read_separately(trained, paper):
    for nlp, kind in ((trained, GrowingTexts), (paper("current"), SeparateTexts)):
        predictor = nlp.get_pipe("ember_probe").predictor()
        assert type(StreamRounds(predictor.llm, predictor.reader.probed).texts) is kind


def test_a_stream_that_fails_does_not_affect_the_others(trained):
    with streams_of(trained) as pool:
        good = pool.start(PROMPTS[0], max_new_tokens=10)
        too_long = pool.start("Mira Stone " * 2000)
        also_good = pool.start(PROMPTS[1], max_new_tokens=10)
        with pytest.raises(LLMNERError, match="LLMNER080"):
            run(too_long)
        assert_same_as_alone(trained, PROMPTS[0], good, max_new_tokens=10)
        assert_same_as_alone(trained, PROMPTS[1], also_good, max_new_tokens=10)


def test_a_pass_that_fails_ends_its_streams_and_no_others(trained, monkeypatch):
    def fail(self, tokens):
        raise MemoryError("no room")

    with streams_of(trained) as pool:
        with monkeypatch.context() as patch:
            patch.setattr(GrowingTexts, "step", fail)
            with pytest.raises(MemoryError):
                run(pool.start(PROMPTS[0]))
        assert_same_as_alone(
            trained, PROMPTS[1], pool.start(PROMPTS[1], max_new_tokens=9), max_new_tokens=9
        )


def test_streams_wait_for_their_turn_and_can_be_cancelled_meanwhile(trained):
    with streams_of(trained, max_streams=1) as pool:
        first = pool.start(PROMPTS[0], max_new_tokens=200)
        waiting = pool.start(PROMPTS[1], max_new_tokens=5)
        given_up = pool.start(PROMPTS[1])
        given_up.cancel()
        assert list(given_up) == [] and given_up.doc is None
        assert given_up.stop_reason == "cancelled"
        assert pool.n_streams == 2
        first.cancel()
        text, events = run(first)
        assert_consistent(first, text, events)
        assert_same_as_alone(trained, PROMPTS[1], waiting, max_new_tokens=5)


def test_stopping_the_iteration_cancels_the_stream(trained):
    with streams_of(trained) as pool:
        stream = pool.start(PROMPTS[0], max_new_tokens=100_000)
        for event in stream:
            if isinstance(event, (TextPiece, EntityEvent)):
                break
        pool.close()
        assert stream.stop_reason in ("cancelled", "length")
        list(stream)  # the rest of the events, which ends


def test_streams_from_several_threads(trained):
    results = {}

    def ask(prompt):
        results[prompt] = run(pool.start(prompt, max_new_tokens=8))[0]

    with streams_of(trained, max_streams=2) as pool:
        threads = [threading.Thread(target=ask, args=(prompt,)) for prompt in PROMPTS]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for prompt in PROMPTS:
        assert results[prompt] == run(stream_of(trained, prompt, max_new_tokens=8))[0]


def test_redaction_while_another_thread_writes(trained):
    options = {"max_new_tokens": 60}
    alone = stream_of(trained, PROMPTS[2], **options)
    redactor = Redactor(alone)
    expected = "".join(redactor.release() for _ in alone) + redactor.release()
    assert "[PER]" in expected
    with streams_of(trained) as pool:
        started = [pool.start(PROMPTS[2], **options) for _ in range(4)]
        for stream in started:
            redactor = Redactor(stream)
            got = "".join(redactor.release() for _ in stream) + redactor.release()
            assert got == expected


def test_a_closed_pool_refuses_streams(trained):
    with streams_of(trained) as pool:
        stream = pool.start(PROMPTS[0], max_new_tokens=100_000)
    assert stream.stop_reason == "cancelled"
    with pytest.raises(LLMNERError, match="LLMNER154"):
        pool.start(PROMPTS[0])


@pytest.mark.parametrize("value", [0, -1, 1.5, "many", None])
def test_invalid_number_of_streams(trained, value):
    with pytest.raises(LLMNERError, match="max_streams"):
        streams_of(trained, value)


def test_invalid_settings_are_raised_at_the_start(trained):
    with streams_of(trained) as pool, pytest.raises(LLMNERError, match="temperature"):
        pool.start(PROMPTS[0], temperature=-1)
