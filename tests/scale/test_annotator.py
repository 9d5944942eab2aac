"""The Annotator: what fails, what doesn't, and the frameworks that it is made for."""

import pickle
import subprocess
import sys

import numpy as np
import pytest

from spacy_llmner.errors import LLMNERError
from spacy_llmner.scale import Annotator

TEXTS = ["Tea in Bonn.", "FAIL in Bonn.", "Nothing."]
BONN = [{"start": 7, "end": 11, "label": "CITY", "score": None}]


def test_batches(stub):
    annotator = Annotator(stub)
    batch = {"text": np.array(TEXTS), "id": [1, 2, 3]}
    out = annotator(batch)
    assert out["entities"][0] == BONN and out["entities"][2] == []
    assert out["failed"] == [None] * 3 and out["text"] is batch["text"] and out["id"] == [1, 2, 3]
    assert set(Annotator(stub, spans=True)(batch)) == {"text", "id", "entities", "failed", "spans"}
    assert annotator({"text": []}) == {"text": [], "entities": [], "failed": []}


def test_pickle_is_small(stub):
    annotator = Annotator(stub, text_field="body")
    annotator({"body": TEXTS})
    copy = pickle.dumps(annotator)
    assert len(copy) < 1000
    assert pickle.loads(copy)({"body": TEXTS})["entities"][0] == BONN


@pytest.mark.parametrize("components", [["fails"], ["fails_in_batches"], ["other_doc", "fails"]])
def test_one_bad_text_costs_no_other(make_stub, components):
    """Also if a component drops whole batches or returns other Docs."""
    out = Annotator(make_stub(*components))({"text": TEXTS})
    if components == ["fails_in_batches"]:
        assert out["failed"][1] == "fails_in_batches: RuntimeError('a bad batch')"
    else:
        assert out["failed"][1] == """fails: RuntimeError("I don't like this text")"""
    assert out["failed"][::2] == [None, None]
    assert out["entities"] == [BONN, [], []]


def test_texts_that_can_not_be_read(stub):
    out = Annotator(stub, max_length=20)(
        {"text": [None, "\ud800", 1.5, "x" * 21, TEXTS[0], b"Bonn"]}
    )
    assert out["failed"][5] == "not a text, but bytes"
    assert out["failed"][:3] == [
        "not a text, but NoneType",
        "the text is not UTF-8",
        "not a text, but float",
    ]
    assert "[LLMNER185] The text has 21 characters" in out["failed"][3]
    assert out["failed"][4] is None and out["entities"][4] == BONN


def test_long_texts(stub):
    """Longer than nlp.max_length: refused, or annotated if asked for."""
    text = "Bonn " * 300_000
    assert "more than the limit of 1000000" in Annotator(stub)({"text": [text]})["failed"][0]
    out = Annotator(stub, max_length=10_000_000)({"text": [text]})
    assert out["failed"] == [None] and len(out["entities"][0]) == 300_000


def test_error_of_the_setup(tiny_llm, tmp_path):
    from tests.ember_probe.helpers import make_nlp

    make_nlp(tiny_llm).to_disk(tmp_path / "pipeline")
    with pytest.raises(LLMNERError, match="has no labels"):
        Annotator(tmp_path / "pipeline")({"text": TEXTS})


def test_wrong_batch_or_pipeline(stub, tmp_path):
    with pytest.raises(LLMNERError, match=r"172\] The column 'text' is missing in the batch"):
        Annotator(stub)({"body": TEXTS})
    with pytest.raises(LLMNERError, match=r"100\]"):
        Annotator("no-such-pipeline")({"text": TEXTS})
    with pytest.raises(LLMNERError, match=r"101\]"):
        Annotator(tmp_path)({"text": TEXTS})


def test_tables(stub):
    """The types don't depend on what was found."""
    pa = pytest.importorskip("pyarrow")
    annotator = Annotator(stub, spans=True)
    empty = annotator(pa.table({"text": ["Nothing."], "entities": ["old"]}))
    table = annotator(pa.table({"text": TEXTS}))
    assert table.schema == empty.schema
    assert table["entities"].to_pylist()[0] == BONN and empty["failed"].to_pylist() == [None]
    with pytest.raises(LLMNERError, match="it has: body"):
        annotator(pa.table({"body": TEXTS}))


def test_datasets(stub):
    datasets = pytest.importorskip("datasets")
    rows = {"text": ["Nothing."] * 30 + TEXTS, "id": range(33)}
    data = datasets.Dataset.from_dict(rows).with_format("arrow")
    out = data.map(Annotator(stub), batched=True, batch_size=10).with_format(None)
    assert len(out) == 33 and out[30]["entities"] == BONN and out[0]["entities"] == []


RAY = """
import sys, ray
from spacy_llmner.scale import Annotator
ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="error")
data = ray.data.from_items([{"text": "Nothing."}] * 30 + [{"text": "Tea in Bonn."}], override_num_blocks=2)
data = data.map_batches(
    Annotator,
    fn_constructor_args=[sys.argv[1]],
    batch_size=10,
    batch_format="pyarrow",
    compute=ray.data.ActorPoolStrategy(size=1),
)
rows = data.take_all()
found = [row["entities"] for row in rows if row["text"] == "Tea in Bonn."]  # in any order
print("FOUND", len(rows), *found)
"""


def test_ray_data(stub):
    pytest.importorskip("ray")
    pytest.importorskip("pandas")  # Ray Data needs it
    done = subprocess.run([sys.executable, "-c", RAY, stub], capture_output=True, text=True)
    assert f"FOUND 31 {BONN}" in done.stdout, done.stdout + done.stderr
