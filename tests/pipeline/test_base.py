"""What LLMNERPipe does for every component, shown on one that finds words without any LLM."""

from contextlib import contextmanager

import pytest
import spacy
import srsly
import torch
from spacy.tokens import Span
from spacy.training import Example
from thinc.api import Adam, noop

from spacy_llmner.errors import DocumentError, LLMMismatchError, LLMNERError, LLMNotFoundError
from spacy_llmner.llm.registry import make_llm
from spacy_llmner.pipeline.base import LLMNERPipe
from spacy_llmner.pipeline.predictions import PredictedSpan, Prediction
from spacy_llmner.pipeline.scorers import scored_entities

TEXTS = [f"Text {i} names Mira" for i in range(7)]


class FindMira(LLMNERPipe):
    """Every "Mira" is a PER; with a neighbour it is one too, but only in doc.spans."""

    factory = "find_mira"

    def __init__(self, nlp):
        llm = make_llm("/no/such/llm")
        super().__init__(nlp, llm, noop(), "mira", scorer=None, spans_key="sc", overwrite=True)
        self.batches = []
        self.fail = lambda docs: None
        self.cfg["labels"] = ["PER"]
        sizes = {"n_layers": 1, "width": 2, "n_heads": 1}
        self.cfg["llm"] = {"name": "/no/such/llm", "fingerprint": "x", **sizes}
        self.module = self.build()

    def build(self):
        return torch.nn.Linear(2, 1)

    def predict(self, docs):
        docs = list(docs)
        self.batches.append(len(docs))
        self.fail(docs)
        out = []
        for doc in docs:
            found = [PredictedSpan(t.i, t.i + 1, "PER", 0.75) for t in doc if t.text == "Mira"]
            wider = [PredictedSpan(max(s.start - 1, 0), s.end, "PER", 0.25) for s in found]
            out.append(Prediction(found, found + wider))
        return out


@pytest.fixture
def nlp():
    return spacy.blank("en")


@pytest.fixture
def pipe(nlp):
    return FindMira(nlp)


def run(nlp, pipe, texts=TEXTS, batch_size=8):
    return list(pipe.pipe((nlp.make_doc(text) for text in texts), batch_size=batch_size))


def test_annotations(nlp, pipe):
    (doc,) = run(nlp, pipe, ["We met Mira ."])
    assert [(e.text, e.label_, e._.score) for e in doc.ents] == [("Mira", "PER", 0.75)]
    assert [s.text for s in doc.spans["sc"]] == ["Mira", "met Mira"]
    assert doc.spans["sc"].attrs == {
        "scores": [0.75, 0.25],
        "chars": [[7, 11, "PER"], [3, 11, "PER"]],
        "method": "mira",
        "ents": [[7, 11, "PER"]],
    }
    assert doc.ents[0]._.method == "mira"
    assert doc[1:3]._.score is None and doc[1:3]._.method is None
    assert Span(doc, 1, 3, label="PER")._.score == 0.25
    assert [t.ent_iob_ for t in doc] == ["O", "O", "B", "O"]


def test_scores_survive_bytes(nlp, pipe):
    (doc,) = run(nlp, pipe, ["We met Mira ."])
    again = spacy.tokens.Doc(nlp.vocab).from_bytes(doc.to_bytes())
    assert again.ents[0]._.score == 0.75 and again.ents[0]._.method == "mira"


def test_old_entities_stay_without_overwrite(nlp, pipe):
    pipe.cfg["overwrite"] = False
    doc = nlp.make_doc("Mira and Mira")
    doc.ents = [Span(doc, 0, 2, label="OLD")]
    for _ in range(2):
        pipe.set_annotations([doc], pipe.predict([doc]))
        assert [(e.start, e.end, e.label_) for e in doc.ents] == [(0, 2, "OLD"), (2, 3, "PER")]
    pipe.cfg["overwrite"] = True
    pipe.set_annotations([doc], pipe.predict([doc]))
    assert [e.label_ for e in doc.ents] == ["PER", "PER"]


