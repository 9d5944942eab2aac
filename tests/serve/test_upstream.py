"""In front of another server, whose answers the pipeline's LLM reads."""

import json

import httpx2
import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spacy_llmner.serve.entities import final_entities
from tests.ember_probe.helpers import NASTY, TEXTS
from tests.serve.helpers import Collected, entities, keys, serving, wait_until
from tests.serve.scripted import Scripted

repeated = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
QUESTION = [{"role": "user", "content": "Who met whom?"}]
TEXT = " ".join(TEXTS)
WORDS = st.lists(
    st.sampled_from([*TEXT.split(" "), *NASTY, "Mira", "Stone", "\n", "🚀", "["]), max_size=30
).map(" ".join)


def pieces_of(data, text):
    """RETURNS (List[str]): The text, cut anywhere."""
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=12)))
    return [text[i:j] for i, j in zip([0, *cuts], [*cuts, len(text)])]


def doc_of(nlp, text):
    """RETURNS (Doc): What a reader finds in a text."""
    with nlp.get_pipe("ember_probe").reader() as reader:
        reader.push(text)
    return reader.doc


def redacted(doc):
    text, end = "", 0
    for ent in doc.ents:
        text += f"{doc.text[end : ent.start_char]}[{ent.label_}]"
        end = ent.end_char
    return text + doc.text[end:]


def found_in(doc):
    return [(ent.start_char, ent.end_char, ent.label_) for ent in doc.ents]


def ask(client, stream, body, messages=QUESTION, **options):
    """RETURNS (Tuple[str, List]): The answer and its entities."""
    settings = {"model": "scripted", "messages": messages, "extra_body": body, **options}
    reply = client.chat.completions.create(**settings, stream=stream)
    if stream:
        collected = Collected(reply)
        assert collected.finish_reason in ("stop", "length")
        return collected.text, final_entities(collected.events)
    message = reply.choices[0].message
    return message.content, getattr(message, "entities", [])


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("size", [1, 7, 1000])
def test_annotate_and_redact(nlp, front, scripted, stream, size):
    scripted.answer([TEXT[i : i + size] for i in range(0, len(TEXT), size)])
    doc, client = doc_of(nlp, TEXT), front.client()
    assert len(doc.ents) > 3
    text, found = ask(client, stream, entities("annotate"))
    assert text == TEXT and keys(found) == found_in(doc)
    text, found = ask(client, stream, entities("redact"))
    assert text == redacted(doc)
    assert [ent["text"] for ent in found] == [f"[{ent.label_}]" for ent in doc.ents]
    assert ask(client, stream, {}) == (TEXT, [])
    wait_until(lambda: front.service.slots.running == 0 and not front.service.answers)


@settings(repeated, max_examples=150)
@given(data=st.data(), text=WORDS)
def test_no_character_of_an_entity_leaves(nlp, front, scripted, data, text):
    scripted.answer(pieces_of(data, text))
    assert ask(front.client(), True, entities("redact"))[0] == redacted(doc_of(nlp, text))


def test_line_ends_that_are_none(front, scripted):
    """JSON can contain characters that are line ends for Python, but not for server-sent events."""
    text = "a\u2028b\x85c\x1e d"
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": "stop"}
    line = json.dumps({"id": "x", "choices": [choice]}, ensure_ascii=False)
    scripted.answer([], raw=[f"data: {line}\r\n\r\n", "data: [DONE]\r\n\r\n"])
    assert ask(front.client(), True, entities("annotate"))[0] == text


@settings(repeated, max_examples=40)
@given(data=st.data(), text=WORDS, max_hold=st.integers(1, 6))
def test_bounded_hold(nlp, front, scripted, data, text, max_hold):
    """What was not replaced contains no entity. Each placeholder stands for some words."""
    scripted.answer(pieces_of(data, text))
    options = entities("redact", placeholder="⟦{label}⟧", max_hold=max_hold)
    released, _ = ask(front.client(), True, options)
    at = 0
    doc = doc_of(nlp, text)
    inside = {i for start, end, _ in found_in(doc) for i in range(start, end)}
    if "⟦" in text:
        return
    for kept in (part.split("⟧")[-1] for part in released.split("⟦")):
        candidates = [i for i in range(at, len(text) + 1) if text.startswith(kept, i)]
        free = [i for i in candidates if not inside & set(range(i, i + len(kept)))]
        assert free if kept else True, (kept, text)
        at = free[0] + len(kept) if kept else at


