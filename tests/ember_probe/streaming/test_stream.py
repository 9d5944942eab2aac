"""Entities while the LLM writes, on a tiny random LLM: it writes nonsense, with half characters."""

import numpy as np
import pytest
import spacy
import torch
from spacy.training import Example

from spacy_llmner.ember_probe.streaming.events import EntityEvent, TextPiece
from spacy_llmner.ember_probe.streaming.live_text import LiveText
from spacy_llmner.ember_probe.streaming.prompt import encode_prompt
from spacy_llmner.ember_probe.streaming.streamer import _row
from spacy_llmner.errors import LLMNERError
from spacy_llmner.llm.hidden_states import StepReader, read_texts
from spacy_llmner.llm.registry import make_llm
from tests.ember_probe.helpers import (
    PAPER,
    TEXTS,
    TRAIN,
    assert_same,
    assert_valid,
    entities,
    make_nlp,
    train,
)

PROMPT = "Mira Stone met Oskar Blum in Varnholm. In Port"
# The last word is that of an entity.
ENDS = [
    ("Mira met Oskar Blum", [(0, 4, "PER"), (9, 19, "PER")]),
    ("Tea in Port Ellam", [(7, 17, "LOC")]),
    ("Oskar Blum in Varnholm", [(0, 10, "PER"), (14, 22, "LOC")]),
]


@pytest.fixture(params=["default", "current", "next", "both", "adjacency"])
def any_streaming(request, paper):
    if request.param == "default":
        return request.getfixturevalue("trained")
    return paper(request.param)


@pytest.fixture(scope="module")
def streaming_llm(any_llm):
    """Get a pipeline on an LLM of each shape: the default one, or one for a kind of attention."""
    made = {}

    def get(attention=""):
        if attention not in made:
            nlp = make_nlp(any_llm, width=16)
            if attention:
                nlp = make_nlp(any_llm, PAPER, attention=attention, width=32, max_words=4)
            made[attention] = train(nlp, 60, ENDS, learn_rate=0.03)
        return made[attention]

    return get


@pytest.fixture
def fed(monkeypatch):
    """Number of tokens of each forward pass."""
    lengths = []
    for name in ("feed", "feed_last"):
        original = getattr(StepReader, name)

        def counted(self, ids, original=original):
            lengths.append(len(ids))
            return original(self, ids)

        monkeypatch.setattr(StepReader, name, counted)
    return lengths


def stream_of(nlp, prompt=PROMPT, **settings):
    return nlp.get_pipe("ember_probe").stream(prompt, **settings)


def run(stream):
    """RETURNS (Tuple): The pieces' text, and the entity events."""
    events = list(stream)
    text = "".join(e.text for e in events if isinstance(e, TextPiece))
    return text, [e for e in events if isinstance(e, EntityEvent)]


def remaining(events):
    """RETURNS (Dict): The entities that are left after following all events."""
    shown = {}
    for event in events:
        key = (event.start, event.end, event.label)
        if event.replaces is not None:
            shown.pop(event.replaces, None)
        if event.status == "dropped":
            shown.pop(key, None)
        else:
            shown[key] = event
    return shown


def assert_consistent(stream, text, events):
    doc = stream.doc
    assert text == doc.text == stream.text
    assert_valid(doc, text)
    shown = remaining(events)
    assert sorted(shown) == sorted(entities(doc))
    for event in shown.values():
        assert event.status == "final"
    for event in events:
        assert text[event.start : event.end] == event.text
        assert 0.0 <= event.score <= 1.0


def greedy(llm, ids, n):
    """RETURNS (List[int]): The token ids that `generate` of transformers returns."""
    out = llm.model.generate(torch.tensor([ids]), max_new_tokens=n, do_sample=False, pad_token_id=1)
    return out[0, len(ids) :].tolist()


def test_same_text_as_generate(any_streaming):
    stream = stream_of(any_streaming, max_new_tokens=40)
    text, events = run(stream)
    llm = any_streaming.get_pipe("ember_probe").shared_llm()
    ids = llm.tokenizer.bos + llm.tokenizer.encode(PROMPT).ids
    written = [t for t in greedy(llm, ids, 40) if t not in llm.tokenizer.hf.all_special_ids]
    prompt_ids = llm.tokenizer.encode(PROMPT).ids
    assert stream._live.ids == prompt_ids + written
    assert text.startswith(PROMPT)
    assert_consistent(stream, text, events)


def test_one_pass_of_one_token_for_each_new_token(trained, paper, fed):
    n_prompt = len(encode_prompt(trained.get_pipe("ember_probe").shared_llm(), PROMPT).ids)
    run(stream_of(trained, max_new_tokens=12))
    assert fed == [n_prompt] + [1] * 12
    fed.clear()
    # Kinds of attention that use the next token need one more token for the last word.
    run(stream_of(paper("next"), max_new_tokens=12))
    assert fed == [n_prompt] + [1] * 13


