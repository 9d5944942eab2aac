"""Stub pipelines and corpora."""

import json
from pathlib import Path

import pytest
import spacy

from spacy_llmner.scale.annotator import import_code

CODE = str(Path(__file__).with_name("stub_components.py"))


@pytest.fixture(scope="session")
def make_stub(tmp_path_factory):
    """Save a pipeline that finds the city Bonn: make_stub("fails"). RETURNS (str): Its folder."""

    def make(*components, **config):
        import_code(CODE)
        nlp = spacy.blank("en")
        ruler = nlp.add_pipe("entity_ruler")
        ruler.add_patterns([{"label": "CITY", "pattern": "Bonn"}])
        for component in components:
            nlp.add_pipe(component, config=config)
        folder = tmp_path_factory.mktemp("stub") / "pipeline"
        nlp.to_disk(folder)
        return str(folder)

    return make


@pytest.fixture(scope="session")
def stub(make_stub):
    return make_stub()


@pytest.fixture
def corpus(tmp_path):
    """A JSONL file with 100 documents."""
    return write_jsonl(tmp_path / "corpus.jsonl", 100)


def write_jsonl(path, n):
    rows = ({"id": i, "text": f"Text {i} is about Bonn."} for i in range(n))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read_jsonl(path):
    return [json.loads(line) for line in path.read_text(encoding="utf8").splitlines()]


def read_output(folder):
    """RETURNS (List[Dict]): The rows of all shards, in order."""
    return [row for path in sorted((folder / "shards").iterdir()) for row in read_jsonl(path)]
