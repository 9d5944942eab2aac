"""Components and the engine on a GPU: the same as on a CPU up to rounding errors. Skipped without a GPU."""

import logging
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import spacy
import torch
from spacy.tokens import DocBin

from spacy_llmner.decoding import forward as passes
from spacy_llmner.decoding.engine import DecodingEngine
from spacy_llmner.errors import LLMNERError
from spacy_llmner.llm import registry as pool
from spacy_llmner.llm.hidden_states import FeatureSpec, read_texts
from spacy_llmner.llm.lora import AdapterSettings, new_adapter
from spacy_llmner.llm.packing import TrainingSequence, pack, target_logits
from spacy_llmner.llm.registry import make_llm
from tests.decoding.helpers import TEXTS as TOKENS
from tests.decoding.helpers import writing
from tests.helpers import TEXTS, assert_same, entities, make_examples, make_sgd

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")

CUDA = "cuda"
ROOT = Path(__file__).parents[2]
PIPES = ["ember", "paper", "few-shot", "padellm", "copies", "ra_it", "el4ner", "el4ner zero-shot"]
TRAINED = ["ember", "paper", "few-shot", "padellm", "ra_it"]


def make_nlp(what, llm, dtype="float32", device=CUDA):
    """RETURNS (Language): With one component on a GPU."""
    nlp = spacy.blank("en")
    block = {"@misc": "spacy_llmner.LLM.v1", "name": str(llm), "dtype": dtype, "device": device}
    encoder = {"@misc": "spacy_llmner.LLMEncoder.v1", "llm": block}
    adapter = {"rank": 0 if what == "copies" else 8, "alpha": 16, "first_layer": 0}
    if what in ("ember", "paper", "few-shot"):
        kind = {"ember": "Probe", "paper": "Paper", "few-shot": "FewShot"}[what]
        model = {"@architectures": f"spacy_llmner.Ember{kind}.v1"}
        model.update({"width": 32, "prefix": ""} if what == "ember" else {})
        name, config = "ember_probe", {"llm": block, "feature_cache": "off", "model": model}
    elif what in ("padellm", "copies"):
        model = {"@architectures": "spacy_llmner.PaDeLLM.v1", **adapter}
        name, config = "padellm_ner", {"llm": block, "model": model}
    elif what == "ra_it":
        model = {"@architectures": "spacy_llmner.RAIT.v1", **adapter}
        retrieval = {"@misc": "spacy_llmner.Retrieval.v1", "k": 1}
        name, config = "ra_it_ner", {"llm": block, "encoder": encoder, "retrieval": retrieval}
        config["model"] = model
    else:
        voters = {"a": {"@misc": "spacy_llmner.Voter.v1", "llm": block}}
        # With k = 0, the first pass already belongs to a session that keeps its texts.
        k = 0 if what == "el4ner zero-shot" else 1
        config = {"llms": voters, "encoder": encoder, "k": k, "pre_extract": "gold"}
        name, config = "el4ner_ensemble", {**config, "verify_threshold": 0.0}
    nlp.add_pipe(name, config=config)
    return nlp


def train(nlp, steps=25):
    """RETURNS (List[float]): The losses."""
    random.seed(0)
    examples = make_examples(nlp)
    pipe = nlp.get_pipe(nlp.pipe_names[0])
    if pipe.model.name == "ember_few_shot":
        pipe.fit(examples)
        return []
    nlp.initialize(lambda: examples)
    name, sgd, losses = pipe.name, make_sgd(0.01, grad_clip=1.0), []
    for _ in range(0 if name == "el4ner_ensemble" else steps):
        losses.append(nlp.update(examples, sgd=sgd, losses={})[name])
    return losses


def run(nlp):
    return list(nlp.pipe(TEXTS))


@pytest.fixture
def cupy():
    spacy.require_gpu()
    yield
    spacy.require_cpu()


