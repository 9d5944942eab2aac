import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spacy_llmner.ember_probe.features.batch import WordBatch
from spacy_llmner.ember_probe.features.words import WordFeatures
from spacy_llmner.ember_probe.probes.base import Dims
from spacy_llmner.ember_probe.probes.segmentation import (
    IMPOSSIBLE,
    Chain,
    mask_blank,
    mask_crossing,
)
from spacy_llmner.ember_probe.probes.semi_markov import (
    NEVER,
    SemiMarkovDecoder,
    decode_texts,
    loss_and_gradient,
    probabilities,
)
from spacy_llmner.ember_probe.probes.structured import StructuredProbe, StructuredSettings

SIZES = st.tuples(
    st.integers(1, 5), st.integers(1, 3), st.integers(1, 2), st.integers(0, 2**32 - 1)
)


def random_scores(n_words, max_words, n_labels, seed, spread=2.0):
    scores = np.random.default_rng(seed).normal(0, spread, (n_words, max_words, n_labels))
    ends, lengths = np.indices((n_words, max_words))
    scores[lengths > ends] = NEVER
    return scores


def segmentations(n_words, max_words, n_labels, start=0):
    """All ways to cut a text into words outside and mentions (start, end, label)."""
    if start == n_words:
        yield ()
        return
    for rest in segmentations(n_words, max_words, n_labels, start + 1):
        yield rest
    for end in range(start + 1, min(start + max_words, n_words) + 1):
        for rest in segmentations(n_words, max_words, n_labels, end):
            for label in range(n_labels):
                yield ((start, end, label), *rest)


def weight(scores, mentions, bias=0.0):
    return sum(scores[e - 1, e - s - 1, c] + bias for s, e, c in mentions)


@settings(deadline=None, max_examples=40)
@given(SIZES)
def test_probabilities_are_those_of_all_segmentations(size):
    scores = random_scores(*size)
    ways = list(segmentations(*size[:3]))
    logs = np.array([weight(scores, way) for way in ways])
    total = np.log(np.exp(logs).sum())
    expected = np.zeros(scores.shape)
    for way, log in zip(ways, logs):
        for s, e, c in way:
            expected[e - 1, e - s - 1, c] += np.exp(log - total)
    posterior, partition = probabilities(scores[None])
    assert np.allclose(posterior[0], expected, atol=1e-9)
    assert np.allclose(partition[0], total)


@settings(deadline=None, max_examples=40)
@given(SIZES, st.sampled_from([0.1, 0.5, 0.8]))
def test_decoder_finds_the_best_segmentation(size, threshold):
    scores = random_scores(*size)
    decoder = SemiMarkovDecoder(size[1], threshold)
    for row in scores:
        decoder.push(row)
    bias = np.log(1 - threshold) - np.log(threshold)
    best = max(weight(scores, way, bias) for way in segmentations(*size[:3]))
    assert weight(scores, decoder.chain.trace(), bias) == pytest.approx(best)


@settings(deadline=None, max_examples=60)
@given(SIZES, st.data())
def test_mentions_neither_begin_nor_end_with_blank_words(size, data):
    """Among the segmentations without such mentions, the best one is found."""
    scores = random_scores(*size)
    blank = data.draw(st.lists(st.booleans(), min_size=size[0], max_size=size[0]))
    decoder = SemiMarkovDecoder(size[1])
    for row, is_blank in zip(scores, blank):
        decoder.push(row, is_blank)
    found = decoder.chain.trace()
    ways = [
        way
        for way in segmentations(*size[:3])
        if not any(blank[s] or blank[e - 1] for s, e, _ in way)
    ]
    assert tuple(found) in ways
    assert weight(scores, found) == pytest.approx(max(weight(scores, way) for way in ways))
    logs = np.array([weight(scores, way) for way in ways])
    shares = np.exp(logs - np.log(np.exp(logs).sum()))
    for s, e, c in found:
        expected = sum(share for way, share in zip(ways, shares) if (s, e, c) in way)
        assert decoder.score(s, e, c) == pytest.approx(expected, abs=1e-9)
    posterior = probabilities(mask_blank(scores, blank)[None])[0][0]
    for s, e, c in found:
        assert posterior[e - 1, e - s - 1, c] == pytest.approx(decoder.score(s, e, c), abs=1e-9)


