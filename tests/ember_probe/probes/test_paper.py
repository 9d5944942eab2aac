import numpy as np
import pytest
import spacy
import torch

from spacy_llmner.ember_probe.features.batch import WordBatch
from spacy_llmner.ember_probe.features.words import ATTENTION_KINDS, WordFeatures
from spacy_llmner.ember_probe.probes.base import Dims
from spacy_llmner.ember_probe.probes.paper import (
    AdjacencyDecoder,
    PaperDecoder,
    PaperProbe,
    PaperSettings,
    make_ember_paper,
)
from spacy_llmner.ember_probe.probes.segmentation import IMPOSSIBLE
from spacy_llmner.errors import LLMNERError
from spacy_llmner.llm.registry import make_llm

PER, LOC, OUT = 0, 1, 2
N_TYPES = 3
DIMS = Dims(n_layers=4, width=32, n_heads=4, n_labels=2)


def row(kind, margins, sure=0.9):
    """What the probes say about a word: its type and the margins of the spans ending there."""
    types = np.full(N_TYPES, (1 - sure) / (N_TYPES - 1))
    types[kind] = sure
    return np.concatenate([np.log(types), np.array(margins, dtype=float)])


def decode(rows, max_words=3, threshold=0.5, decoder=PaperDecoder, blank=None):
    decoder = decoder(N_TYPES, max_words, threshold)
    for r, is_blank in zip(rows, blank or [False] * len(rows)):
        decoder.push(r, bool(is_blank))
    return decoder.chain.trace()


NOTHING = [-5.0, -5.0, -5.0]


def test_no_proposal_is_no_mention_whatever_the_type():
    assert decode([row(PER, [-5, IMPOSSIBLE, IMPOSSIBLE]), row(LOC, [-1, -1, IMPOSSIBLE])]) == []


def test_type_at_the_end_token_vetoes_a_span():
    rows = [row(PER, [-5, IMPOSSIBLE, IMPOSSIBLE]), row(OUT, [-5, 8, IMPOSSIBLE])]
    assert decode(rows) == []


def test_best_proposal_of_one_word_is_a_single_word():
    rows = [row(OUT, [-5, IMPOSSIBLE, IMPOSSIBLE]), row(LOC, [4, 2, IMPOSSIBLE])]
    assert decode(rows) == [(1, 2, LOC)]


def test_span_takes_the_type_of_its_end_and_goes_on_before_its_start():
    rows = [
        row(LOC, [3, IMPOSSIBLE, IMPOSSIBLE]),
        row(OUT, [2, 1, IMPOSSIBLE]),
        row(LOC, [3, -1, -1]),
        row(PER, [-2, 1, 4]),
    ]
    # The last span includes a single word, and starts after the first one.
    assert decode(rows) == [(0, 1, LOC), (1, 4, PER)]


def test_ends_further_right_go_first():
    rows = [
        row(PER, [-5, IMPOSSIBLE, IMPOSSIBLE]),
        row(PER, [-5, 9, IMPOSSIBLE]),
        row(LOC, [-5, 2, -5]),
    ]
    assert decode(rows) == [(1, 3, LOC)]


def test_threshold_moves_the_margin():
    rows = [row(PER, [-0.5, IMPOSSIBLE, IMPOSSIBLE])]
    assert decode(rows) == []
    assert decode(rows, threshold=0.3) == [(0, 1, PER)]
    rows = [row(PER, [0.5, IMPOSSIBLE, IMPOSSIBLE])]
    assert decode(rows, threshold=0.8) == []


def test_adjacency_goes_left_while_words_continue():
    rows = [row(OUT, [9]), row(OUT, [-4]), row(OUT, [4]), row(PER, [3]), row(OUT, [5])]
    assert decode(rows, decoder=AdjacencyDecoder) == [(1, 4, PER)]
    # A typed word that doesn't continue the one before stands alone.
    assert decode([row(PER, [-4]), row(LOC, [-4])], decoder=AdjacencyDecoder) == [
        (0, 1, PER),
        (1, 2, LOC),
    ]