@pytest.mark.parametrize("stream", [False, True])
def test_completions(nlp, front, scripted, stream):
    scripted.answer([TEXT])
    settings = {"model": "scripted", "prompt": "Who?", "extra_body": entities("annotate")}
    reply = front.client().completions.create(**settings, stream=stream)
    if stream:
        collected = Collected(reply)
        text, found = collected.text, final_entities(collected.events)
    else:
        text, found = reply.choices[0].text, reply.choices[0].entities
    assert text == TEXT and keys(found) == found_in(doc_of(nlp, TEXT))


def test_requests_are_passed_on(front, scripted):
    scripted.answer(["Hello."])
    tools = [{"type": "function", "function": {"name": "f"}}]
    ask(front.client(api_key="secret"), False, entities("annotate"), tools=tools, seed=3)
    body, headers = scripted.requests[0]
    expected = {"messages": QUESTION, "tools": tools, "seed": 3, "stream": False}
    assert body == {"model": "scripted", **expected}
    assert headers["authorization"] == "Bearer secret"


def test_keys_are_kept_apart(nlp, scripted):
    """The server's own key does not go to the upstream server."""
    for upstream_key, sent in ((None, None), ("theirs", "Bearer theirs")):
        options = {"api_key": "ours", "upstream_key": upstream_key}
        with serving(nlp, upstream=scripted.url, **options) as running:
            scripted.answer(["Hello."])
            ask(running.client(api_key="ours"), False, {})
            assert scripted.requests[0][1].get("authorization") == sent


def test_models(front):
    models = front.client().models.list()
    assert [model.id for model in models] == ["scripted"]
    assert models.entities["labels"] == ["LOC", "PER"]


@pytest.mark.parametrize("stream", [False, True])
def test_placeholders_go_out_and_originals_come_back(front, scripted, stream):
    name = "Mira Stone met Oskar Blum in Varnholm."
    messages = [
        {"role": "system", "content": name},
        {"role": "user", "content": [{"type": "text", "text": f"{TEXTS[1]} {name}"}]},
    ]
    scripted.answer(["[PE", "R_1", "] and [PER_", "2", "] and [PER_9]", " [PER_1"])
    body = {"entities": {"redact_prompt": True}}
    text, found = ask(front.client(), stream, body, messages)
    assert text == "Mira Stone and Oskar Blum and [PER_9] [PER_1" and not found
    sent = scripted.requests[0][0]["messages"]
    assert sent[0]["content"] == "[PER_1] met [PER_2] in [LOC_1]."
    assert sent[1]["content"][0]["text"].endswith("[PER_1] met [PER_2] in [LOC_1].")
    body["entities"]["mode"] = "annotate"
    text, found = ask(front.client(), stream, body, messages)
    assert text == "Mira Stone and Oskar Blum and [PER_9] [PER_1"
    assert "Mira Stone" in [ent["text"] for ent in found]


def test_placeholders_that_a_prompt_contains_are_not_used(front, scripted):
    scripted.answer(["[PER_1] [PER_2]"])
    messages = [{"role": "user", "content": "Mira Stone met [PER_1] in Varnholm."}]
    text, _ = ask(front.client(), True, {"entities": {"redact_prompt": True}}, messages)
    sent = scripted.requests[0][0]["messages"][0]["content"]
    assert "Mira" not in sent and "[PER_2]" in sent
    assert text.startswith("[PER_1] Mira Stone")