@settings(deadline=None, max_examples=40)
@given(SIZES)
def test_decoder_scores_are_the_posterior_of_what_was_pushed(size):
    scores = random_scores(*size)
    decoder = SemiMarkovDecoder(size[1])
    for n, row in enumerate(scores, start=1):
        decoder.push(row)
        posterior, _ = probabilities(scores[None, :n])
        for end in range(1, n + 1):
            for length in range(1, min(size[1], end) + 1):
                for label in range(size[2]):
                    expected = posterior[0, end - 1, length - 1, label]
                    got = decoder.score(end - length, end, label)
                    assert got == pytest.approx(expected, abs=1e-9)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=5),
    st.integers(1, 4),
    st.integers(1, 3),
    st.sampled_from([0.001, 0.2, 0.5, 0.9]),
    st.sampled_from([0.5, 3.0, 30.0]),
    st.integers(0, 2**32 - 1),
)
def test_texts_decoded_together_are_decoded_word_by_word(
    lengths, max_words, n_labels, threshold, spread, seed
):
    """The same best mentions, and all mentions whose posterior probability reaches the threshold."""
    texts = [
        np.maximum(random_scores(n, max_words, n_labels, seed + i, spread), IMPOSSIBLE)
        for i, n in enumerate(lengths)
    ]
    for scores, (best, found) in zip(texts, decode_texts(texts, threshold)):
        decoder = SemiMarkovDecoder(max_words, threshold)
        for row in scores:
            decoder.push(row)
        assert best == decoder.chain.trace()
        posterior, _ = probabilities(scores[None])
        probable = {
            (int(e - k), int(e) + 1, int(c))
            for _, e, k, c in zip(*np.nonzero(posterior >= threshold))
        }
        keys = [(m.start, m.end, m.label) for m in found]
        assert keys == sorted(probable.union(best))
        for m in found:
            expected = posterior[0, m.end - 1, m.end - m.start - 1, m.label]
            assert m.score == pytest.approx(expected, abs=1e-9)


def test_decoded_scores_equal_in_float32():
    texts = [random_scores(n, 4, 3, seed=n).astype(np.float32).clip(min=IMPOSSIBLE) for n in (3, 8)]
    for scores, (best, found) in zip(texts, decode_texts(texts, 0.1)):
        decoder = SemiMarkovDecoder(4, 0.1)
        for row in scores:
            decoder.push(row)
        assert best == decoder.chain.trace()
        for m in found:
            assert m.score == pytest.approx(decoder.score(m.start, m.end, m.label), abs=1e-5)


def test_texts_without_likely_mentions():
    nothing = np.full((3, 2, 1), -9.0)
    assert decode_texts([nothing, nothing[:1]], 0.5) == [([], []), ([], [])]


def test_padding_changes_nothing():
    scores = random_scores(4, 3, 2, seed=1)
    padded = np.concatenate([scores, np.full((5, 3, 2), NEVER)])
    alone, total = probabilities(scores[None])
    with_padding, padded_total = probabilities(padded[None])
    assert np.allclose(with_padding[0, :4], alone[0])
    assert np.allclose(with_padding[0, 4:], 0)
    assert np.allclose(total, padded_total)


@pytest.mark.parametrize("spread", [1.0, 400.0])
def test_gradient_is_the_slope_of_the_loss(spread):
    scores = random_scores(5, 3, 2, seed=3, spread=spread)
    gold = [[(0, 2, 1), (3, 4, 0)]]
    loss, gradient = loss_and_gradient(scores[None], gold)
    assert np.isfinite(loss) and loss >= -1e-9
    step = 1e-4
    for e, k, c in np.argwhere(scores > NEVER / 2):
        up, down = scores.copy(), scores.copy()
        up[e, k, c] += step
        down[e, k, c] -= step
        difference = loss_and_gradient(up[None], gold)[0] - loss_and_gradient(down[None], gold)[0]
        assert gradient[0, e, k, c] == pytest.approx(difference / (2 * step), abs=1e-4)
    assert np.allclose(gradient[0][scores <= NEVER / 2], 0)


def test_gradient_equals_autograd():
    scores = random_scores(4, 2, 2, seed=5)
    gold = (1, 3, 0)
    x = torch.tensor(scores, requires_grad=True)
    logs = [
        sum((x[e - 1, e - s - 1, c] for s, e, c in way), torch.zeros((), dtype=x.dtype))
        for way in segmentations(4, 2, 2)
    ]
    loss = torch.logsumexp(torch.stack(logs), 0) - x[2, 1, 0]
    loss.backward()
    ours, gradient = loss_and_gradient(scores[None], [[gold]])
    assert ours == pytest.approx(loss.item())
    assert np.allclose(gradient[0], x.grad.numpy(), atol=1e-9)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 4), st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_fixed_past_never_changes(max_words, n_words, seed):
    """Whatever comes after a boundary was fixed, the mentions before it stay."""
    scores = random_scores(n_words + 8, max_words, 2, seed, spread=3.0)
    decoder = SemiMarkovDecoder(max_words)
    fixed = 0
    for row in scores[:n_words]:
        decoder.push(row)
        now = decoder.chain.fixed(since=fixed)
        assert now >= fixed
        fixed = now
    past = decoder.chain.trace(boundary=fixed)
    assert [m for m in decoder.chain.trace() if m[1] <= fixed] == past
    for row in scores[n_words:]:
        decoder.push(row)
        assert [m for m in decoder.chain.trace() if m[0] < fixed] == past


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_fixed_holds_for_any_pointers(data):
    """The guarantee of `fixed` doesn't depend on how the pointers were set."""
    max_words = data.draw(st.integers(1, 4))
    chain = Chain(max_words)
    fixed, past = 0, []
    for n in range(1, data.draw(st.integers(1, 15)) + 1):
        length = data.draw(st.integers(1, min(max_words, n)))
        label = data.draw(st.integers(0, 1)) if length > 1 else None
        chain.push(length, label)
        assert [m for m in chain.trace() if m[0] < fixed] == past
        fixed = chain.fixed(since=fixed)
        past = chain.trace(boundary=fixed)


