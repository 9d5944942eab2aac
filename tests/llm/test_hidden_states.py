import threading

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, BertConfig, BertLMHeadModel, GPT2LMHeadModel
from transformers.generation.streamers import BaseStreamer

from spacy_llmner.errors import LLMNERError
from spacy_llmner.llm.hidden_states import FeatureSpec, StepReader, read_texts, tap_generation
from spacy_llmner.llm.loading import LoadedLLM
from spacy_llmner.llm.registry import make_llm
from spacy_llmner.llm.spec import LLMSpec
from spacy_llmner.llm.views import generating_view

TEXT = "Ada Hale met Bo Lund in Bonn, 王小明 🚀."
LAYERS = (0, 2, 4)
WINDOW = 7
ALL = FeatureSpec(LAYERS, WINDOW)


@pytest.fixture
def llm(any_llm, load):
    return load(any_llm)


def encode(llm, text=TEXT):
    return llm.tokenizer.bos + llm.tokenizer.encode(text).ids


def reference(llm, ids):
    """Hidden states (tokens, layers + 1, width) and attention rows by transformers itself."""
    model = AutoModelForCausalLM.from_pretrained(llm.spec.name, attn_implementation="eager").eval()
    with torch.no_grad():
        out = model(torch.tensor([ids]), output_hidden_states=True, output_attentions=True)
    full = torch.stack(out.attentions, dim=1)[0].permute(2, 0, 1, 3)
    rows = torch.zeros(*full.shape[:3], WINDOW)
    for token in range(len(ids)):
        for back in range(min(WINDOW, token + 1)):
            rows[token, :, :, back] = full[token, :, :, token - back]
    return torch.stack(out.hidden_states, dim=2)[0], rows


def assert_close(found, expected, tolerance=1e-4):
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


def assert_same(found, expected, tolerance=1e-4):
    assert_close(found.hidden, expected.hidden, tolerance)
    assert_close(found.attention, expected.attention, tolerance)


def count_blocks(llm, monkeypatch):
    """The number of tokens in each call of a decoder block."""
    decoder = llm.model.transformer if isinstance(llm.model, GPT2LMHeadModel) else llm.model.model
    block = type(decoder.h[0] if hasattr(decoder, "h") else decoder.layers[0])
    forward, calls = block.forward, []

    def counted(self, hidden, *args, **kwargs):
        calls.append(hidden.shape[1])
        return forward(self, hidden, *args, **kwargs)

    monkeypatch.setattr(block, "forward", counted)
    return calls


def test_as_the_eager_reference(llm):
    ids = encode(llm)
    hidden, rows = reference(llm, ids)
    features = read_texts(llm, [ids], ALL)[0]
    assert features.hidden.dtype == features.attention.dtype == torch.float32
    assert features.hidden.shape == (len(ids), 3, 32)
    assert_close(features.hidden, hidden[:, list(LAYERS)])
    assert_close(features.attention, rows)
    # If all attention weights were equal, the test would detect nothing.
    assert rows[10:].std() > 0.02


@pytest.mark.parametrize("layers", [(0,), (1,), (3,), (4,), (3, 1), (4, 0, 4), (0, 1, 2, 3, 4)])
def test_layers_in_any_order(llm, layers):
    ids = encode(llm)
    hidden, _ = reference(llm, ids)
    features = read_texts(llm, [ids], FeatureSpec(layers))[0]
    assert features.attention is None
    assert_close(features.hidden, hidden[:, list(layers)])


def test_longer_than_a_slice_of_attention(llm):
    ids = (encode(llm) * 10)[:200]
    hidden, rows = reference(llm, ids)
    features = read_texts(llm, [ids], ALL)[0]
    assert_close(features.hidden, hidden[:, list(LAYERS)])
    assert_close(features.attention, rows)


@pytest.mark.parametrize("max_batch_tokens", [1, 40, 10_000])
def test_batches(llm, max_batch_tokens):
    texts = [encode(llm, text) for text in ("Bo.", TEXT, "", TEXT * 2, "王小明", TEXT[:20])]
    batched = read_texts(llm, texts, ALL, max_batch_tokens)
    assert [len(f.hidden) for f in batched] == [len(ids) for ids in texts]
    for features, ids in zip(batched, texts):
        assert_same(features, read_texts(llm, [ids], ALL)[0])


