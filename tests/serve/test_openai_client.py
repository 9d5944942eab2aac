"""The official client of OpenAI's API, unchanged, with a pipeline's own LLM."""

import openai
import pytest

from spacy_llmner.serve.entities import final_entities
from tests.ember_probe.helpers import TEXTS
from tests.serve.helpers import MODEL, Collected, entities, keys, wait_until

PROMPT = " ".join(TEXTS[:2]) + " Mira"
MESSAGES = [
    {"role": "system", "content": "Answer."},
    {"role": "user", "content": "Mira Stone met Oskar Blum in Varnholm."},
]
SETTINGS = {"temperature": 1.5, "max_tokens": 40}


def reference(nlp, prompt, **settings):
    """RETURNS (Tuple): The answer of a stream without a server, its entities, and the stream."""
    stream = nlp.get_pipe("ember_probe").stream(prompt, **settings)
    pieces = [
        event.text for event in stream if hasattr(event, "text") and not hasattr(event, "label")
    ]
    start = len(prompt) if isinstance(prompt, str) else len(prompt[-1]["content"]) + 2
    assert "".join(pieces) == stream.text
    found = [
        (max(e.start_char - start, 0), e.end_char - start, e.label_)
        for e in stream.doc.ents
        if e.end_char > start
    ]
    return stream.text[start:], found, stream


@pytest.mark.parametrize("seed", range(6))
def test_completions(nlp, client, seed):
    text, found, stream = reference(nlp, PROMPT, temperature=1.5, max_new_tokens=40, seed=seed)
    settings = {"model": MODEL, "prompt": PROMPT, "seed": seed, **SETTINGS}
    plain = client.completions.create(**settings)
    assert plain.choices[0].text == text and not hasattr(plain.choices[0], "entities")
    assert plain.choices[0].finish_reason == {"end": "stop"}.get(stream.stop_reason, "length")
    assert plain.usage.completion_tokens <= 40
    assert plain.usage.total_tokens == plain.usage.prompt_tokens + plain.usage.completion_tokens
    asked = client.completions.create(**settings, extra_body=entities("annotate"))
    assert asked.choices[0].text == text and keys(asked.choices[0].entities) == found
    streamed = Collected(
        client.completions.create(**settings, stream=True, extra_body=entities("annotate"))
    )
    assert streamed.text == text and streamed.usage is None
    assert final_entities(streamed.events) == asked.choices[0].entities
    assert streamed.finish_reason == plain.choices[0].finish_reason


def test_some_answers_have_entities(nlp):
    found = [
        reference(nlp, PROMPT, temperature=1.5, max_new_tokens=40, seed=k)[1] for k in range(6)
    ]
    assert any(found)


@pytest.mark.parametrize("seed", range(6))
def test_redacted(nlp, client, seed):
    text, found, _ = reference(nlp, PROMPT, temperature=1.5, max_new_tokens=40, seed=seed)
    expected, end = "", 0
    for first, last, label in found:
        expected += f"{text[end:first]}<{label}>"
        end = last
    expected += text[end:]
    options = entities("redact", placeholder="<{label}>")
    settings = {"model": MODEL, "prompt": PROMPT, "seed": seed, **SETTINGS, "extra_body": options}
    whole = client.completions.create(**settings).choices[0]
    streamed = Collected(client.completions.create(**settings, stream=True))
    assert whole.text == streamed.text == expected
    assert [ent["text"] for ent in whole.entities] == [f"<{label}>" for _, _, label in found]
    assert final_entities(streamed.events) == whole.entities


def test_chat(nlp, client):
    text, found, _ = reference(nlp, MESSAGES, temperature=1.5, max_new_tokens=40, seed=3)
    settings = {"model": MODEL, "messages": MESSAGES, "seed": 3, **SETTINGS}
    plain = client.chat.completions.create(**settings)
    assert plain.choices[0].message.content == text
    assert not hasattr(plain.choices[0].message, "entities")
    asked = client.chat.completions.create(**settings, extra_body=entities("annotate"))
    assert keys(asked.choices[0].message.entities) == found
    streamed = Collected(
        client.chat.completions.create(
            **settings,
            stream=True,
            stream_options={"include_usage": True},
            extra_body=entities("annotate"),
        )
    )
    assert streamed.text == text and streamed.usage == plain.usage
    assert keys(final_entities(streamed.events)) == found


