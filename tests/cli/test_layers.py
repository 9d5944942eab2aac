import json

import spacy
import torch
import typer
from spacy.tokens import DocBin
from spacy.training import Example
from typer.testing import CliRunner

from spacy_llmner.cli.layers import joined, layers_cli, sweep, train_probe

app = typer.Typer()
app.command()(layers_cli)

DATA = [
    ("Ada Hale met Bo Lund in Bonn.", [(0, 8, "PER"), (13, 20, "PER"), (24, 28, "LOC")]),
    ("The river Aare flows past Bern.", [(10, 14, "LOC"), (26, 30, "LOC")]),
    ("Nobody came to the meeting.", []),
]


def write(path, data=DATA):
    nlp = spacy.blank("en")
    docs = [Example.from_dict(nlp.make_doc(t), {"entities": e}).reference for t, e in data]
    DocBin(docs=docs).to_disk(path)
    return path


def run(*args):
    return CliRunner().invoke(app, [str(arg) for arg in args])


def test_table_and_json(tiny_llm, tmp_path):
    data = write(tmp_path / "train.spacy")
    out = tmp_path / "new" / "layers.json"
    result = run(data, data, "--llm", tiny_llm, "--output", out, "--gpu-id", -1)
    assert result.exit_code == 0, result.output
    found = json.loads(out.read_text())
    n_layers = found["n_layers"]
    assert [x["layer"] for x in found["layers"]] == list(range(n_layers + 1))
    assert [x["depth"] for x in found["layers"]] == [k / n_layers for k in range(n_layers + 1)]
    best = max(found["layers"], key=lambda x: x["ents_f"])
    assert best["layer"] == found["best_layer"]
    # It was trained on the same sentences.
    assert best["ents_f"] > 0.8
    assert f"layer = {best['layer']}\n" in result.output
    assert result.output.count("best") == 1
    assert "of the depth" in result.output


def test_same_scores_again_and_no_trace(tiny_llm, load, tmp_path):
    data = write(tmp_path / "train.spacy")
    llm = load(tiny_llm)
    state = torch.get_rng_state()
    assert sweep(llm, data, data, limit=1) == sweep(llm, data, data, limit=1)
    assert torch.equal(state, torch.get_rng_state())
    assert not any(p.requires_grad for p in llm.model.parameters())


def test_words_without_annotation_are_left_out():
    states = torch.eye(4)
    types = torch.tensor([0, 1, -1, -1])
    probe = train_probe(states, types, 2)
    assert probe(states[:2]).argmax(-1).tolist() == [0, 1]


def test_joined():
    assert joined([], 2) == []
    assert joined([2, 0, 0, 1, 0, 2, 0], 2) == [(1, 3, 0), (3, 4, 1), (4, 5, 0), (6, 7, 0)]


def test_messages(tiny_llm, tmp_path):
    data = write(tmp_path / "train.spacy")

    def fails(message, *args, llm=tiny_llm):
        result = run(*args, "--llm", llm)
        assert result.exit_code == 1
        assert message in result.output

    fails("Can't find the data", data, tmp_path / "none.spacy")
    fails("None of the training examples", write(tmp_path / "no.spacy", DATA[2:]), data)
    other = [(text, [(s, e, "THING") for s, e, _ in ents]) for text, ents in DATA]
    fails("No layer finds any entity in", data, write(tmp_path / "other.spacy", other))
    fails("doesn't support the language 'xx_yy'", data, data, "--lang", "xx_yy")
    fails("cuda:99", data, data, "--gpu-id", 99)
    empty = tmp_path / "empty"
    empty.mkdir()
    fails("incomplete or broken", data, data, llm=empty)