def test_one_copy_on_the_gpu(tiny_llm):
    pool.clear()
    before = torch.cuda.memory_allocated()
    one, other = make_llm(str(tiny_llm), device="cuda").load(), make_llm(str(tiny_llm)).load()
    assert one is other
    assert one is make_llm(str(tiny_llm), device="cuda:0").load()
    assert next(one.model.parameters()).dtype == torch.bfloat16
    on_cpu = make_llm(str(tiny_llm), device="cpu").load()
    assert on_cpu is not one
    assert on_cpu.fingerprint == one.fingerprint
    del one, other, on_cpu
    pool.clear()
    assert torch.cuda.memory_allocated() <= before


@pytest.mark.parametrize(("dtype", "apart"), [("float32", 1e-3), ("bfloat16", 0.3)])
def test_engine(any_llm, dtype, apart, caplog):
    """The results are the same as on the CPU: in batches, one by one, with and without replayed passes."""
    requests = [writing(text) for text in TOKENS]
    cpu = DecodingEngine(make_llm(str(any_llm), dtype="float32", device="cpu").load()).run(requests)
    llm = make_llm(str(any_llm), dtype=dtype, device=CUDA).load()
    with caplog.at_level(logging.WARNING, "spacy_llmner"):
        runs = [DecodingEngine(llm).run(requests) for _ in range(3)]
        runs += [[DecodingEngine(llm).run([p])[0] for p in requests] for _ in range(2)]
    assert "No CUDA graphs" not in caplog.text
    assert passes._GRAPHED[llm.decoder]._graphs
    for answers in runs:
        for mine, theirs in zip(answers, cpu):
            for a, b in zip(mine, theirs):
                if dtype == "float32":
                    assert a.ids == b.ids
                if a.ids == b.ids:
                    assert a.log_probs == pytest.approx(b.log_probs, abs=apart)


def test_engines_side_by_side(tiny_llm):
    """While one engine is suspended, another one uses passes without CUDA graphs."""
    llm = make_llm(str(tiny_llm), dtype="float32", device=CUDA).load()
    expected = DecodingEngine(llm).run([writing(TOKENS[1])])
    steps = DecodingEngine(llm).steps([writing(TOKENS[0])])
    next(steps)
    found = DecodingEngine(llm).run([writing(TOKENS[1])])
    assert [a.ids for a in found[0]] == [a.ids for a in expected[0]]
    (first,) = list(steps)[-1]
    assert [a.ids for a in first] == [
        a.ids for a in DecodingEngine(llm).run([writing(TOKENS[0])])[0]
    ]


@torch.no_grad()
def test_packed_texts(any_llm):
    text = [0, *range(20, 34)]
    trees = [
        pack([TrainingSequence([*text, 40 + k, 1], [False] * 16 + [True]) for k in range(n)])
        for n in (3, 1, 2)
    ]
    on = {}
    for device in ("cpu", CUDA):
        llm = make_llm(str(any_llm), dtype="float32", device=device).load()
        on[device] = target_logits(llm, llm.decoder, trees).cpu()
    torch.testing.assert_close(on["cpu"], on[CUDA], rtol=0, atol=1e-3)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("what", PIPES)
def test_component(what, dtype, tiny_llm, tmp_path):
    """A component learns, is saved, and finds the same after loading, even on a CPU."""
    if what == "copies" and dtype == "bfloat16":
        pytest.skip("copies are trained in float32")
    nlp = make_nlp(what, tiny_llm, dtype)
    losses = train(nlp)
    assert np.isfinite(losses).all()
    assert not losses or losses[-1] < losses[0]
    docs = run(nlp)
    for doc in docs:
        group = doc.spans["llmner"]
        assert all(0.0 <= score <= 1.0 for score in group.attrs["scores"])
    tolerance = 2e-3 if dtype == "float32" else 0.2
    one_by_one = [nlp(text) for text in TEXTS]
    if dtype == "float32":
        for a, b in zip(docs, one_by_one):
            assert_same(a, b, tolerance)
    nlp.to_disk(tmp_path)
    for device in (CUDA, "cpu"):
        again = make_nlp(what, tiny_llm, dtype, device).from_disk(tmp_path)
        for a, b in zip(docs, run(again)):
            if dtype == "float32":
                assert_same(a, b, tolerance)


