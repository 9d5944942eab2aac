"""The Python examples in the README and in docs/ run, and print what the comments below them say."""

from doctest import ELLIPSIS, OutputChecker

import pytest

from spacy_llmner import LLMNERError, make_llm
from tests.docs.helpers import ROOT, blocks, expected

PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]
WITH_PYTHON = {page.name for page in PAGES if blocks(page, "python")}
# Pages with examples of the pipelines that `spacy project run` trains.
TRAINED = {
    "ember_probe.md": ["ember_probe"],
    "padellm_ner.md": ["padellm_ner"],
    "ra_it_ner.md": ["ra_it_ner"],
    "el4ner_ensemble.md": ["el4ner_ensemble"],
    "using.md": ["ember_probe", "padellm_ner"],
}
RUN = {"README.md": [], "labels_in_words.md": [], **TRAINED}
NOT_RUN = {
    "annotation_tools.md": "its files are exports of other programs; see tests/corpora",
    "llms.md": "its LLM is too large for a test",
    "packaging.md": "its package is installed in tests/test_packaging.py",
    "scale.md": "needs Ray, datasets and Spark; see tests/scale",
    "serve.md": "needs a running server; see tests/serve",
}


def test_each_page_is_run_or_not_for_a_reason():
    assert RUN.keys() | NOT_RUN.keys() == WITH_PYTHON


@pytest.mark.llm
@pytest.mark.parametrize("page", RUN)
def test_examples(page, smollm2, pipelines, tmp_path, monkeypatch, capsys):
    for name in RUN[page]:
        folder = tmp_path / "training" / name
        folder.mkdir(parents=True)
        kind = "wild" if name == "ra_it_ner" else "trained"  # its training takes long
        pipelines(name, kind).to_disk(folder / "model-best")
    monkeypatch.chdir(tmp_path)
    make_llm("smollm2-135m-instruct").unload()  # an example shows that it is not loaded
    # What an application has.
    namespace = {"pieces": ["Mira ", "Stone left", " Varnholm."], "answer": ["Dear [PER", "_1]"]}
    namespace["annotated_docs"] = []
    path = ROOT / page if page == "README.md" else ROOT / "docs" / page
    for block in blocks(path, "python"):
        capsys.readouterr()
        try:
            # The small pipelines have the label PER.
            exec(block.replace('["PERSON", "LOC"]', '["PER", "LOC"]'), namespace)
        except LLMNERError as e:
            print(e)
        printed = capsys.readouterr().out
        assert "[LLMNER" not in printed or "[LLMNER" in expected(block), printed
        if expected(block):
            assert OutputChecker().check_output(expected(block), printed, ELLIPSIS), printed
