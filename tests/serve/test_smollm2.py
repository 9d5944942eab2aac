"""With a real small LLM, and labels in words."""

import pytest
import spacy

from spacy_llmner.serve.entities import final_entities
from tests.serve.helpers import MODEL, Collected, entities, serving

pytestmark = pytest.mark.llm

PROMPT = "Marie Curie was born in Warsaw. In Paris, Marie Curie met Pierre Curie. Marie"
SETTINGS = {"model": MODEL, "prompt": PROMPT, "max_tokens": 40, "stream": True}


@pytest.fixture(scope="module")
def real(smollm2):
    nlp = spacy.blank("en")
    nlp.add_pipe("ember_probe", config={"llm": str(smollm2), "labels": ["person", "city"]})
    with serving(nlp) as running:
        yield running


def test_entities_come_while_the_text_is_written(real):
    chunks = list(real.client().completions.create(**SETTINGS, extra_body=entities("annotate")))
    first = next(k for k, c in enumerate(chunks) if getattr(c.choices[0], "entities", None))
    assert first < len(chunks) - 10
    answer = Collected(chunks)
    found = final_entities(answer.events)
    assert {"person"} <= {ent["label"] for ent in found} and len(found) > 1
    # The first name was in the prompt. What is in the answer is marked.
    assert answer.text.startswith(" Curie") and found[0]["text"] == "Curie"


def test_redacted(real):
    plain = Collected(real.client().completions.create(**SETTINGS)).text
    answer = Collected(real.client().completions.create(**SETTINGS, extra_body=entities("redact")))
    assert "Curie" in plain and "Curie" not in answer.text and "[person]" in answer.text


def test_other_labels_for_one_request(real):
    options = entities("annotate", labels=["scientist"])
    answer = Collected(real.client().completions.create(**SETTINGS, extra_body=options))
    assert {event["label"] for event in answer.events} == {"scientist"}


def test_a_chat(real):
    """The same answer in three forms."""
    question = "Who discovered radium?"
    settings = {"model": MODEL, "extra_body": entities("annotate")}
    messages = [{"role": "user", "content": question}]
    chat = real.client().chat.completions.create(**settings, messages=messages, max_tokens=30)
    stream = real.client().chat.completions.create(
        **settings, messages=messages, max_tokens=30, stream=True
    )
    response = real.client().responses.create(**settings, input=question, max_output_tokens=30)
    assert Collected(stream).text == response.output_text == chat.choices[0].message.content
    annotations = response.output[0].content[0].annotations
    found = chat.choices[0].message.entities
    assert {annotation.type for annotation in annotations} == {"entity"}
    assert [annotation.model_extra for annotation in annotations] == found
    assert "person" in [ent["label"] for ent in found]
