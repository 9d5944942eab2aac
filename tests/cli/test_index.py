import errno
import json
import re
import shlex
import subprocess
import sys

import pytest
import spacy
import torch
import typer
from spacy.tokens import DocBin, Span
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import BertConfig, BertModel, BertTokenizerFast
from typer.testing import CliRunner

from spacy_llmner.cli.index import build_index, index_cli
from spacy_llmner.errors import LLMMismatchError, LLMNERError
from spacy_llmner.llm.registry import make_llm
from spacy_llmner.retrieval.encoder import make_sentence_encoder
from spacy_llmner.retrieval.examples import LabelledText
from spacy_llmner.retrieval.index import ExampleIndex
from spacy_llmner.retrieval.llm_encoder import make_llm_encoder

NAME = re.compile("Ada")
TEXTS = ["Ada met Bo", "Bo in Bonn", "nobody came"]


@pytest.fixture(scope="session")
def encoder(tmp_path_factory):
    """Folder of a tiny random sentence encoder."""
    path = tmp_path_factory.mktemp("encoder")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *" ".join(TEXTS).lower().split()]
    model = models.WordPiece({w: i for i, w in enumerate(dict.fromkeys(words))}, unk_token="[UNK]")
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    BertTokenizerFast(tokenizer_object=tokenizer, model_max_length=16).save_pretrained(path)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
    )
    BertModel(config).save_pretrained(path)
    return str(path)


@pytest.fixture
def run(encoder, tmp_path):
    app = typer.Typer()
    app.command()(index_cli)

    def run(corpus, *args, encoder=encoder):
        chosen = [] if encoder is None else ["--encoder", encoder]
        args = [str(corpus), str(tmp_path / "out"), *chosen, *args]
        return CliRunner().invoke(app, args)

    return run


def write(path, texts=TEXTS, key=None):
    nlp = spacy.blank("en")
    docs = [nlp(text) for text in texts]
    for doc in docs:
        spans = [Span(doc, t.i, t.i + 1, "NAME") for t in doc if t.text in ("Ada", "Bo", "Bonn")]
        if key:
            doc.spans[key] = spans
        else:
            doc.ents = spans
    path.parent.mkdir(exist_ok=True)
    DocBin(docs=docs, store_user_data=True).to_disk(path)
    return path


def jsonl(path, *lines):
    path.write_text("\n".join(x if isinstance(x, str) else json.dumps(x) for x in lines) + "\n")
    return path


def saved(path, encoder):
    return ExampleIndex(make_sentence_encoder(encoder)).from_disk(path / "out")


def test_docs(run, encoder, tmp_path):
    result = run(write(tmp_path / "train.spacy"))
    assert result.exit_code == 0, result.output
    assert "3 examples" in result.output and "NAME" in result.output and "4" in result.output
    index = saved(tmp_path, encoder)
    first = LabelledText("Ada met Bo", ((0, 3, "NAME"), (8, 10, "NAME")), "train.spacy:1")
    assert index.examples[0] == first and len(index) == 3
    (hits,) = index.search([LabelledText("Ada in Bonn")], 2)
    assert len(hits) == 2


def test_folder_and_kind(run, encoder, tmp_path):
    write(tmp_path / "corpus" / "a.spacy", TEXTS[:2])
    write(tmp_path / "corpus" / "b.spacy", [*TEXTS[1:], " "])
    result = run(tmp_path / "corpus", "--kind", "hnsw", "--device", "cpu")
    assert "2 duplicate, blank, rejected, unannotated or cut texts left out" in " ".join(
        result.output.split()
    )
    index = saved(tmp_path, encoder)
    assert index.kind == "hnsw"
    assert [e.doc_id for e in index.examples] == ["a.spacy:1", "a.spacy:2", "b.spacy:2"]


LONG = " ".join(f"Ada met Bo on day {number} of the year." for number in range(40))
LONG_ZH = "".join(f"王小明第{number}天在北京大学学习。" for number in range(40))


def assert_cut(index, text, name):
    """The examples are whole sentences, and their entities have correct offsets."""
    parts = [e for e in index.examples if e.doc_id == LabelledText(text).hash]
    assert len(parts) > 2 and len(parts) == len(index)
    assert "".join("".join(p.text.split()) for p in parts) == "".join(text.split())
    for part in parts:
        assert part.text.endswith((".", "。")) and len(part.text) < len(text) / 2
        assert {part.text[start:end] for start, end, _ in part.entities} == {name}
    assert sum(len(p.entities) for p in parts) == text.count(name)


@pytest.mark.parametrize("kind", ["spacy", "spans", "jsonl"])
def test_long_texts_are_cut(run, encoder, tmp_path, kind):
    """Long texts would not fit into a prompt."""
    if kind == "jsonl":
        spans = [{"start": m.start(), "end": m.end(), "label": "NAME"} for m in NAME.finditer(LONG)]
        path, args = jsonl(tmp_path / "long.jsonl", {"text": LONG, "spans": spans}), []
    else:
        key, args = ("sc", ["--spans-key", "sc"]) if kind == "spans" else (None, [])
        path = write(tmp_path / "long.spacy", [LONG.replace("Ada", "We")], key)
    result = run(path, *args)
    assert result.exit_code == 0 and "left out" not in result.output
    index = saved(tmp_path, encoder)
    if kind == "jsonl":
        assert_cut(index, LONG, "Ada")
    else:
        assert_cut(index, LONG.replace("Ada", "We"), "Bo")