def test_nothing_is_read_again(trained, monkeypatch):
    llm = trained.get_pipe("ember_probe").shared_llm()
    seen = []
    hook = llm.model.model.embed_tokens.register_forward_hook(
        lambda module, args, out: seen.append(args[0].numel())
    )
    try:
        run(stream_of(trained, max_new_tokens=10))
    finally:
        hook.remove()
    assert seen[1:] == [1] * 10


@pytest.mark.parametrize(
    "text",
    [*TEXTS, " ".join(TEXTS), "Mira  Stone \n met\tOskar Blum.  ", "x"]
    + ["\u3000\u3000\x85 Mira Stone\xa0\n", "In \u200b Port \n Ellam \ufeff , \u2028Tea"],
)
def test_fixed_text_token_by_token(any_streaming, text):
    """A text that is streamed in the tokens that it is encoded to gets the entities of nlp(text)."""
    live = LiveText(any_streaming.get_pipe("ember_probe").predictor())
    *steps, (doc, more) = fed_with(live, text)
    events = sum(steps, [])
    assert_same(doc, any_streaming(text))
    assert not [e for e in more if e.status == "dropped" and e in live.finals.values()]
    shown = remaining(events + more)
    assert sorted(shown) == sorted(entities(doc))
    for ent in doc.ents:
        key = (ent.start_char, ent.end_char, ent.label_)
        # The score of a final entity depends on the text up to where it became final.
        assert shown[key].status == "final"


@pytest.mark.parametrize("kind", ["next", "both"])
def test_delay_of_one_token(paper, kind):
    """If the token after a mention is needed, the event comes after that token was read. If no white space
    follows a mention, its last word is only known to be complete when the next one ends."""
    nlp = paper(kind)
    n_found = 0
    for text in TEXTS:
        live = LiveText(nlp.get_pipe("ember_probe").predictor())
        *steps, (doc, more) = fed_with(live, text)
        for ent in doc.ents:
            if text[ent.end_char].isspace():
                behind = sum(start < ent.end_char for start in live.starts)
                step = next(i for i, events in enumerate(steps) if ent.text in texts_of(events))
                assert step == behind
                n_found += 1
            else:
                assert ent.text in texts_of(more) and ent.text not in texts_of(sum(steps, []))
    assert n_found > 4


def texts_of(events):
    return [event.text for event in events]


def fed_with(live, text):
    """Feed a text token by token, with the features from reading it in one pass.

    YIELDS: The events of each token, then the Doc and the last events.
    """
    llm, reader = live.llm, live.reader
    ids = llm.tokenizer.encode(text).ids
    end = llm.tokenizer.end if reader.attention else []
    n_sink = len(llm.tokenizer.bos)
    features = read_texts(llm, [llm.tokenizer.bos + ids + end], reader.probed)[0]
    for i, token in enumerate(ids):
        yield live.add_token(token, _row(features, n_sink + i))
    yield live.finish(_row(features, n_sink + len(ids)) if end else None)


@pytest.mark.parametrize("n", [0, 1, 5, 30])
def test_doc_is_that_of_the_text(any_streaming, n):
    """If the generated tokens are those that the text is encoded to, the Doc is the same as nlp(text)."""
    stream = stream_of(any_streaming, TEXTS[0], max_new_tokens=n)
    text, events = run(stream)
    assert_consistent(stream, text, events)
    llm = any_streaming.get_pipe("ember_probe").shared_llm()
    if llm.tokenizer.encode(text).ids == stream._live.ids:
        assert_same(stream.doc, any_streaming(text))
    elif n == 0:
        raise AssertionError("the prompt was encoded in another way than the text")


def test_entities_of_the_prompt_are_events(trained):
    text, events = run(stream_of(trained, TEXTS[0] + " ", max_new_tokens=0))
    assert text == TEXTS[0] + " "
    assert sorted(remaining(events)) == TRAIN[0][1]


def test_events_come_while_it_is_written(trained):
    """An entity of the prompt is shown before the generation ends."""
    events = list(stream_of(trained, " ".join(TEXTS) + " ", max_new_tokens=20))
    first = next(i for i, e in enumerate(events) if isinstance(e, EntityEvent))
    last = max(i for i, e in enumerate(events) if isinstance(e, TextPiece))
    assert first < last
    assert any(e.status == "final" for e in events[:last] if isinstance(e, EntityEvent))