def test_a_redacted_prompt_for_completions(front, scripted):
    scripted.answer(["[PER_1]"])
    settings = {"model": "scripted", "prompt": "Mira Stone met Oskar Blum in Varnholm."}
    reply = front.client().completions.create(
        **settings, extra_body={"entities": {"redact_prompt": True}}
    )
    assert reply.choices[0].text == "Mira Stone"
    assert scripted.requests[0][0]["prompt"] == "[PER_1] met [PER_2] in [LOC_1]."


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"messages": [{"role": "user", "content": "x", "name": "Mira"}]}, "content and role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "only a text"),
        ({"messages": [{"role": "user", "content": None}]}, "only a text"),
        ({"messages": "Mira"}, "content and role"),
        ({"prompt": ["Mira"]}, "only a text"),
        ({"messages": QUESTION, "tools": [{}]}, "its calls would have the placeholders"),
    ],
)
def test_prompts_that_cannot_be_redacted(front, scripted, fields, message):
    scripted.answer(["Hello."])
    body = {"model": "scripted", "entities": {"redact_prompt": True}, **fields}
    with pytest.raises(openai.BadRequestError, match=message):
        front.client().post("/chat/completions", body=body, cast_to=object)
    assert not scripted.requests


@pytest.mark.parametrize("field", ["tools", "logprobs"])
def test_answers_that_cannot_be_redacted(front, scripted, field):
    scripted.answer(["Hello."])
    body = {"model": "scripted", "messages": QUESTION, field: [1], **entities("redact")}
    with pytest.raises(openai.BadRequestError, match="can't be redacted"):
        front.client().post("/chat/completions", body=body, cast_to=object)
    assert not scripted.requests


@pytest.mark.parametrize("stream", [False, True])
def test_other_fields_are_passed_on_unless_they_could_leak(front, scripted, stream):
    scripted.answer(["Hello."], extra={"reasoning_content": "Mira Stone"})
    settings = {"model": "scripted", "messages": QUESTION, "stream": stream}
    for mode, passed in (("annotate", True), ("redact", False)):
        body = {**settings, **entities(mode)}
        reply = httpx2.post(f"{front.url}/v1/chat/completions", json=body).text
        assert ("Mira Stone" in reply) is passed and "Hello" in reply


@pytest.mark.parametrize("stream", [False, True])
def test_content_that_is_a_list_of_parts(front, scripted, stream):
    """It is passed on as it is, unless it could leak."""
    scripted.answer(["Hello."])
    parts = [{"type": "text", "text": "Mira Stone"}]
    choice = {"index": 0, "delta": {"content": parts}, "finish_reason": "stop"}
    scripted.raw = [f"data: {json.dumps({'choices': [choice]})}\n\n", "data: [DONE]\n\n"]
    scripted.chat_whole = lambda text: {"message": {"role": "assistant", "content": parts}}
    settings = {"model": "scripted", "messages": QUESTION, "stream": stream}
    try:
        for mode, passed in (("annotate", True), ("redact", False)):
            body = {**settings, **entities(mode)}
            reply = httpx2.post(f"{front.url}/v1/chat/completions", json=body).text
            assert ("Mira Stone" in reply) is passed
    finally:
        del scripted.chat_whole


@pytest.mark.parametrize("stream", [False, True])
def test_halves_of_surrogate_pairs(front, scripted, stream):
    """Some servers cut an emoji in two. A client can put it together again."""
    pieces = [f"data: {scripted.chat_json(text)}\n\n" for text in ("Hi \ud83d", "\ude80.")]
    scripted.answer([], raw=[*pieces, scripted.line({"delta": {}, "finish_reason": "stop"})])
    scripted.raw.append("data: [DONE]\n\n")
    scripted.whole_json = scripted.chat_json("Hi \ud83d", "message")
    body = {"model": "scripted", "messages": QUESTION, "stream": stream}
    reply = httpx2.post(f"{front.url}/v1/chat/completions", json=body)
    scripted.whole_json = None
    assert reply.status_code == 200 and "\\ud83d" in reply.text
    assert not stream or ("\\ude80" in reply.text and "[DONE]" in reply.text)


