"""Labels in words with a real small LLM: the same entities as from the pipeline itself."""

import json

import pytest
import spacy

from spacy_llmner.scale import annotate
from tests.scale.conftest import read_jsonl

pytestmark = pytest.mark.llm

TEXTS = [
    "In 1987, Ilse Maran won the Lindqvist Prize in Trondheim.",
    "Nothing happened.",
    "Oskar Blum moved from Varnholm to Bern, and Mira Stone to Lisbon.",
    "  ",
    "",
]


def test_labels_in_words(smollm2, tmp_path):
    nlp = spacy.blank("en")
    config = {"llm": str(smollm2), "labels": ["person", "award", "city"]}
    nlp.add_pipe("ember_probe", config=config)
    nlp.to_disk(tmp_path / "pipeline")
    lines = [json.dumps({"id": i, "text": text}) for i, text in enumerate(TEXTS)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    done = annotate(tmp_path / "a.jsonl", tmp_path / "out", tmp_path / "pipeline", shard_size=3)
    rows = [row for path in done.shards for row in read_jsonl(path)]
    assert [row["id"] for row in rows] == list(range(len(TEXTS))) and done.n_failed == 0
    assert len(rows[0]["entities"]) == 3
    for row, doc in zip(rows, nlp.pipe(TEXTS)):
        expected = [(e.start_char, e.end_char, e.label_) for e in doc.ents]
        assert [(e["start"], e["end"], e["label"]) for e in row["entities"]] == expected
        for found, ent in zip(row["entities"], doc.ents):
            assert found["score"] == pytest.approx(ent._.llmner_score, abs=1e-4)