def test_batches_are_made_of_tokens(llm, monkeypatch):
    calls = count_blocks(llm, monkeypatch)
    texts = [[5] * n for n in (3, 9, 3, 10, 50, 3)]
    features = read_texts(llm, texts, FeatureSpec((1,)), max_batch_tokens=20)
    assert [len(f.hidden) for f in features] == [3, 9, 3, 10, 50, 3]
    assert calls == [50, 10, 3]  # one text that is longer than allowed, 2 texts, 3 texts


PREFIX = [0, *range(40, 52)]


@pytest.mark.parametrize("layers", [(0, 2, 4), (3,), (4,)])
@pytest.mark.parametrize("max_batch_tokens", [1, 30, 10_000])
def test_prefix_as_if_written_in_front(llm, layers, max_batch_tokens):
    texts = [encode(llm, text)[1:] for text in ("Bo.", TEXT, "", TEXT * 2, "王小明")]
    found = read_texts(llm, texts, FeatureSpec(layers), max_batch_tokens, PREFIX)
    assert [len(features.hidden) for features in found] == [len(ids) for ids in texts]
    for features, ids in zip(found, texts):
        expected = read_texts(llm, [PREFIX + ids], FeatureSpec(layers))[0].hidden[len(PREFIX) :]
        assert_close(features.hidden, expected)


def test_prefix_is_read_once(llm, monkeypatch):
    llm.views.clear()
    calls = count_blocks(llm, monkeypatch)
    texts = [[5] * n for n in (3, 9, 10)]
    for _ in range(2):
        read_texts(llm, texts, FeatureSpec((1,)), 20, PREFIX)
    assert calls == [len(PREFIX), 10, 9, 10, 9]
    calls.clear()
    read_texts(llm, texts, FeatureSpec((1,)), 20, PREFIX[:-1])
    read_texts(llm, texts, FeatureSpec((1,)), 20)
    read_texts(llm, texts, FeatureSpec((1,)), 20, PREFIX)
    assert calls == [len(PREFIX) - 1, 10, 9, 10, 9, 10, 9]


def test_prefixes_and_texts_without_one_in_turn(llm):
    ids, probed = encode(llm), FeatureSpec((2, 4))
    expected = [read_texts(llm, [ids], probed, prefix=p)[0].hidden for p in ([], PREFIX, [7])]
    for k, prefix in [(2, (7,)), (0, ()), (1, tuple(PREFIX)), (0, ()), (2, [7])]:
        assert torch.equal(read_texts(llm, [ids], probed, prefix=prefix)[0].hidden, expected[k])
    assert not torch.allclose(expected[0], expected[1], atol=1e-2)


def test_nothing_to_read(llm):
    assert read_texts(llm, [], ALL) == []
    assert read_texts(llm, [], FeatureSpec((1,)), prefix=PREFIX) == []


def test_features_do_not_hold_the_batch(llm):
    short, _ = read_texts(llm, [[5], [5] * 30], ALL)
    assert short.hidden.untyped_storage().nbytes() == short.hidden.nbytes
    assert short.attention.untyped_storage().nbytes() == short.attention.nbytes


@pytest.mark.parametrize(("layers", "blocks"), [((0,), 0), ((0, 2), 2), ((3, 1), 3), ((4,), 4)])
def test_reading_stops_above_the_highest_layer(llm, monkeypatch, layers, blocks):
    calls = count_blocks(llm, monkeypatch)
    read_texts(llm, [encode(llm)], FeatureSpec(layers))
    assert len(calls) == blocks
    read_texts(llm, [encode(llm)], FeatureSpec(layers, WINDOW))
    assert len(calls) == blocks + 4  # attention is read on all layers