def test_text_comes_in_pieces(client):
    settings = {"model": MODEL, "messages": MESSAGES, "seed": 3, **SETTINGS}
    assert Collected(client.chat.completions.create(**settings, stream=True)).n_chunks > 10


def test_other_forms_of_messages(client):
    parts = [
        {"type": "text", "text": "Mira Stone met "},
        {"type": "text", "text": "Oskar Blum in Varnholm."},
    ]
    other = [{"role": "developer", "content": "Answer."}, {"role": "user", "content": parts}]
    first, second = (
        client.chat.completions.create(model=MODEL, messages=messages, max_completion_tokens=20)
        .choices[0]
        .message.content
        for messages in (MESSAGES, other)
    )
    assert first == second


def test_stop_strings_are_cut_off(client):
    settings = {"model": MODEL, "prompt": PROMPT, "seed": 1, **SETTINGS}
    text = client.completions.create(**settings).choices[0].text
    stop = text[20:24]
    cut = text[: text.index(stop)]
    for mode in ("annotate", "redact"):
        settings.update(stop=["@@@", stop], extra_body=entities(mode, min_score=1.0))
        whole = client.completions.create(**settings).choices[0]
        streamed = Collected(client.completions.create(**settings, stream=True))
        assert whole.text == streamed.text == cut
        assert whole.finish_reason == streamed.finish_reason == "stop"


def test_responses(client):
    settings = {"model": MODEL, "instructions": "Answer.", "input": MESSAGES[1]["content"]}
    settings.update(
        temperature=1.5, max_output_tokens=40, extra_body={"seed": 3, **entities("annotate")}
    )
    chat = client.chat.completions.create(
        model=MODEL, messages=MESSAGES, seed=3, **SETTINGS, extra_body=entities("annotate")
    )
    message = chat.choices[0].message
    whole = client.responses.create(**settings)
    assert whole.output_text == message.content
    assert whole.status == (
        "completed" if chat.choices[0].finish_reason == "stop" else "incomplete"
    )
    annotations = whole.output[0].content[0].annotations
    assert [annotation.model_extra for annotation in annotations] == message.entities
    assert whole.usage.output_tokens == chat.usage.completion_tokens
    text, events, kinds = "", [], []
    with client.responses.stream(**settings) as stream:
        for k, event in enumerate(stream):
            assert event.sequence_number == k
            kinds.append(event.type)
            if event.type == "response.output_text.delta":
                text += event.delta
                assert event.snapshot == text
            if event.type == "response.output_text.annotation.added":
                events.append(event.annotation)
    assert text == message.content and len(events) == kinds.count(
        "response.output_text.annotation.added"
    )
    assert kinds[0] == "response.created" and kinds[-1] in (
        "response.completed",
        "response.incomplete",
    )


def test_a_completed_response(client):
    """Without a limit on its tokens, a response is complete. The client builds it from the stream."""
    settings = {"model": MODEL, "input": [{"role": "user", "content": "Who came?"}]}
    with client.responses.stream(**settings, temperature=1.9, extra_body={"seed": 2}) as stream:
        list(stream)
        response = stream.get_final_response()
    assert response.status == "completed"
    assert (
        response.output_text
        == client.responses.create(**settings, temperature=1.9, extra_body={"seed": 2}).output_text
    )


def test_models(client, nlp):
    models = client.models.list()
    assert [model.id for model in models] == [MODEL]
    labels = list(nlp.get_pipe("ember_probe").labels)
    expected = {"labels": labels, "any_labels": False, "refusal": None}
    assert models.entities == expected
    assert client.models.retrieve(MODEL).id == MODEL
    with pytest.raises(openai.NotFoundError, match="'other' is not served here. Use 'tiny'"):
        client.models.retrieve("other")


