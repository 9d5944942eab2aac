"""POST /v1/responses in front of another server."""

import json

import httpx2
import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spacy_llmner.serve.entities import final_entities
from tests.ember_probe.helpers import TEXTS
from tests.serve.helpers import entities, keys, serving, wait_until
from tests.serve.test_upstream import WORDS, doc_of, found_in, pieces_of, redacted

repeated = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
TEXT = " ".join(TEXTS)
SECRET = "Mira Stone"
FIELDS = ("start", "end", "label", "score", "text", "status", "replaces")


def script(scripted, pieces, *, summary="I think", part_done=True, end="completed"):
    """Set the next answer: reasoning, and a message with one text."""
    text = "".join(pieces)
    logprobs = [{"token": text, "logprob": -1.0, "bytes": [], "top_logprobs": []}]
    part = {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}
    message = {"id": "m", "type": "message", "role": "assistant", "status": "completed"}
    reasoning = {
        "id": "r",
        "type": "reasoning",
        "summary": [{"type": "summary_text", "text": summary}],
    }
    empty = {"id": "x", "object": "response", "model": "scripted", "instructions": summary}
    whole = {
        **empty,
        "status": end,
        "output": [reasoning, {**message, "content": [part]}],
        "usage": {"input_tokens": 3, "output_tokens": 4, "total_tokens": 7},
    }
    start = {**empty, "status": "in_progress", "output": []}
    where = {"item_id": "m", "output_index": 1, "content_index": 0}
    events = [
        {"type": "response.created", "response": start},
        {"type": "response.in_progress", "response": start},
        {"type": "response.output_item.added", "output_index": 0, "item": reasoning},
        {
            "type": "response.reasoning_summary_text.delta",
            "item_id": "r",
            "output_index": 0,
            "summary_index": 0,
            "delta": summary,
        },
        {"type": "response.output_item.done", "output_index": 0, "item": reasoning},
        {
            "type": "response.output_item.added",
            "output_index": 1,
            "item": {**message, "status": "in_progress", "content": []},
        },
        {
            "type": "response.content_part.added",
            **where,
            "part": {"type": "output_text", "text": "", "annotations": []},
        },
    ]
    for piece in pieces:
        delta = {"type": "response.output_text.delta", **where, "delta": piece}
        events.append({**delta, "logprobs": [{"token": piece, "logprob": -1.0}]})
    if part_done:
        events += [
            {
                "type": "response.output_text.done",
                **where,
                "text": text,
                "logprobs": logprobs,
            },
            {"type": "response.content_part.done", **where, "part": part},
            {"type": "response.output_item.done", "output_index": 1, "item": whole["output"][1]},
        ]
    events.append({"type": f"response.{end}", "response": whole})
    events = [{**event, "sequence_number": k} for k, event in enumerate(events)]
    scripted.answer_response(whole, events)
    return whole, events


def ask(client, stream, body, question="Who met whom?", **options):
    """RETURNS (Tuple[str, List]): The answer and its entities, which all events agree on."""
    options = {"model": "scripted", "input": question, "extra_body": body, **options}
    if not stream:
        return read(client.responses.create(**options))
    text, events, done, seen = "", [], None, []
    for k, event in enumerate(client.responses.create(**options, stream=True)):
        assert event.sequence_number == k
        seen.append(event.type)
        if event.type == "response.output_text.delta":
            text += event.delta
        elif event.type == "response.output_text.annotation.added":
            # The client adds the fields of other annotations.
            found = {field: dict(event.annotation)[field] for field in FIELDS}
            assert event.annotation_index == len(events) and event.annotation.type == "entity"
            assert text[found["start"] : found["end"]] == found["text"]
            events.append(found)
        elif event.type == "response.output_text.done":
            done = event.text
        elif event.type == "response.content_part.done":
            assert event.part.text == done
        elif event.type == "response.output_item.done" and event.item.type == "message":
            assert event.item.content[0].text == done
    assert done in (text, None)
    assert read(event.response) == (text, final_entities(events))
    assert seen[-1] in ("response.completed", "response.incomplete")
    return text, final_entities(events)


def read(response):
    """RETURNS (Tuple[str, List]): The text of a response and its entities."""
    (message,) = [item for item in response.output if item.type == "message"]
    found = [annotation.model_extra for annotation in message.content[0].annotations]
    return response.output_text, found


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("size", [1, 7, 1000])
def test_annotate_and_redact(nlp, front, scripted, stream, size):
    script(scripted, [TEXT[i : i + size] for i in range(0, len(TEXT), size)])
    doc, client = doc_of(nlp, TEXT), front.client()
    assert len(doc.ents) > 3
    text, found = ask(client, stream, entities("annotate"))
    assert text == TEXT and keys(found) == found_in(doc)
    text, found = ask(client, stream, entities("redact"))
    assert text == redacted(doc)
    assert [ent["text"] for ent in found] == [f"[{ent.label_}]" for ent in doc.ents]
    assert ask(client, stream, {}) == (TEXT, [])
    options = {"model": "scripted", "input": "Who?", "extra_body": entities("redact")}
    with client.responses.stream(**options) as events:  # the client builds the response itself
        list(events)
        assert events.get_final_response().output_text == redacted(doc)
    wait_until(lambda: front.service.slots.running == 0 and not front.service.answers)