def fail_for(text, error=ValueError):
    def fail(docs):
        if any(doc.text == text for doc in docs):
            raise error("bad document")

    return fail


@pytest.mark.parametrize("error", [ValueError, DocumentError])
def test_bad_document_costs_only_itself(nlp, pipe, error):
    pipe.fail = fail_for(TEXTS[3], error)
    seen = []
    pipe.set_error_handler(lambda name, proc, docs, e: seen.append((name, [d.text for d in docs])))
    docs = run(nlp, pipe)
    assert [doc.text for doc in docs] == TEXTS[:3] + TEXTS[4:]
    assert all(len(doc.ents) == 1 for doc in docs)
    assert seen == [("mira", [TEXTS[3]])]


def test_bad_document_raises_by_default(nlp, pipe):
    pipe.fail = fail_for(TEXTS[3])
    with pytest.raises(ValueError, match="bad document"):
        run(nlp, pipe)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError, MemoryError])
def test_out_of_memory_halves_the_batch(nlp, pipe, error):
    def fail(docs):
        if len(docs) > 2:
            raise error("out of memory")

    pipe.fail = fail
    docs = run(nlp, pipe)
    assert [doc.text for doc in docs] == TEXTS
    assert pipe.batches == [7, 3, 1, 2, 4, 2, 2]


@pytest.mark.parametrize("error", [LLMNotFoundError, LLMMismatchError, LLMNERError])
def test_no_document_is_blamed_for_the_set_up(nlp, pipe, error):
    def fail(docs):
        raise error("wrong LLM")

    pipe.fail = fail
    pipe.set_error_handler(lambda *args: None)
    with pytest.raises(error):
        run(nlp, pipe)
    assert pipe.batches == [7]


def test_interrupt_is_no_bad_document(nlp, pipe):
    def fail(docs):
        raise KeyboardInterrupt

    pipe.fail = fail
    pipe.set_error_handler(lambda *args: None)
    with pytest.raises(KeyboardInterrupt):
        run(nlp, pipe)


def test_stream_is_lazy(nlp, pipe):
    taken = []

    def texts():
        for text in TEXTS:
            taken.append(text)
            yield nlp.make_doc(text)

    stream = pipe.pipe(texts(), batch_size=2)
    next(stream)
    assert len(taken) == 2


@contextmanager
def use_params(pipe, params):
    """spaCy steps through the generator itself: it is not a context manager."""
    steps = pipe.use_params(params)
    next(steps)
    yield
    next(steps, None)


def give_gradient(pipe, value=1.0):
    for p in pipe.module.parameters():
        p.grad = torch.full_like(p, value)


def test_step_follows_the_optimizer(pipe):
    pipe.finish_update(Adam(0.1))  # no gradient, no step
    assert pipe._optimizer is None
    before = pipe.module.weight.detach().clone()
    give_gradient(pipe)
    pipe.finish_update(Adam(0.1, L2=0.0))
    # Adam's first step is the learning rate.
    assert torch.allclose(before - pipe.module.weight, torch.tensor(0.1), atol=1e-4)
    assert pipe.module.weight.grad is None


def test_weight_decay_is_for_matrices(pipe):
    give_gradient(pipe)
    pipe.finish_update(Adam(0.1, L2=0.2, L2_is_weight_decay=True))
    assert [g["weight_decay"] for g in pipe._optimizer.param_groups] == [0.2, 0.0]
    give_gradient(pipe)
    pipe.finish_update(Adam(0.1, L2=0.2, L2_is_weight_decay=False))
    assert [g["weight_decay"] for g in pipe._optimizer.param_groups] == [0.0, 0.0]


def test_gradients_are_clipped(pipe, monkeypatch):
    norms = []
    original = torch.nn.utils.clip_grad_norm_

    def clip(parameters, most):
        out = original(parameters, most)
        norms.append(float(sum((p.grad**2).sum() for p in parameters)) ** 0.5)
        return out

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", clip)
    give_gradient(pipe, 1000.0)
    pipe.finish_update(Adam(0.1, grad_clip=0.5))
    assert norms == [pytest.approx(0.5, rel=1e-3)]