@pytest.mark.parametrize(
    "fields, error, param, message",
    [
        ({"model": "other"}, openai.NotFoundError, "model", "LLMNER157"),
        ({"n": 2}, openai.BadRequestError, "n", "`n` = 2 is not supported"),
        ({"tools": [{"type": "function"}]}, openai.BadRequestError, "tools", "LLMNER156"),
        ({"logprobs": True}, openai.BadRequestError, "logprobs", "LLMNER156"),
        ({"frequency_penalty": 0.5}, openai.BadRequestError, "frequency_penalty", "LLMNER156"),
        ({"colour": "red"}, openai.BadRequestError, "colour", "LLMNER156"),
        ({"temperature": 3}, openai.BadRequestError, "temperature", "LLMNER161.*temperature"),
        ({"temperature": 1e-9}, openai.BadRequestError, None, "`temperature` of 'stream'"),
        ({"max_tokens": 600}, openai.BadRequestError, "max_tokens", "600 tokens of answer"),
        ({"messages": []}, openai.BadRequestError, "messages", "LLMNER161"),
        ({"messages": [{"role": "tool", "content": ""}]}, openai.BadRequestError, None, "role"),
        (
            {"messages": [{"role": "user", "content": "a b " * 600}]},
            openai.BadRequestError,
            "prompt",
            "tokens of prompt",
        ),
        ({"stop": ["a"] * 17}, openai.BadRequestError, "stop", "16 strings"),
        (entities("mark"), openai.BadRequestError, "entities.mode", "LLMNER161"),
        (entities("annotate", colour=1), openai.BadRequestError, "entities.colour", "LLMNER161"),
        (entities("annotate", max_hold=2), openai.BadRequestError, "entities", "mode 'redact'"),
        ({"entities": {}}, openai.BadRequestError, "entities", "mode is missing"),
        (entities("redact", placeholder="{x}"), openai.BadRequestError, None, "placeholder"),
        (entities("redact", placeholder="x" * 201), openai.BadRequestError, None, "at most 200"),
        (
            entities("annotate", labels=["DRUG"]),
            openai.BadRequestError,
            "entities.labels",
            "labels DRUG are not known here. Choose from: LOC, PER",
        ),
        (
            entities("annotate", labels=["PER"] * 65),
            openai.BadRequestError,
            "entities.labels",
            "65 labels",
        ),
        (
            entities("annotate", redact_prompt=True),
            openai.BadRequestError,
            "entities.redact_prompt",
            "no --upstream",
        ),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_wrong_requests(server, client, fields, error, param, message, stream):
    body = {"model": MODEL, "messages": MESSAGES, "stream": stream, **fields}
    with pytest.raises(error, match=message) as caught:
        client.post("/chat/completions", body=body, cast_to=object)
    assert caught.value.type in ("invalid_request_error", "not_found_error")
    assert caught.value.code
    assert param is None or caught.value.param == param
    wait_until(lambda: server.service.slots.running == 0)


def test_harmless_fields(client):
    client.chat.completions.create(
        model=MODEL,
        messages=MESSAGES,
        max_tokens=2,
        n=1,
        user="u",
        tools=[],
        logprobs=False,
        presence_penalty=0,
        response_format={"type": "text"},
        store=False,
        metadata={"a": "b"},
        parallel_tool_calls=True,
    )


def test_one_prompt_at_a_time(client):
    assert client.completions.create(model=MODEL, prompt=["Mira"], max_tokens=2)
    with pytest.raises(openai.BadRequestError, match="one request for each"):
        client.completions.create(model=MODEL, prompt=["Mira", "Oskar"])


def test_labels_and_scores(nlp, client):
    for seed in range(6):
        settings = {"model": MODEL, "prompt": PROMPT, "seed": seed, **SETTINGS}
        everything = client.completions.create(**settings, extra_body=entities("annotate"))
        for label in ("PER", "LOC"):
            options = entities("annotate", labels=[label], min_score=0.5)
            some = client.completions.create(**settings, extra_body=options, stream=True)
            assert final_entities(Collected(some).events) == [
                ent
                for ent in everything.choices[0].entities
                if ent["label"] == label and ent["score"] >= 0.5
            ]