def test_trace_can_leave_out_what_was_there():
    chain = Chain(3)
    for length, label in [(1, 0), (1, None), (2, 1), (1, None), (1, 2)]:
        chain.push(length, label)
    assert chain.trace() == [(0, 1, 0), (1, 3, 1), (4, 5, 2)]
    assert chain.trace(until=3) == [(4, 5, 2)]
    assert chain.trace(boundary=3) == [(0, 1, 0), (1, 3, 1)]
    assert len(chain) == 5


def test_mask_crossing():
    rows = np.zeros((5, 3, 2))
    out = mask_crossing(rows, [True, False, True, False, False])
    assert (rows == 0).all()
    allowed = (out > IMPOSSIBLE).all(-1)
    # A sentence of two words, and one of three. Cells before the text belong to its first sentence.
    expected = [[1, 0, 0], [1, 1, 0], [1, 0, 0], [1, 1, 0], [1, 1, 1]]
    assert allowed.tolist() == np.array(expected, dtype=bool).tolist()


@pytest.mark.parametrize("look_right", [False, True])
def test_probe_scores_do_not_depend_on_the_batch(look_right):
    probe = make_probe(look_right)
    long, short = random_batch([7], seed=1), random_batch([4], seed=2)
    both = join(long, short)
    with torch.no_grad():
        together = probe(both)
        assert np.allclose(probe.rows(together, 0, 7), probe.rows(probe(long), 0, 7), atol=1e-5)
        assert np.allclose(probe.rows(together, 1, 4), probe.rows(probe(short), 0, 4), atol=1e-5)


def test_probe_word_by_word_is_the_probe():
    """Streaming gives the rows of the whole text, one word late."""
    probe = make_probe(look_right=False)
    batch = random_batch([9], seed=4)
    with torch.no_grad():
        expected = probe.rows(probe(batch), 0, 9)
    stream = probe.stream()
    rows = [stream.push(*word_of(batch, i)) for i in range(9)] + [stream.end()]
    assert rows[0] is None
    assert np.allclose(np.array(rows[1:]), expected, atol=1e-4)
    assert stream.end() is None


def test_causal_probe_sees_one_word_ahead_and_no_more():
    probe = make_probe(look_right=False)
    batch, changed = random_batch([8], seed=6), random_batch([8], seed=6)
    changed.hidden[0, 5] += 1.0
    with torch.no_grad():
        a, b = probe.rows(probe(batch), 0, 8), probe.rows(probe(changed), 0, 8)
    assert np.array_equal(a[:4], b[:4])
    assert not np.allclose(a[4], b[4])


def make_probe(look_right):
    probe_settings = StructuredSettings(None, 16, 4, look_right, surface_width=8, surface_rows=64)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return StructuredProbe(probe_settings, Dims(6, 12, 2, 3), n_layers=2).eval()


def random_batch(lengths, seed):
    generator = torch.Generator().manual_seed(seed)
    shape = (len(lengths), max(lengths))
    return WordBatch(
        torch.randn((*shape, 2, 12), generator=generator),
        torch.randint(0, 2**40, (*shape, 4), generator=generator),
        torch.tensor(lengths),
    )


def join(long, short):
    missing = long.hidden.shape[1] - short.hidden.shape[1]
    pad = torch.nn.functional.pad
    hidden = torch.cat([long.hidden, pad(short.hidden, (0, 0, 0, 0, 0, missing))])
    surface = torch.cat([long.surface, pad(short.surface, (0, 0, 0, missing))])
    return WordBatch(hidden, surface, torch.cat([long.lengths, short.lengths]))


def word_of(batch, i):
    return WordFeatures(batch.hidden[0, i : i + 1]), batch.surface[0, i].numpy()