def test_long_chinese_texts_are_cut(run, encoder, tmp_path):
    """Chinese texts are cut as well, although there are no spaces between words."""
    spans = [
        {"start": m.start(), "end": m.end(), "label": "NAME"}
        for m in re.finditer("王小明", LONG_ZH)
    ]
    run(jsonl(tmp_path / "long.jsonl", {"text": LONG_ZH, "spans": spans}))
    assert_cut(saved(tmp_path, encoder), LONG_ZH, "王小明")


def test_parts_that_cut_an_entity_are_left_out(run, encoder, tmp_path):
    text = "a " * 200
    spans = [{"start": 250, "end": 265, "label": "NAME"}]
    result = run(jsonl(tmp_path / "long.jsonl", {"text": text, "spans": spans}, {"text": "Bo"}))
    assert "2 duplicate, blank, rejected, unannotated or cut texts left out" in " ".join(
        result.output.split()
    )
    assert [e.text for e in saved(tmp_path, encoder).examples] == ["Bo"]


def test_spans_key(run, encoder, tmp_path):
    path = write(tmp_path / "nested.spacy", key="sc")
    result = run(path)
    assert (
        result.exit_code == 1
        and "none of its non-empty documents is annotated (doc.ents)" in result.output
    )
    assert "NAME" in run(path, "--spans-key", "sc").output
    assert saved(tmp_path, encoder).labels() == {"NAME": 4}
    assert "is annotated (doc.spans['x'])" in run(path, "--spans-key", "x").output


def test_corpus_without_entities(run, encoder, tmp_path):
    path = write(tmp_path / "tea.spacy", ["Tea is cold.", "Nobody came."])
    assert "has an entity (doc.ents is empty" in " ".join(run(path).output.split())
    assert len(saved(tmp_path, encoder)) == 2


def test_jsonl(run, encoder, tmp_path):
    spans = [{"start": 6, "end": 10, "label": "LOC"}, {"start": 0, "end": 2, "label": "PER"}]
    path = jsonl(tmp_path / "c.jsonl", {"text": TEXTS[1], "spans": spans}, "", {"text": TEXTS[2]})
    result = run(path)
    assert result.exit_code == 0, result.output
    assert saved(tmp_path, encoder).examples == [
        LabelledText(TEXTS[1], ((0, 2, "PER"), (6, 10, "LOC")), "c.jsonl:1"),
        LabelledText(TEXTS[2], (), "c.jsonl:3"),
    ]


def test_only_accepted_texts_of_prodigy(run, encoder, tmp_path):
    answers = ("reject", "accept", "ignore")
    rows = [{"text": text, "spans": [], "answer": x} for text, x in zip(TEXTS, answers)]
    path = jsonl(tmp_path / "c.jsonl", *rows, {**rows[0], "answer": "accept", "_view_id": "ner"})
    result = run(path)
    assert "3 duplicate, blank, rejected," in " ".join(result.output.split())
    assert [example.text for example in saved(tmp_path, encoder).examples] == [TEXTS[1]]


@pytest.mark.parametrize("layer", [None, 2])
def test_llm(run, tiny_llm, other_llm, tmp_path, layer):
    """A component with the same LLM and layer can use the index. For others, the message has a command."""
    chosen = [] if layer is None else ["--layer", str(layer)]
    corpus = write(tmp_path / "train.spacy")
    result = run(corpus, "--llm", tiny_llm, *chosen, "--device", "cpu", encoder=None)
    assert result.exit_code == 0, result.output
    index = ExampleIndex(make_llm_encoder(make_llm(tiny_llm), layer)).from_disk(tmp_path / "out")
    assert len(index.search([LabelledText("Ada in Bonn")], 2)[0]) == 2
    other = ExampleIndex(make_llm_encoder(make_llm(other_llm), layer)).from_disk(tmp_path / "out")
    with pytest.raises(LLMMismatchError) as raised:
        other.search([LabelledText("Ada in Bonn")], 2)
    command = shlex.split(str(raised.value).split("index CORPUS OUT ")[1])
    assert command == ["--llm", other_llm, *chosen]
    assert run(corpus, *command, encoder=None).exit_code == 0
    assert len(other.from_disk(tmp_path / "out").search([LabelledText("Ada in Bonn")], 2)[0]) == 2