def test_averages(pipe):
    sgd = Adam(0.1, use_averages=True)
    weights = []
    for _ in range(3):
        give_gradient(pipe)
        pipe.finish_update(sgd)
        weights.append(pipe.module.weight.detach().clone())
    # thinc's moving average: decay is (1 + t) / (10 + t).
    expected = weights[0]
    for t, w in enumerate(weights[1:], start=2):
        decay = (1 + t) / (10 + t)
        expected = decay * expected + (1 - decay) * w
    with use_params(pipe, sgd.averages):
        assert torch.allclose(pipe.module.weight, expected)
    assert torch.equal(pipe.module.weight, weights[-1])


def test_use_params_of_another_component(pipe, nlp):
    before = pipe.module.weight.detach().clone()
    with use_params(pipe, {(pipe.model.id + 1000, "weight"): torch.zeros(1, 2)}):
        assert torch.equal(pipe.module.weight, before)


def test_untrained_part_has_no_parameters(pipe):
    pipe.module = None
    pipe.finish_update(Adam(0.1))
    with use_params(pipe, {(pipe.model.id, "weight"): torch.zeros(1)}):
        pass


def test_bytes_and_disk(nlp, pipe, tmp_path):
    pipe.cfg["spans_key"] = "other"
    pipe.to_disk(tmp_path)
    for other in (
        FindMira(nlp).from_disk(tmp_path),
        FindMira(spacy.blank("en")).from_bytes(pipe.to_bytes()),
    ):
        assert other.cfg == pipe.cfg
        assert torch.equal(other.module.weight, pipe.module.weight)
        assert not other.module.training
        assert "PER" in other.vocab.strings


@pytest.mark.parametrize("data", [b"abc", b"", srsly.msgpack_dumps({"other": 1})])
def test_bytes_of_something_else(pipe, data):
    with pytest.raises(LLMNERError, match="Can't load 'mira' from the given bytes"):
        pipe.from_bytes(data)


@pytest.mark.parametrize("text", ["We met Ada Mira .", "Ada Mira met Ada Mira and Mira"])
def test_scores_after_tokens_were_merged(nlp, pipe, text):
    """Components such as `merge_entities` change the token indices after the component."""
    (doc,) = run(nlp, pipe, [text])
    (other,) = run(nlp, pipe, [text])
    expected = [(e.text, e._.score, e._.method) for e in doc.ents]
    with other.retokenize() as retokenizer:
        for token in other:
            if token.text == "Ada":
                retokenizer.merge(other[token.i : token.i + 2])
    with doc.retokenize() as retokenizer:
        retokenizer.split(doc[0], [doc[0].text[:1], doc[0].text[1:]], [(doc[0], 0), (doc[0], 1)])
    assert [(e.text, e._.score, e._.method) for e in doc.ents] == expected
    # The merged tokens are a mention that was not found. The entities after it keep their scores.
    assert [e._.score for e in other.ents if e.text == "Mira"] == [0.75] * text.count(" and ")
    assert scored_entities([Example(other, other)], "sc") == [(0.75, True)] * text.count(" and ")


def test_blocked_tokens_stay_so_without_overwrite(nlp, pipe):
    pipe.cfg["overwrite"] = False
    doc = nlp.make_doc("Mira met Mira")
    doc.set_ents([], blocked=[doc[0:1]], default="missing")
    pipe.set_annotations([doc], pipe.predict([doc]))
    assert [e.start for e in doc.ents] == [2]
    pipe.set_annotations([doc], pipe.predict([doc]))  # still known as blocked
    assert [e.start for e in doc.ents] == [2]
    pipe.cfg["overwrite"] = True
    pipe.set_annotations([doc], pipe.predict([doc]))
    assert [e.start for e in doc.ents] == [0, 2]


def test_labels(pipe):
    assert pipe.labels == ("PER",) and pipe.label_data == ["PER"]
    assert pipe.add_label("PER") == 0
    pipe.module = None
    assert pipe.add_label("NEW") == 1
    assert pipe.labels == ("PER", "NEW")