@pytest.mark.parametrize("stream", [False, True])
def test_errors_of_the_upstream_server(front, scripted, stream):
    for body in ({}, entities("annotate")):
        with pytest.raises(openai.NotFoundError, match="No such model") as caught:
            front.client().chat.completions.create(
                model="other", messages=QUESTION, stream=stream, extra_body=body
            )
        assert caught.value.code == "no_model" and caught.value.param == "model"
    wait_until(lambda: front.service.slots.running == 0)


@pytest.mark.parametrize("mode", ["annotate", "redact"])
def test_a_stream_that_breaks(front, scripted, mode):
    scripted.answer(["Mira Stone met"], breaks=True)
    with pytest.raises(openai.APIError, match="LLMNER166.*ended its answer too early"):
        ask(front.client(), True, entities(mode))
    scripted.answer([], raw=["data: not JSON\n\n"])
    with pytest.raises(openai.APIError, match="not JSON"):
        ask(front.client(), True, entities(mode))
    error = json.dumps({"error": {"message": "It burns", "code": "fire"}})
    scripted.answer([], raw=[f"data: {error}\n\n"])
    with pytest.raises(openai.APIError, match="It burns"):
        ask(front.client(), True, entities(mode))
    wait_until(lambda: front.service.slots.running == 0)


def test_no_upstream_server(nlp):
    gone = Scripted()
    gone.stop()
    with serving(nlp, upstream=gone.url) as running:
        for stream in (False, True):
            with pytest.raises(openai.APIStatusError, match="LLMNER165.*can't be used") as caught:
                ask(running.client(), stream, {})
            assert caught.value.status_code == 502
        with pytest.raises(openai.APIStatusError, match="LLMNER165"):
            running.client().models.list()
        wait_until(lambda: running.service.slots.running == 0)


def test_two_choices(nlp, front, scripted):
    """Each answer to the same question has its own entities."""
    texts = ["Mira Stone met Oskar Blum in Varnholm.", TEXTS[1]]
    lines = []
    for k in range(0, 100, 5):
        for index, text in enumerate(texts):
            choice = {"index": index, "delta": {"content": text[k : k + 5]}, "finish_reason": None}
            lines.append(f"data: {json.dumps({'id': 'x', 'choices': [choice]})}\n\n")
    last = [{"index": k, "delta": {}, "finish_reason": "stop"} for k in (0, 1)]
    lines.append(
        f"data: {json.dumps({'id': 'x', 'choices': last, 'usage': {'total_tokens': 3}})}\n\n"
    )
    scripted.answer([], raw=[*lines, "data: [DONE]\n\n"])
    out, usages = ["", ""], []
    for chunk in front.client().chat.completions.create(
        model="scripted", messages=QUESTION, n=2, stream=True, extra_body=entities("redact")
    ):
        usages.append(chunk.usage)
        for choice in chunk.choices:
            out[choice.index] += choice.delta.content or ""
    assert out == [redacted(doc_of(nlp, text)) for text in texts]
    assert [usage for usage in usages if usage] == usages[-1:]


@pytest.mark.parametrize("mode", ["annotate", "redact"])
@pytest.mark.parametrize("stream", [False, True])
def test_in_front_of_another_process(nlp, other_process, stream, mode):
    with serving(nlp, upstream=f"{other_process}/v1") as front:
        messages = [{"role": "user", "content": "Mira Stone met Oskar Blum in Varnholm."}]
        settings = {
            "messages": messages,
            "model": "ember_probe/model-best",
            "temperature": 1.5,
            "max_tokens": 40,
            "seed": 3,
        }
        plain, _ = ask(front.client(), False, {}, **settings)
        text, found = ask(front.client(), stream, entities(mode), **settings)
        doc = doc_of(nlp, plain)
        assert doc.ents and text == (plain if mode == "annotate" else redacted(doc))
        assert mode == "redact" or keys(found) == found_in(doc)