def test_one_encoder(run, tiny_llm, tmp_path):
    corpus = write(tmp_path / "train.spacy")
    for args, encoder in ((["--llm", tiny_llm], "e"), (["--layer", "2"], None)):
        result = run(corpus, *args, encoder=encoder)
        assert result.exit_code == 1
        assert "Use either --encoder, or --llm (with or without --layer)" in " ".join(
            result.output.split()
        )
    assert (
        "Layer 9 was requested"
        in run(corpus, "--llm", tiny_llm, "--layer", "9", encoder=None).output
    )
    assert not (tmp_path / "out").exists()


def test_no_bar_in_a_pipe(run, encoder, tmp_path, capsys):
    result = run(write(tmp_path / "train.spacy"))
    assert "%|" not in result.output
    sentences = make_sentence_encoder(encoder)
    ExampleIndex(sentences).add([LabelledText("Ada")], progress=True)
    sentences.encode(["Ada"], progress=True)
    assert "%|" not in capsys.readouterr().err


def test_in_python(encoder, tmp_path):
    index, n_read = build_index(write(tmp_path / "a.spacy"), tmp_path / "out", encoder)
    assert len(index) == n_read == 3 and saved(tmp_path, encoder).examples == index.examples


def test_messages(run, tmp_path):
    def fails(message, corpus, *args, **kwargs):
        result = run(corpus, *args, **kwargs)
        assert result.exit_code == 1
        assert message in result.output
        assert not (tmp_path / "out").exists()

    good = write(tmp_path / "good.spacy")
    fails("Can't find the corpus", tmp_path / "none.spacy")
    (tmp_path / "empty").mkdir()
    fails("it contains no .spacy files", tmp_path / "empty")
    fails("contains no examples: none of its non-empty documents", write(tmp_path / "no.spacy", []))
    fails(
        "contains no examples: none of its non-empty documents",
        write(tmp_path / "blank.spacy", [" ", ""]),
    )
    fails("contains no examples", jsonl(tmp_path / "no.jsonl"))
    (tmp_path / "text.txt").write_text("Ada")
    fails("it is not a .spacy file", tmp_path / "text.txt")
    (tmp_path / "bad.spacy").write_bytes(b"nonsense")
    fails("Can't read the corpus", tmp_path / "bad.spacy")
    (tmp_path / "v2.json").write_text('[{"id": 0, "paragraphs": []}]')
    fails("is in the JSON format of spaCy v2", tmp_path / "v2.json")
    for line in (
        "{nonsense",
        {"text": "Bo", "answer": "yes"},
        "[1]",
        {"spans": []},
        {"text": 5},
        {"text": "Bo", "spans": [{"start": 0, "end": 9, "label": "PER"}]},
        {"text": "Bo", "spans": [{"start": 0, "label": "PER"}]},
        {"text": "Bo", "spans": [[0, 2, "PER"]]},
    ):
        fails("line 2: ", jsonl(tmp_path / "bad.jsonl", {"text": "Ada"}, line))
    fails("Can't load the sentence encoder", good, encoder="/no/such/encoder")
    fails("'tree' is not a valid kind of index", good, "--kind", "tree")
    fails("'gpu' is not a valid device", good, "--device", "gpu")


@pytest.mark.parametrize("out", ["good.spacy", "good.spacy/index"])
def test_no_place_to_write_to(encoder, tmp_path, monkeypatch, out):
    """The error is raised before any text is encoded."""
    good = write(tmp_path / "good.spacy")
    monkeypatch.setattr("spacy_llmner.retrieval.encoder.SentenceEncoder.encode", None)
    with pytest.raises(LLMNERError, match="Can't write the index to .*good.spacy.* \\(.*folder"):
        build_index(good, tmp_path / out, encoder)
    assert sorted(tmp_path.iterdir()) == [good]


def test_a_full_disk(run, encoder, tmp_path, monkeypatch):
    run(write(tmp_path / "good.spacy"))

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("spacy_llmner.retrieval.index.save_file", full)
    result = run(write(tmp_path / "more.spacy", [*TEXTS, "Ada left"]))
    assert result.exit_code == 1
    assert "Can't write the index to" in result.output and "No space left" in result.output
    assert len(saved(tmp_path, encoder)) == 3


# Writes half of an index, says so, and waits.
STOPPED = """
import sys
from pathlib import Path
from spacy_llmner.cli.index import build_index
from spacy_llmner.retrieval import index

def half(arrays, path):
    Path(path).write_bytes(b"half")
    print("half", flush=True)
    sys.stdin.read()

index.save_file = half
build_index(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
"""


def test_killed(run, encoder, tmp_path):
    """The old index can be read, and the next run deletes what the killed one left."""
    corpus = write(tmp_path / "corpus" / "a.spacy")
    assert run(corpus).exit_code == 0
    out = tmp_path / "out"
    files = sorted(file.name for file in out.iterdir())
    command = [sys.executable, "-c", STOPPED, *map(str, (corpus, out, encoder))]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, encoding="utf8") as process:
        assert process.stdout.readline() == "half\n"
        process.kill()
    assert list(out.glob(".llmner-*/vectors.safetensors"))
    assert len(saved(tmp_path, encoder)) == 3
    assert run(corpus).exit_code == 0
    assert sorted(file.name for file in out.iterdir()) == files