@pytest.mark.parametrize("what", TRAINED)
def test_trained_on_a_cpu(what, tiny_llm, tmp_path):
    nlp = make_nlp(what, tiny_llm, device="cpu")
    train(nlp)
    nlp.to_disk(tmp_path)
    again = make_nlp(what, tiny_llm).from_disk(tmp_path)
    for a, b in zip(run(nlp), run(again)):
        assert_same(a, b, 2e-3)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("what", TRAINED)
def test_with_spacys_arrays_on_the_gpu(what, dtype, tiny_llm, cupy):
    """This is what `spacy train --gpu-id 0` does."""
    nlp = make_nlp(what, tiny_llm, dtype)
    losses = train(nlp)
    assert not losses or losses[-1] < losses[0]
    assert len(run(nlp)) == len(TEXTS)
    scores = nlp.evaluate(make_examples(nlp))
    assert 0.0 <= scores["ents_f"] <= 1.0


def test_texts_scored_while_others_are_decoded(tiny_llm):
    """With few words per group, `ember_probe` always has the scores of two groups on their way."""
    nlp = make_nlp("ember", tiny_llm)
    examples = make_examples(nlp)
    nlp.initialize(lambda: examples)
    for _ in range(10):
        nlp.update(examples, sgd=make_sgd())
    expected = [nlp(text) for text in TEXTS * 8]
    nlp.get_pipe("ember_probe").max_batch_tokens = 10
    for one, other in zip(expected, nlp.pipe(TEXTS * 8, batch_size=100)):
        assert_same(one, other)


def test_adapters_leave_each_other_alone(tiny_llm):
    one, other = (make_nlp(what, tiny_llm) for what in ("padellm", "ra_it"))
    for nlp in (one, other):
        train(nlp)
    before = [doc.to_bytes() for doc in run(one)]
    run(other)
    train(other, 2)
    assert [doc.to_bytes() for doc in run(one)] == before


def test_training_goes_on_behind_recorded_passes(tiny_llm):
    """Recorded passes use the current weights."""
    nlp = make_nlp("padellm", tiny_llm)
    train(nlp, 3)
    run(nlp)
    examples, sgd = make_examples(nlp), make_sgd(0.02, grad_clip=1.0)
    for _ in range(30):
        nlp.update(examples, sgd=sgd)
    passes._GRAPHED.clear()
    fresh = run(nlp)
    for a, b in zip(fresh, run(nlp)):
        assert_same(a, b, 2e-3)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_streams(tiny_llm, dtype):
    ember, padellm = make_nlp("ember", tiny_llm, dtype), make_nlp("padellm", tiny_llm, dtype)
    for nlp in (ember, padellm):
        train(nlp)
    stream = ember.get_pipe("ember_probe").stream("Mira Stone met", max_new_tokens=12)
    assert len(list(stream)) > 0
    assert stream.doc.text.startswith("Mira Stone met")
    for text in TEXTS:
        spans = list(padellm.get_pipe("padellm_ner").stream(text))
        assert all(0.0 <= span._.score <= 1.0 for span in spans)


def test_labels_at_any_time(tiny_llm):
    nlp = make_nlp("ra_it", tiny_llm)
    train(nlp, 2)
    nlp.get_pipe("ra_it_ner").set_labels(["strange thing", "城市"])
    for doc in run(nlp):
        assert {label for _, _, label in entities(doc)} <= {"strange thing", "城市"}


def test_several_processes(tiny_llm):
    nlp = make_nlp("ember", tiny_llm)
    train(nlp, 2)
    with pytest.raises(Exception, match="n_process > 1 can't be used with an LLM .* on cuda"):
        list(nlp.pipe(TEXTS, n_process=2))


