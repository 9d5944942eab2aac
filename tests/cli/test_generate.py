import pytest
import spacy
import typer
from spacy.tokens import DocBin
from typer.testing import CliRunner

from spacy_llmner.cli.generate import generate_cli

app = typer.Typer()
app.command()(generate_cli)


@pytest.fixture(scope="module")
def annotator(tmp_path_factory):
    nlp = spacy.blank("en")
    ruler = nlp.add_pipe("entity_ruler")
    ruler.add_patterns([{"label": "THING", "pattern": [{"IS_ALPHA": True}]}])
    path = tmp_path_factory.mktemp("annotator") / "nlp"
    nlp.to_disk(path)
    return str(path)


def run(*args):
    return CliRunner().invoke(app, [str(arg) for arg in args])


def read(path):
    return list(DocBin().from_disk(path).get_docs(spacy.blank("en").vocab))


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("The river Aare\n\n  Ada Hale met \nNobody came", encoding="utf8")
    return path


def test_text_file(prompts, tiny_llm, annotator, tmp_path):
    out = tmp_path / "new" / "out.spacy"
    args = ("--llm", tiny_llm, "--annotator", annotator, "--max-new-tokens", 12)
    result = run(prompts, out, *args)
    assert result.exit_code == 0, result.output
    docs = read(out)
    assert f"{len(docs)} texts" in result.output
    assert 0 < len(docs) <= 3
    assert docs[0].text.startswith("The river Aare")
    assert docs[0][0].ent_iob == 0 and docs[0][-1].ent_iob != 0
    assert run(prompts, out, *args, "--limit", 1).exit_code == 0
    assert len(read(out)) == 1


def test_docs_as_prompts(tiny_llm, annotator, tmp_path):
    nlp = spacy.blank("en")
    path = tmp_path / "prompts.spacy"
    DocBin(docs=[nlp("The river Aare")]).to_disk(path)
    out = tmp_path / "out.spacy"
    result = run(path, out, "--llm", tiny_llm, "--annotator", annotator)
    assert result.exit_code == 0, result.output
    assert read(out)[0].text.startswith("The river Aare")


def test_messages(prompts, tiny_llm, annotator, tmp_path):
    out = tmp_path / "out.spacy"

    def fails(message, source=prompts, llm=tiny_llm, pipeline=annotator, out=out):
        result = run(source, out, "--llm", llm, "--annotator", pipeline)
        assert result.exit_code == 1
        assert message in result.output
        assert not out.exists()

    fails("must end in .spacy", out=tmp_path / "out.bin")
    fails("Can't find the prompts", source=tmp_path / "none.txt")
    fails("Can't find the pipeline", pipeline=tmp_path / "none")
    v2 = tmp_path / "v2.json"
    v2.write_text('[{"id": 0, "paragraphs": []}]')
    fails("is in the JSON format of spaCy v2", source=v2)
    empty = tmp_path / "empty.txt"
    empty.write_text("\n \n")
    fails("contains no prompts", source=empty)
    broken = tmp_path / "broken.spacy"
    broken.write_bytes(b"x")
    fails("They must be a .spacy file", source=broken)
    binary = tmp_path / "binary.txt"
    binary.write_bytes(b"\xff\xfe\xff")
    fails("a UTF-8 text file", source=binary)
    long = tmp_path / "long.txt"
    long.write_text("The river Aare " * 300)
    fails("generated no text", source=long)
    folder = tmp_path / "empty_llm"
    folder.mkdir()
    fails("incomplete or broken", llm=folder)