def test_each_token_goes_through_once(llm, monkeypatch):
    ids = encode(llm)
    whole = read_texts(llm, [ids], ALL)[0]
    with torch.no_grad():
        logits = llm.model(torch.tensor([ids])).logits[0]
    calls = count_blocks(llm, monkeypatch)
    steps = StepReader(llm, ALL)
    for start, end in [(0, 6), *((i, i + 1) for i in range(6, len(ids)))]:
        calls.clear()
        last, features = steps.feed(ids[start:end])
        assert calls == [end - start] * 4
        assert_close(features.hidden, whole.hidden[start:end])
        assert_close(features.attention, whole.attention[start:end])
        assert_close(last, logits[end - 1])


def test_steps_without_attention(llm):
    ids = encode(llm)
    whole = read_texts(llm, [ids], FeatureSpec((4, 1)))[0]
    steps = StepReader(llm, FeatureSpec((4, 1)))
    found = [steps.feed(ids[:3])[1], *(steps.feed([token])[1] for token in ids[3:])]
    assert all(features.attention is None for features in found)
    assert_close(torch.cat([features.hidden for features in found]), whole.hidden)


@pytest.mark.parametrize("probed, blocks", [(FeatureSpec((1, 2)), 2), (ALL, 4)])
def test_last_token_goes_no_further_than_it_must(llm, monkeypatch, probed, blocks):
    ids = encode(llm)
    whole = read_texts(llm, [ids], probed)[0]
    calls = count_blocks(llm, monkeypatch)
    steps = StepReader(llm, probed)
    steps.feed(ids[:-1])
    calls.clear()
    last = steps.feed_last(ids[-1:])
    assert calls == [1] * blocks
    assert_close(last.hidden, whole.hidden[-1:])
    if probed.window:
        assert_close(last.attention, whole.attention[-1:])


def test_generations_do_not_share_their_cache(llm):
    ids = encode(llm)
    first, second = StepReader(llm, ALL), StepReader(llm, ALL)
    for token in ids:
        _, features = first.feed([token])
        _, other = second.feed([token])
        assert_same(other, features, 0)


@pytest.mark.parametrize("layers", [(), (0,), (2, 4)])
def test_view_generates_the_same(llm, layers):
    ids = torch.tensor([encode(llm)])
    settings = {"do_sample": False, "max_new_tokens": 12, "attention_mask": torch.ones_like(ids)}
    expected = llm.model.generate(ids, **settings)
    view = generating_view(llm, layers)
    assert type(view) is type(llm.model)
    assert {p.data_ptr() for p in view.parameters()} == {
        p.data_ptr() for p in llm.model.parameters()
    }
    assert torch.equal(view.generate(ids, **settings), expected)
    steps = StepReader(llm, ALL)
    fed, written = ids[0].tolist(), []
    for _ in range(expected.shape[1] - ids.shape[1]):
        logits, _ = steps.feed(fed)
        fed = [int(logits.argmax())]
        written += fed
    assert written == expected[0, ids.shape[1] :].tolist()


class Reader(BaseStreamer):
    """Takes the features of each pass of `generate`."""

    def __init__(self, read):
        self.read = read
        self.found = []
        self.started = False

    def put(self, value):
        if self.started:
            self.found.append(self.read())
        self.started = True

    def end(self):
        pass


@pytest.mark.parametrize("cache", [None, "hybrid"])
def test_tapped_while_it_generates(llm, cache, monkeypatch):
    # Gemma3's configs request a cache of fixed size, whose last keys are not those of the text.
    cache = cache if "gemma3" in llm.spec.name else None
    monkeypatch.setattr(llm.model.generation_config, "cache_implementation", cache)
    llm.views.clear()
    ids = torch.tensor([encode(llm)])
    with tap_generation(llm, ALL) as read:
        reader = Reader(read)
        view = generating_view(llm, LAYERS)
        out = view.generate(ids, max_new_tokens=10, do_sample=False, streamer=reader)
    llm.views.clear()
    assert llm.model.generation_config.cache_implementation == cache
    whole = read_texts(llm, [out[0, :-1].tolist()], ALL)[0]
    assert_close(torch.cat([features.hidden for features in reader.found]), whole.hidden)
    assert_close(torch.cat([features.attention for features in reader.found]), whole.attention)