def test_blank_words_at_the_borders_of_mentions():
    """The best span without them is taken; inside a mention they may be."""
    rows = [
        row(PER, [1, IMPOSSIBLE, IMPOSSIBLE]),
        row(PER, [2, 5, IMPOSSIBLE]),
        row(LOC, [1, 9, 3]),
    ]
    assert decode(rows, blank=[False, False, False]) == [(0, 1, PER), (1, 3, LOC)]
    assert decode(rows, blank=[False, True, False]) == [(0, 3, LOC)]
    assert decode(rows, blank=[True, True, False]) == [(2, 3, LOC)]
    assert decode(rows, blank=[False, False, True]) == [(0, 2, PER)]
    rows = [row(OUT, [9]), row(OUT, [4]), row(OUT, [4]), row(PER, [3]), row(PER, [5])]
    for blank, found in [
        ([0, 0, 1, 0, 1], [(1, 4, PER)]),
        ([0, 1, 1, 0, 1], [(3, 4, PER)]),
        ([1, 1, 1, 1, 1], []),
    ]:
        assert decode(rows, decoder=AdjacencyDecoder, blank=blank) == found


def test_adjacency_stops_at_the_start_of_the_text_and_at_max_words():
    rows = [row(OUT, [9]) for _ in range(5)] + [row(PER, [9])]
    assert decode(rows, decoder=AdjacencyDecoder) == [(3, 6, PER)]
    assert decode(rows[-2:], decoder=AdjacencyDecoder) == [(0, 2, PER)]


def test_scores_are_products_of_both_probes():
    decoder = PaperDecoder(N_TYPES, 2)
    decoder.push(row(PER, [0.0, IMPOSSIBLE], sure=0.8))
    assert decoder.score(0, 1, PER) == pytest.approx(0.8 * 0.5)
    decoder = AdjacencyDecoder(N_TYPES, 2)
    for r in [row(OUT, [0.0]), row(OUT, [0.0]), row(PER, [0.0], sure=0.8)]:
        decoder.push(r)
    assert decoder.score(1, 3, PER) == pytest.approx(0.8 * 0.5 * 0.5)
    assert decoder.score(0, 3, PER) == pytest.approx(0.8 * 0.5 * 0.5)


def make_probe(attention, max_words=3):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return PaperProbe(PaperSettings(1, attention, 16, max_words), DIMS).eval()


