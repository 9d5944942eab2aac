"""padellm_ner next to ember_probe on one LLM, and compared with plain decoding."""

from dataclasses import replace

import pytest
import spacy
import torch
from transformers import AutoModelForCausalLM

from spacy_llmner.decoding.engine import DecodingEngine
from spacy_llmner.errors import LLMNERError
from spacy_llmner.llm import registry as pool
from spacy_llmner.padellm_ner.decoding import MentionDecodingSettings, find_mentions
from spacy_llmner.pipeline.spans import assign_occurrences
from tests.contracts.components import Untouched
from tests.helpers import TEXTS, make_examples, make_sgd, scores
from tests.padellm_ner.helpers import DATA, initialized, make_nlp


@pytest.fixture(scope="module")
def ember(tiny_llm, tmp_path_factory):
    """An ember_probe on the same LLM."""
    nlp = spacy.blank("en")
    config = {
        "llm": {"@misc": "spacy_llmner.LLM.v1", "name": tiny_llm, "device": "cpu"},
        "feature_cache": "off",
        "spans_key": "ember",
    }
    nlp.add_pipe("ember_probe", config=config)
    examples = make_examples(nlp, DATA)
    nlp.initialize(lambda: examples)
    for _ in range(10):
        nlp.update(examples, sgd=make_sgd())
    return nlp


def ember_scores(doc):
    group = doc.spans["ember"]
    return [(s.start, s.end, s.label_, x) for s, x in zip(group, group.attrs["scores"])]


@pytest.mark.parametrize("order", [["ember_probe", "padellm_ner"], ["padellm_ner", "ember_probe"]])
def test_ember_probe_next_to_it(ember, trained, order):
    """Its output is bit for bit the same with padellm_ner before or after it."""
    alone = [ember_scores(ember(text)) for text in TEXTS]
    n_loaded = len(pool.loaded())  # other tests may have loaded others
    sources = {"ember_probe": ember, "padellm_ner": trained}
    nlp = spacy.blank("en")
    for name in order:
        nlp.add_pipe(name, source=sources[name])
    docs = [nlp(text) for text in TEXTS]
    assert [ember_scores(doc) for doc in docs] == alone
    assert [ember_scores(ember(text)) for text in TEXTS] == alone
    for doc, text in zip(docs, TEXTS):
        assert scores(doc) == pytest.approx(scores(trained(text)), abs=1e-6)
    first, second = (nlp.get_pipe(name) for name in order)
    assert first.shared_llm() is second.shared_llm()
    assert len(pool.loaded()) == n_loaded
    # This is true even while the other component is trained.
    trained_on = nlp.get_pipe("padellm_ner")
    trained_on.update(make_examples(nlp))
    assert [ember_scores(ember(text)) for text in TEXTS] == alone
    trained_on.module.zero_grad(set_to_none=True)


def test_a_stream_that_is_left_changes_nothing(trained):
    untouched = Untouched([trained.get_pipe("padellm_ner").shared_llm()])
    with pytest.raises(RuntimeError):  # stopped in the middle of a text
        for _ in trained.get_pipe("padellm_ner").stream(TEXTS[0]):
            raise RuntimeError
        raise RuntimeError
    untouched.check()


@pytest.mark.parametrize("template", ["compact", "published_en"])
def test_equal_to_plain_decoding(any_llm, template):
    """A batch, one text at a time, and a plain loop over transformers' own model decode the same,
    with the same probabilities."""
    nlp = initialized(make_nlp(any_llm, template=template))
    pipe = nlp.get_pipe("padellm_ner")
    llm, _, prompt_encoder = pipe.adapted_llm()
    model = AutoModelForCausalLM.from_pretrained(any_llm).eval()
    settings = MentionDecodingSettings(raw=True)
    windows = [pipe._windows(nlp.make_doc(text), prompt_encoder)[0].words for text in TEXTS[:4]]
    requests = [
        find_mentions(prompt_encoder, words, text, ["LOC", "PER"], settings)
        for words, text in zip(windows, TEXTS)
    ]
    together = DecodingEngine(llm, raw=True).run(requests)
    for words, text, batched in zip(windows, TEXTS, together):
        (alone,) = DecodingEngine(llm, raw=True).run(
            [find_mentions(prompt_encoder, words, text, ["LOC", "PER"], settings)]
        )
        plain = plainly(model, prompt_encoder, words, text, ["LOC", "PER"])
        for label in ("LOC", "PER"):
            assert [w.occurrences for w in batched[label]] == [w.occurrences for w in alone[label]]
            assert [w.occurrences for w in plain[label]] == [w.occurrences for w in alone[label]]
            assert assign_occurrences(batched[label]) == assign_occurrences(plain[label])
            for one, other, third in zip(batched[label], alone[label], plain[label]):
                for kind in ("log_probs", "raw_log_probs"):
                    a, b, c = (getattr(w, kind) for w in (one, other, third))
                    assert a == pytest.approx(b, abs=1e-4) and a == pytest.approx(c, abs=1e-4)