def test_device_that_is_not_there(tiny_llm):
    with pytest.raises(LLMNERError, match="'cuda:99' is not available"):
        make_llm(str(tiny_llm), device="cuda:99").load()


@pytest.mark.parametrize("config", ["ember_probe", "padellm_ner"])
def test_spacy_train(config, tiny_llm, tmp_path):
    corpus = tmp_path / "corpus.spacy"
    docs = [eg.reference for eg in make_examples(spacy.blank("en"))]
    DocBin(docs=docs).to_disk(corpus)
    args = [
        *("train", ROOT / "configs" / f"{config}.cfg", "--output", tmp_path / "out"),
        *("--paths.train", corpus, "--paths.dev", corpus, "--paths.llm", tiny_llm),
        *("--training.max_steps", "10", "--training.eval_frequency", "5", "--gpu-id", "0"),
    ]
    if config == "ember_probe":
        args += ["--components.ember_probe.feature_cache", tmp_path / "features"]
    command = [sys.executable, "-m", "spacy", *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert not done.returncode, done.stdout + done.stderr
    nlp = spacy.load(tmp_path / "out" / "model-last")
    assert len(run(nlp)) == len(TEXTS)


@pytest.mark.parametrize("quantization", ["bitsandbytes-4bit", "bitsandbytes-8bit"])
def test_quantized(any_llm, quantization):
    """States are those on the CPU up to rounding; a pipeline trains on packed weights."""
    pytest.importorskip("bitsandbytes")
    found, expected = (
        read_texts(
            make_llm(
                str(any_llm), dtype="float32", device=device, quantization=quantization
            ).load(),
            TOKENS,
            FeatureSpec((2, 4)),
        )
        for device in (CUDA, "cpu")
    )
    for a, b in zip(found, expected):
        assert (a.hidden.cpu() - b.hidden).norm() < 0.1 * b.hidden.norm()


def test_train_on_four_bits(tiny_llm):
    pytest.importorskip("bitsandbytes")
    nlp = make_nlp("padellm", tiny_llm)
    nlp.get_pipe("padellm_ner").llm = make_llm(
        str(tiny_llm), dtype="bfloat16", device=CUDA, quantization="bitsandbytes-4bit"
    )
    losses = train(nlp)
    assert losses[-1] < losses[0]
    assert len(run(nlp)) == len(TEXTS)


def test_spread_over_gpu_and_cpu(tiny_llm):
    """With half of the layers on the CPU, the results are those on the CPU alone."""
    table = {"model.embed_tokens": 0, "model.layers.0": 0, "model.layers.1": 0, "lm_head": 0}
    table.update({"model.layers.2": "cpu", "model.layers.3": "cpu", "model.norm": "cpu"})
    llm = make_llm(str(tiny_llm), dtype="float32", device_map=table).load()
    assert llm.is_spread and llm.device.type == "cuda"
    exact = make_llm(str(tiny_llm), dtype="float32", device="cpu").load()
    spec = FeatureSpec((1, 3, 4))
    for a, b in zip(read_texts(llm, TOKENS, spec), read_texts(exact, TOKENS, spec)):
        assert torch.allclose(a.hidden.cpu(), b.hidden, atol=1e-3)
    requests = [writing(text) for text in TOKENS]
    found, expected = (DecodingEngine(x).run(requests) for x in (llm, exact))
    for mine, theirs in zip(found, expected):
        assert [a.ids for a in mine] == [a.ids for a in theirs]
    settings = AdapterSettings(rank=2, first_layer=0)
    adapter, _ = new_adapter(llm, settings)
    view = adapter.attach(llm, settings)
    packed = [
        pack([TrainingSequence(ids, [False, *[True] * (len(ids) - 1)])]) for ids in TOKENS[:2]
    ]
    target_logits(llm, view, packed).square().mean().backward()
    assert {p.grad.device.type for p in adapter.parameters()} == {"cuda", "cpu"}