def test_threads_do_not_mix(llm, monkeypatch):
    """Two threads go through the blocks in step, each with its own text, layers and window."""
    jobs = [
        (encode(llm), FeatureSpec((0, 3), 5)),
        (encode(llm, "王小明 met Bo"), FeatureSpec((3, 1), 2)),
    ]
    expected = [read_texts(llm, [ids], probed)[0] for ids, probed in jobs]
    barrier = threading.Barrier(2)
    decoder = llm.model.transformer if isinstance(llm.model, GPT2LMHeadModel) else llm.model.model
    block = type(decoder.h[0] if hasattr(decoder, "h") else decoder.layers[0])
    forward = block.forward

    def in_step(self, *args, **kwargs):
        barrier.wait(timeout=60)
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(block, "forward", in_step)
    found = {}

    def read(k):
        ids, probed = jobs[k]
        found[k] = read_texts(llm, [ids], probed)[0]

    threads = [threading.Thread(target=read, args=(k,)) for k in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for k in range(2):
        assert_same(found[k], expected[k], 0)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision(any_llm, load, dtype):
    llm = load(any_llm, dtype)
    ids = encode(llm)
    expected = read_texts(load(any_llm), [ids], ALL)[0]
    features = read_texts(llm, [ids], ALL)[0]
    assert features.hidden.dtype == features.attention.dtype == torch.float32
    assert (features.attention - expected.attention).abs().mean() < 0.01
    difference = (features.hidden - expected.hidden).norm() / expected.hidden.norm()
    assert difference < 0.05
    steps = StepReader(llm, ALL)
    logits, first = steps.feed(ids[:-1])
    assert torch.isfinite(logits).all()
    last = steps.feed(ids[-1:])[1]
    assert (last.attention - features.attention[-1:]).abs().mean() < 0.02


@pytest.mark.parametrize("layer", [-1, 5, 99])
def test_unknown_layer(tiny_llm, load, layer):
    llm = load(tiny_llm)
    for call in (lambda p: read_texts(llm, [[5]], p), lambda p: StepReader(llm, p)):
        with pytest.raises(LLMNERError) as error:
            call(FeatureSpec((0, layer)))
        assert f"] Layer {layer} was requested" in str(error.value)
        assert "has 4 layers. Choose a layer from 0 (the embeddings) to 4 (" in str(error.value)


def test_unsupported_model():
    config = BertConfig(
        vocab_size=20,
        hidden_size=8,
        num_hidden_layers=2,
        intermediate_size=8,
        num_attention_heads=2,
    )
    config.is_decoder = True
    llm = LoadedLLM(LLMSpec("x"), BertLMHeadModel(config).eval(), None, "x")
    for call in (lambda p: read_texts(llm, [[5]], p), lambda p: StepReader(llm, p)):
        with pytest.raises(LLMNERError) as error:
            call(FeatureSpec((1,)))
        assert "'bert' are not supported" in str(error.value)
        assert "Llama, Qwen2, Gemma 3 or GPT-2" in str(error.value)


@pytest.mark.llm
def test_smollm2_as_the_eager_reference(smollm2):
    llm = make_llm(str(smollm2), dtype="float32", device="cpu").load()
    ids = encode(llm)
    hidden, rows = reference(llm, ids)
    features = read_texts(llm, [ids, ids[:5]], FeatureSpec((0, 15, 30), WINDOW))[0]
    assert_close(features.hidden, hidden[:, [0, 15, 30]], 1e-3)
    assert_close(features.attention, rows)
    make_llm(str(smollm2), dtype="float32", device="cpu").unload()


@pytest.mark.parametrize("max_batch_tokens", [1, 10_000])
def test_rows_of_some_tokens(llm, max_batch_tokens):
    texts = [encode(llm), encode(llm)[:5], [7, 8, 9]]
    rows = [np.array([3, 4, 4, 10]), np.array([], dtype=np.int64), np.array([2])]
    found = read_texts(llm, texts, ALL, max_batch_tokens, (), rows)
    for features, expected, chosen in zip(found, read_texts(llm, texts, ALL), rows):
        assert_close(features.hidden, expected.hidden[chosen])
        assert_close(features.attention, expected.attention[chosen])