@settings(repeated, max_examples=30)
@given(data=st.data(), text=WORDS, part_done=st.booleans())
def test_no_character_of_an_entity_leaves(nlp, front, scripted, data, text, part_done):
    """All of what is sent is compared: pieces, whole texts in later events, and other fields."""
    script(scripted, pieces_of(data, text), summary=text, part_done=part_done)
    body = {"model": "scripted", "input": "Who?", "stream": True, **entities("redact")}
    lines = httpx2.post(f"{front.url}/v1/responses", json=body).text.split("\n")
    events = [json.loads(line[6:]) for line in lines if line.startswith("data: ")]
    expected = redacted(doc_of(nlp, text))
    pieces = "".join(e["delta"] for e in events if e["type"].endswith("output_text.delta"))
    assert expected.startswith(pieces) and (pieces == expected or not part_done)
    for event in events:
        texts = [part["text"] for part in parts_of(event)]
        assert all(text == expected for text in texts)
        assert not event.get("logprobs") and "summary_text" not in json.dumps(event)


def parts_of(event):
    """RETURNS (List[Dict]): The whole texts in an event."""
    if event["type"] == "response.output_text.done":
        return [event]
    if event["type"] == "response.content_part.done":
        return [event["part"]]
    items = event.get("response", {}).get("output") or [event.get("item") or {}]
    return [part for item in items for part in item.get("content", [])]


@pytest.mark.parametrize("stream", [False, True])
def test_other_parts_are_passed_on_unless_they_could_leak(front, scripted, stream):
    script(scripted, ["Hello."], summary=SECRET)
    for mode, passed in (("annotate", True), ("redact", False)):
        body = {"model": "scripted", "input": "Who?", "stream": stream, **entities(mode)}
        reply = httpx2.post(f"{front.url}/v1/responses", json=body).text
        assert (SECRET in reply) is passed and "Hello." in reply and '"output_tokens"' in reply


@pytest.mark.parametrize("stream", [False, True])
def test_placeholders_go_out_and_originals_come_back(front, scripted, stream):
    text = "Mira Stone met Oskar Blum in Varnholm."
    earlier = {
        "type": "message",
        "role": "assistant",
        "content": [{"type": "output_text", "text": text, "annotations": [{"text": SECRET}]}],
    }
    question = [earlier, {"role": "user", "content": text}]
    script(scripted, ["[PE", "R_1", "] and [PER_", "2", "] [PER_9"], summary="For [PER_1]")
    body = {"entities": {"redact_prompt": True}}
    answer = "Mira Stone and Oskar Blum [PER_9"
    assert ask(front.client(), stream, body, question, instructions=text) == (answer, [])
    sent = scripted.requests[0][0]
    hidden = "[PER_1] met [PER_2] in [LOC_1]."
    assert sent["instructions"] == hidden and sent["input"][1]["content"] == hidden
    part = {"type": "output_text", "text": hidden, "annotations": []}
    assert sent["input"][0]["content"] == [part]
    response = front.client().responses.create(model="scripted", input=text, extra_body=body)
    assert response.instructions == "For Mira Stone"
    assert scripted.requests[-1][0]["input"] == hidden
    body["entities"]["mode"] = "annotate"
    text, found = ask(front.client(), stream, body, question)
    assert text == answer and SECRET in [ent["text"] for ent in found]


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"previous_response_id": "resp_1"}, "send the whole conversation"),
        ({"instructions": ["Mira"]}, "only a text"),
        ({"input": [{"type": "item_reference", "id": "m"}]}, "only a text"),
        ({"input": [{"type": "function_call_output", "output": "Mira"}]}, "can be redacted"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "only a text"),
    ],
)
def test_prompts_that_cannot_be_redacted(front, scripted, fields, message):
    script(scripted, ["Hello."])
    body = {"model": "scripted", "input": "Who?", "entities": {"redact_prompt": True}, **fields}
    with pytest.raises(openai.BadRequestError, match=message):
        front.client().post("/responses", body=body, cast_to=object)
    assert not scripted.requests


@pytest.mark.parametrize("stream", [False, True])
def test_errors_of_the_upstream_server(front, scripted, stream):
    for body in ({}, entities("annotate")):
        with pytest.raises(openai.NotFoundError, match="No such model"):
            front.client().responses.create(
                model="other", input="Who?", stream=stream, extra_body=body
            )
    wait_until(lambda: front.service.slots.running == 0)


@pytest.mark.parametrize("mode", [None, "annotate", "redact"])
def test_a_stream_that_breaks(front, scripted, mode):
    body = entities(mode) if mode else {}
    whole, events = script(scripted, ["Mira Stone met"])

    def last_event():
        options = {"model": "scripted", "input": "Who?", "extra_body": body}
        (*_, last) = front.client().responses.create(**options, stream=True)
        assert last.type == "error"
        return last

    for done in ([], ["data: [DONE]\n\n"]):
        scripted.answer_response(whole, events[:-1])
        scripted.raw += done
        last = last_event()
        assert "LLMNER166" in last.message and last.code == "upstream_failed"
    failed = {"message": "It burns", "code": "fire", "param": None}
    for error in ({"type": "error", **failed}, {"error": failed}):
        scripted.answer_response(whole, [*events[:2], error])
        assert last_event().message == "It burns"
    wait_until(lambda: front.service.slots.running == 0)


@pytest.mark.parametrize("mode", ["annotate", "redact"])
@pytest.mark.parametrize("stream", [False, True])
def test_in_front_of_another_process(nlp, other_process, stream, mode):
    options = {"model": "ember_probe/model-best", "temperature": 1.5, "max_output_tokens": 40}
    question = "Mira Stone met Oskar Blum in Varnholm."
    with serving(nlp, upstream=f"{other_process}/v1") as front:
        plain, _ = ask(front.client(), False, {"seed": 3}, question, **options)
        body = {"seed": 3, **entities(mode)}
        text, found = ask(front.client(), stream, body, question, **options)
        doc = doc_of(nlp, plain)
        assert doc.ents and text == (plain if mode == "annotate" else redacted(doc))
        assert mode == "redact" or keys(found) == found_in(doc)