@pytest.mark.parametrize("template", ["compact", "published_en"])
def test_calibrated_counts_do_not_depend_on_the_speed_ups(any_llm, template):
    """Batched, one by one, without drafts and without look-ahead: the same, as likely."""
    nlp = initialized(make_nlp(any_llm, template=template))
    pipe = nlp.get_pipe("padellm_ner")
    llm, _, prompt_encoder = pipe.adapted_llm()
    windows = [pipe._windows(nlp.make_doc(text), prompt_encoder)[0].words for text in TEXTS[:4]]

    def requests(settings):
        return [
            find_mentions(prompt_encoder, words, text, ["LOC", "PER"], settings)
            for words, text in zip(windows, TEXTS)
        ]

    usual = MentionDecodingSettings(count_threshold=0.05)
    plain = MentionDecodingSettings(count_threshold=0.05, draft=0, look_ahead=False)
    batched = DecodingEngine(llm).run(requests(usual))
    assert any(written for found in batched for written in found.values())
    for settings in (usual, replace(usual, draft=0), replace(usual, look_ahead=False), plain):
        alone = [DecodingEngine(llm).run([request])[0] for request in requests(settings)]
        for one, other in zip(batched, alone):
            for label in ("LOC", "PER"):
                assert [w.occurrences for w in one[label]] == [w.occurrences for w in other[label]]
                for a, b in zip(one[label], other[label]):
                    assert a.log_probs == pytest.approx(b.log_probs, abs=1e-4)


def plainly(model, prompt_encoder, words, text, labels):
    """RETURNS (Dict[str, List[DecodedMention]]): Token by token, each with a pass over all before it."""
    from spacy_llmner.decoding.substrings import substring_constraint
    from spacy_llmner.padellm_ner.decoding import DecodedMention

    tokenizer = prompt_encoder.tokenizer if prompt_encoder.template.bare else None
    mentions = substring_constraint(words, prompt_encoder.end, tokenizer, text)
    numbers = prompt_encoder.numbers(len(words))

    def write(prompt, constraint):
        ids, state, log_probs, raw = list(prompt), constraint.start, [], []
        while len(allowed := constraint.allowed(state)):
            with torch.no_grad():
                logits = model(torch.tensor([ids])).logits[0, -1].double()
            some = torch.log_softmax(logits[torch.from_numpy(allowed)], dim=0)
            best = int(some.argmax())
            log_probs.append(float(some[best]))
            ids.append(int(allowed[best]))
            raw.append(float(torch.log_softmax(logits, dim=0)[ids[-1]]))
            state = constraint.advance(state, ids[-1])
        return ids[len(prompt) :], state, log_probs[:-1], raw[:-1]

    out = {}
    for label in labels:
        prompt = [*prompt_encoder.before, *words.ids.tolist(), *prompt_encoder.label(label)]
        count, *_ = write([*prompt, *prompt_encoder.count()], numbers)
        n = numbers.sequences.index(tuple(count))
        out[label] = []
        for k in range(1, n + 1):
            _, state, log_probs, raw = write([*prompt, *prompt_encoder.mention(n, k)], mentions)
            out[label].append(DecodedMention(label, k, mentions.spans(state), log_probs, raw))
    return out


@pytest.mark.parametrize("count", ["argmax", "calibrated"])
def test_llm_that_overflows(trained, ember, monkeypatch, count):
    """Without an error, it would look as if the text had no entities."""
    pipe = trained.get_pipe("padellm_ner")
    norm = pipe.shared_llm().decoder.layers[0].input_layernorm.weight
    kept = norm.clone()
    monkeypatch.setitem(pipe.cfg, "count", count)
    try:
        norm.data.fill_(float("nan"))
        for nlp in (trained, ember):
            with pytest.raises(LLMNERError, match="NaN or infinite values in torch.float32"):
                list(nlp.pipe(TEXTS))
        with pytest.raises(LLMNERError, match="The loss of 'padellm_ner' is not finite .nan."):
            pipe.update(make_examples(trained))
    finally:
        norm.data.copy_(kept)