def test_stop_strings(trained):
    full, _ = run(stream_of(trained, max_new_tokens=30))
    written = full[len(PROMPT) :]
    stop = written[3:5]
    stream = stream_of(trained, max_new_tokens=30, stop=["", "never there", stop])
    text, events = run(stream)
    assert stream.stop_reason == "stop"
    assert stop in text[len(PROMPT) :] and len(text) < len(full)
    assert full.startswith(text.rstrip("\ufffd"))
    assert_consistent(stream, text, events)


def test_one_stop_string(trained):
    full, _ = run(stream_of(trained, max_new_tokens=30))
    stop = full[len(PROMPT) + 3 : len(PROMPT) + 5]
    text, _ = run(stream_of(trained, max_new_tokens=30, stop=stop))
    assert text == run(stream_of(trained, max_new_tokens=30, stop=[stop]))[0]


@pytest.mark.parametrize(
    "setting,value,must",
    [
        ("max_new_tokens", -1, "0 or more"),
        ("max_new_tokens", 2.5, "0 or more"),
        ("temperature", -0.5, "0 or at least 1e-06"),
        ("temperature", "hot", "0 or at least 1e-06"),
        ("temperature", 1e-42, "0 or at least 1e-06"),
        ("top_p", 2.0, "above 0, and at most 1"),
        ("top_p", 0.0, "above 0, and at most 1"),
        ("repetition_penalty", 0, "at least 1e-06"),
        ("repetition_penalty", 1e-42, "at least 1e-06"),
        ("seed", 1.5, "a whole number from"),
        ("seed", 2**70, "a whole number from"),
        ("seed", True, "a whole number from"),
        ("stop", 5, "a text, or a list of texts"),
        ("stop", b"x", "a text, or a list of texts"),
        ("stop", None, "a text, or a list of texts"),
    ],
)
def test_invalid_settings(trained, setting, value, must):
    match = f"`{setting}` of 'stream' is {value!r}, but must be {must}"
    with pytest.raises(LLMNERError, match=match):
        stream_of(trained, **{setting: value})


def test_whole_numbers_are_numbers(trained):
    texts = [
        run(stream_of(trained, max_new_tokens=5, temperature=n, repetition_penalty=2 * n, seed=-3))[
            0
        ]
        for n in (1, 1.0, np.float32(1.0))
    ]
    assert texts[0] == texts[1] == texts[2]


def test_least_temperature(trained):
    """With the lowest temperature, sampling chooses the most probable token."""
    texts = [
        run(stream_of(trained, max_new_tokens=10, temperature=t, repetition_penalty=1e-6))[0]
        for t in (0, 1e-6)
    ]
    assert texts[0] == texts[1]


def test_cancel(trained):
    stream = stream_of(trained, max_new_tokens=50)
    pieces = []
    for event in stream:
        if isinstance(event, TextPiece):
            pieces.append(event.text)
        if len(pieces) == 3:
            stream.cancel()
    assert stream.stop_reason == "cancelled"
    assert stream.doc.text == "".join(pieces)
    n_prompt = len(trained.get_pipe("ember_probe").shared_llm().tokenizer.encode(PROMPT))
    assert len(stream._live.ids) - n_prompt < 15


def test_length_is_the_reason(trained):
    stream = stream_of(trained, max_new_tokens=3)
    run(stream)
    assert stream.stop_reason == "length"


def test_room_in_the_llm(trained):
    """Generation stops when the LLM has no positions left."""
    llm = trained.get_pipe("ember_probe").shared_llm()
    stream = stream_of(trained, max_new_tokens=10_000)
    text, events = run(stream)
    assert len(stream._live.ids) + 1 <= llm.max_length
    assert_consistent(stream, text, events)


@pytest.mark.parametrize("attention", ["", "next"])
def test_prompts_as_long_as_the_llm(streaming_llm, attention):
    """There can be only one position left for generated text, or none."""
    nlp = streaming_llm(attention)
    llm = nlp.get_pipe("ember_probe").shared_llm()
    most = llm.max_length - len(llm.tokenizer.bos) - (len(llm.tokenizer.end) if attention else 0)
    assert len(llm.tokenizer.encode("x" * most)) == most
    for n_left in (0, 1):
        stream = stream_of(nlp, "x" * (most - n_left))
        text, events = run(stream)
        assert_consistent(stream, text, events)
        assert len(stream._live.ids) <= most and stream.stop_reason in ("length", "end")
    with pytest.raises(
        LLMNERError, match=r"takes 2\d\d tokens, but the LLM .* has room for 25[56]"
    ):
        run(stream_of(nlp, "x" * (most + 1)))


