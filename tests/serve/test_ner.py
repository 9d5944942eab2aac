"""POST /ner, with any pipeline."""

import threading

import httpx2
import openai
import pytest
import spacy
from spacy.language import Language

from tests.ember_probe.helpers import TEXTS, TRAIN
from tests.serve.helpers import serving, wait_until


def post(running, **body):
    """RETURNS (Tuple[int, Dict]): Status and body of the reply."""
    reply = httpx2.post(f"{running.url}/ner", json=body, timeout=60)
    return reply.status_code, reply.json()


def keys(result, key="entities"):
    return [(ent["start"], ent["end"], ent["label"]) for ent in result[key]]


@pytest.fixture(scope="module")
def ruler():
    """A server for a pipeline without any LLM. The component `fragile` fails on one word."""
    nlp = spacy.blank("en")
    nlp.add_pipe("fragile")
    patterns = [{"label": "NAME", "pattern": "Mira"}, {"label": "CITY", "pattern": "Bonn"}]
    nlp.add_pipe("entity_ruler").add_patterns(patterns)
    nlp.add_pipe("gate", first=True)
    with serving(nlp) as running:
        yield running


GATE = threading.Event()
BATCHES = []


class Gate:
    """Waits until the gate is open, and counts the texts of each batch."""

    def __call__(self, doc):
        return doc

    def pipe(self, docs, batch_size):
        docs = list(docs)
        BATCHES.append(len(docs))
        if any("wait" in doc.text for doc in docs):
            assert GATE.wait(60)
        yield from docs


@Language.factory("gate")
def make_gate(nlp, name):
    return Gate()


@Language.component("fragile")
def fragile(doc):
    if "secret" in doc.text:
        raise ValueError(f"can't read {doc.text}")
    return doc


def test_entities(server):
    status, body = post(server, texts=[*TEXTS, ""])
    assert status == 200 and body["model"] == "tiny"
    assert [keys(result) for result in body["results"]] == [gold for _, gold in TRAIN] + [[]]
    first = body["results"][0]["entities"][0]
    assert TEXTS[0][first["start"] : first["end"]] == first["text"]
    assert 0 < first["score"] <= 1 and "spans" not in body["results"][0]


def test_spans_and_labels(server):
    _, body = post(server, texts=TEXTS, labels=["LOC"], spans=True)
    for (_, gold), result in zip(TRAIN, body["results"]):
        assert keys(result) == [key for key in gold if key[2] == "LOC"]
        assert set(keys(result)) <= set(keys(result, "spans"))
        assert all(span["label"] == "LOC" for span in result["spans"])


def test_a_pipeline_without_an_llm(ruler):
    _, body = post(ruler, texts=["Mira lives in Bonn."])
    assert keys(body["results"][0]) == [(0, 4, "NAME"), (14, 18, "CITY")]
    assert body["results"][0]["entities"][0]["score"] is None
    status, body = post(ruler, texts=["Mira"], labels=["DRUG"])
    assert status == 400 and "DRUG are not known here. Choose from: CITY, NAME" in str(body)
    with pytest.raises(openai.APIStatusError, match="LLMNER155.*has no ember_probe") as caught:
        ruler.client().completions.create(model="tiny", prompt="Mira")
    assert caught.value.status_code == 501


def test_a_pipeline_that_reads_finished_texts(pipelines):
    with serving(pipelines("ember_probe", "look_right")) as running:
        assert keys(post(running, texts=TEXTS[:1])[1]["results"][0]) == TRAIN[0][1]
        with pytest.raises(openai.APIStatusError, match="LLMNER025") as caught:
            running.client().completions.create(model="tiny", prompt="Mira")
        assert caught.value.status_code == 501


def test_requests_share_batches(ruler):
    """While a batch runs, others are collected. An error is only for its own request."""
    results = {}

    def send(text):
        results[text] = post(ruler, texts=[text])

    def start(*texts):
        threads = [threading.Thread(target=send, args=(text,)) for text in texts]
        for thread in threads:
            thread.start()
        return threads

    GATE.clear()
    BATCHES.clear()
    threads = start("wait")
    wait_until(lambda: BATCHES)
    threads += start("Mira 1", "Mira 2", "a secret")
    wait_until(lambda: len(ruler.service.ner._jobs) == 3)
    GATE.set()
    for thread in threads:
        thread.join(60)
    # All three together, and then one by one, since one of them fails.
    assert BATCHES == [1, 3, 1, 1, 1]
    assert keys(results["Mira 1"][1]["results"][0]) == [(0, 4, "NAME")]
    status, body = results["a secret"]
    assert status == 500 and "LLMNER167" in str(body) and "secret" not in str(body)


def test_too_many_requests(ruler):
    GATE.clear()
    BATCHES.clear()
    waiting = [
        threading.Thread(target=post, args=(ruler,), kwargs={"texts": ["wait"]}) for _ in range(33)
    ]
    waiting[0].start()
    wait_until(lambda: BATCHES)
    for thread in waiting[1:]:
        thread.start()
    wait_until(lambda: len(ruler.service.ner._jobs) == 32)
    reply = httpx2.post(f"{ruler.url}/ner", json={"texts": ["Mira"]})
    assert reply.status_code == 429 and reply.headers["retry-after"]
    assert "LLMNER159" in reply.text
    GATE.set()
    for thread in waiting:
        thread.join(60)
    assert sum(BATCHES) == 33


@pytest.mark.parametrize(
    "body, message",
    [
        ({"texts": ["a"] * 300}, "300 texts"),
        ({"texts": ["a" * 200_001]}, "200001 characters"),
        ({"texts": ["a"], "labels": ["PER"] * 65}, "65 labels"),
        ({"texts": []}, "LLMNER161"),
        ({"texts": ["a"], "colour": "red"}, "LLMNER161"),
        ({}, "LLMNER161.*texts"),
    ],
)
def test_wrong_requests(ruler, body, message):
    reply = httpx2.post(f"{ruler.url}/ner", json=body)
    assert reply.status_code == 400
    with pytest.raises(ValueError, match=message):
        raise ValueError(reply.json()["error"]["message"])


def test_half_of_a_surrogate_pair(ruler):
    headers = {"content-type": "application/json"}
    reply = httpx2.post(f"{ruler.url}/ner", content=b'{"texts": ["\\ud800"]}', headers=headers)
    assert reply.status_code == 400


@pytest.mark.llm
def test_labels_in_words(smollm2):
    nlp = spacy.blank("en")
    nlp.add_pipe("ember_probe", config={"llm": str(smollm2), "labels": ["person"]})
    text = "In 1987, Ilse Maran won the Lindqvist Prize in Trondheim."
    with serving(nlp) as running:
        expected = {"labels": ["person"], "any_labels": True, "refusal": None}
        assert running.client().models.list().entities == expected
        found = [
            [
                ent["label"]
                for ent in post(running, texts=[text], **labels)[1]["results"][0]["entities"]
            ]
            for labels in ({}, {"labels": ["city", "award"]})
        ]
        assert set(found[0]) == {"person"} and set(found[1]) == {"city", "award"}
        status, body = post(running, texts=[text], labels=[" "])
        assert status == 400 and "must be a list of words" in str(body)