def make_batch(attention, lengths, max_words=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    n_cells = 1 if attention == "adjacency" else max_words
    kinds = 2 if attention == "both" else 1
    shape = (len(lengths), max(lengths))
    return WordBatch(
        torch.randn((*shape, 1, 32), generator=generator),
        torch.zeros((*shape, 4), dtype=torch.long),
        torch.tensor(lengths),
        torch.rand((*shape, n_cells, kinds, 16), generator=generator),
    )


@pytest.mark.parametrize("attention", ATTENTION_KINDS)
def test_no_span_starts_before_the_text_or_in_the_padding(attention):
    probe = make_probe(attention)
    with torch.no_grad():
        probe.spans[2].bias += 100.0  # every cell looks like a mention
        types, margins = probe(make_batch(attention, [5, 2]))
    assert types.shape == (2, 5, 3)
    cells = margins > IMPOSSIBLE
    for e in range(5):
        for k in range(margins.shape[2]):
            assert bool(cells[0, e, k]) == (k <= e)
            assert bool(cells[1, e, k]) == (k <= e and e < 2)
    decoder = probe.decoder(0.5)
    for r in probe.rows((types, margins), 0, 5):
        decoder.push(r)
    for start, end, _ in decoder.chain.trace():
        assert 0 <= start < end <= start + 3


@pytest.mark.parametrize("attention", ATTENTION_KINDS)
def test_gradient_is_the_slope_of_the_loss(attention):
    probe = make_probe(attention)
    with torch.no_grad():
        scores = probe(make_batch(attention, [5, 3]))
    gold = [([(0, 2, PER), (3, 4, LOC)], []), ([(1, 2, LOC)], [(0, 1)])]
    _, gradients = probe.loss(scores, gold)
    step = 1e-2
    for which in (0, 1):
        for place in [(0, 0, 0), (0, 1, 0), (0, 3, 0), (0, 4, 0), (1, 0, 0), (1, 1, 0), (1, 2, 0)]:
            changed = [s.clone() for s in scores]
            changed[which][place] += step
            up = probe.loss(tuple(changed), gold)[0]
            changed[which][place] -= 2 * step
            down = probe.loss(tuple(changed), gold)[0]
            slope = (up - down) / (2 * step)
            assert float(gradients[which][place]) == pytest.approx(slope, abs=1e-3)
    # Nothing is learnt from padding, nor from a word about which nothing is known.
    for gradient in gradients:
        assert not gradient[1, 3:].any()
        assert not gradient[1, 0].any()


def test_adjacency_learns_inside_mentions_and_behind_them():
    probe = make_probe("adjacency")
    with torch.no_grad():
        scores = probe(make_batch("adjacency", [6]))
    _, (_, d_margins) = probe.loss(scores, [([(1, 3, PER)], [])])
    assert d_margins[0, :, 0].ne(0).tolist() == [False, True, True, True, False, False]
    assert d_margins[0, 2, 0] < 0 < d_margins[0, 1, 0]
    assert d_margins[0, 3, 0] > 0


@pytest.mark.parametrize("attention", ATTENTION_KINDS)
def test_word_by_word_is_the_whole_text(attention):
    probe = make_probe(attention)
    batch = make_batch(attention, [6])
    with torch.no_grad():
        expected = probe.rows(probe(batch), 0, 6)
    stream = probe.stream()
    rows = [
        stream.push(
            WordFeatures(batch.hidden[0, i : i + 1], batch.attention[0, i : i + 1]),
            batch.surface[0, i].numpy(),
        )
        for i in range(6)
    ]
    assert np.allclose(np.array(rows), expected, atol=1e-5)
    assert stream.end() is None


@pytest.mark.parametrize("attention", ATTENTION_KINDS)
def test_no_mention_crosses_a_sentence(attention):
    probe = make_probe(attention)
    with torch.no_grad():
        probe.spans[2].bias += 100.0
        probe.types[2].bias[PER] += 100.0
        rows = probe.rows(probe(make_batch(attention, [6])), 0, 6)
    starts = [True, False, False, True, False, True]
    inside = probe.within_sentences(rows, starts)
    for start, end, _ in trace(probe, inside):
        assert not any(starts[start + 1 : end])
    for mention in probe.all_mentions(inside, [False] * len(inside), 0.5):
        assert not any(starts[mention.start + 1 : mention.end])
    assert any(any(starts[s + 1 : e]) for s, e, _ in trace(probe, rows))


def trace(probe, rows):
    decoder = probe.decoder(0.5)
    for r in rows:
        decoder.push(r)
    return decoder.chain.trace()


def test_both_is_current_and_next(tiny_llm):
    """The published code puts "next" twice into "both"."""
    llm = make_llm(tiny_llm, device="cpu").load()
    doc = spacy.blank("en")("Mira Stone met Oskar Blum in Varnholm.")
    cells = {}
    for attention in ("current", "next", "both"):
        reader = make_ember_paper(attention=attention).attrs["settings"].reader(DIMS)
        cells[attention] = reader.read(llm, [doc])[0].attention
    assert cells["both"].shape == (len(doc), 8, 2, llm.n_layers * llm.n_heads)
    assert torch.allclose(cells["both"][:, :, :1], cells["current"], atol=1e-6)
    assert torch.allclose(cells["both"][:, :, 1:], cells["next"], atol=1e-6)
    assert not torch.allclose(cells["both"][:, :, 0], cells["both"][:, :, 1], atol=1e-2)


def test_span_probe_is_as_wide_as_the_llm_has_heads():
    for dims in (DIMS, Dims(12, 24, 6, 3)):
        probe = PaperProbe(PaperSettings(None, "next", 16, 4), dims)
        assert probe.spans[0].in_features == dims.n_layers * dims.n_heads
        assert probe.types[0].in_features == dims.width
        assert probe.types[2].out_features == dims.n_labels + 1


def test_one_configurable_layer_is_typed():
    settings = make_ember_paper(layer=3).attrs["settings"]
    assert settings.reader(DIMS).layers == (3,)
    assert make_ember_paper().attrs["settings"].reader(DIMS).layers == (2,)


def test_unknown_attention_is_refused():
    with pytest.raises(LLMNERError, match="'previous' is not a valid attention.*next, both"):
        make_ember_paper(attention="previous")