def test_the_last_word_is_read_behind_all_others(streaming_llm):
    """A text that is generated in the tokens that it is encoded to gets the entities of nlp(text)."""
    nlp = streaming_llm("next")
    llm = nlp.get_pipe("ember_probe").shared_llm()
    n_found = 0
    for text, _ in ENDS:
        prompt = text[: text.rindex(" ")]
        ids = llm.tokenizer.encode(text).ids
        rest = ids[len(llm.tokenizer.encode(prompt)) :]
        stream = stream_of(nlp, prompt, max_new_tokens=len(rest))
        stream._choose = lambda *args, rest=iter(rest): next(rest)
        run(stream)
        assert stream._live.ids == ids
        assert_same(stream.doc, nlp(text))
        n_found += any(ent.end_char == len(text) for ent in stream.doc.ents)
    assert n_found


def test_empty_prompt(any_streaming):
    stream = stream_of(any_streaming, "", max_new_tokens=8)
    text, events = run(stream)
    assert_consistent(stream, text, events)
    stream = stream_of(any_streaming, "", max_new_tokens=0)
    assert run(stream) == ("", [])
    assert len(stream.doc) == 0


@pytest.mark.parametrize(
    "prompt", ["  ", "\n", "Mira Stone 🚀", "王小明 é", "Oskar\x04 ", "a  b \n\n c"]
)
def test_odd_prompts(any_streaming, prompt):
    stream = stream_of(any_streaming, prompt, max_new_tokens=10)
    text, events = run(stream)
    assert text.startswith(prompt)
    assert_consistent(stream, text, events)


def test_messages_need_a_template(trained):
    with pytest.raises(LLMNERError, match="has no chat template.*smollm2"):
        run(stream_of(trained, [{"role": "user", "content": "Who?"}]))


def test_probes_that_see_the_whole_text_cannot_stream(trained_right):
    with pytest.raises(LLMNERError, match="can only read finished texts"):
        stream_of(trained_right)
    with pytest.raises(LLMNERError, match="can only read finished texts"):
        trained_right.get_pipe("ember_probe").streamer()


def test_untrained_cannot_stream(tiny_llm):
    with pytest.raises(LLMNERError, match="has no labels"):
        stream_of(make_nlp(tiny_llm))


def test_sampling_follows_its_seed_and_no_global_one(trained):
    before = torch.get_rng_state()
    settings = {"max_new_tokens": 20, "temperature": 1.5, "top_p": 0.95}
    texts = [run(stream_of(trained, seed=seed, **settings))[0] for seed in (7, 7, 8)]
    assert texts[0] == texts[1] != texts[2]
    assert torch.equal(torch.get_rng_state(), before)


def test_repetition_penalty(trained):
    plain = stream_of(trained, max_new_tokens=25)
    penalized = stream_of(trained, max_new_tokens=25, repetition_penalty=3.0)
    run(plain), run(penalized)
    assert len(set(penalized._live.ids)) > len(set(plain._live.ids))


def test_every_shape_of_llm(any_llm):
    nlp = train(make_nlp(any_llm, width=16), steps=10)
    stream = stream_of(nlp, TEXTS[0] + " Mira", max_new_tokens=15)
    text, events = run(stream)
    assert_consistent(stream, text, events)
    llm = make_llm(any_llm, device="cpu").load()
    ids = encode_prompt(llm, TEXTS[0] + " Mira").ids
    special = llm.tokenizer.hf.all_special_ids
    written = [t for t in greedy(llm, ids, 15) if t not in special]
    assert stream._live.ids[len(ids) - len(llm.tokenizer.bos) :] == written


@pytest.mark.parametrize("segmenter", ["char"])
def test_chinese(tiny_llm, segmenter):
    nlp = spacy.blank("zh")
    assert nlp.tokenizer.segmenter == segmenter
    nlp = make_nlp(tiny_llm, lang="zh", width=32)
    data = [
        ("王小明在北京大学学习。", [(0, 3, "PER"), (4, 8, "ORG")]),
        ("他住在上海。", [(3, 5, "LOC")]),
    ]
    examples = [Example.from_dict(nlp.make_doc(t), {"entities": e}) for t, e in data]
    assert len(examples) == 2
    train(nlp, data=data)
    stream = stream_of(nlp, data[0][0], max_new_tokens=0)
    text, events = run(stream)
    assert_consistent(stream, text, events)
    assert sorted(remaining(events)) == data[0][1]
    stream = stream_of(nlp, data[0][0], max_new_tokens=12)
    assert_consistent(stream, *run(stream))


def test_cancelled_when_it_had_stopped_anyway(trained):
    """The first reason to stop is reported."""
    stream = stream_of(trained, max_new_tokens=3)
    pieces = 0
    for event in stream:
        pieces += isinstance(event, TextPiece)
        if stream.stop_reason is not None:
            stream.cancel()
    assert pieces and stream.stop_reason == "length"
