"""`import spacy_llmner`, and the reprs of objects."""

import subprocess
import sys
from importlib.metadata import version

import pytest
import spacy

import spacy_llmner


def test_names():
    assert spacy_llmner.__version__ == version("spacy-llmner")
    for name in spacy_llmner.__all__:
        assert getattr(spacy_llmner, name) is not None
    assert set(dir(spacy_llmner)) == set(spacy_llmner.__all__)
    with pytest.raises(AttributeError, match="'spacy_llmner' has no attribute 'nothing'"):
        _ = spacy_llmner.nothing


def test_import_is_cheap():
    code = "import sys, spacy_llmner; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_errors_have_one_base():
    for error in ("DocumentError", "LLMMismatchError", "LLMNotFoundError"):
        assert issubclass(getattr(spacy_llmner, error), spacy_llmner.LLMNERError)


def test_repr_of_an_llm(tiny_llm):
    llm = spacy_llmner.make_llm(tiny_llm, dtype="float32", device="cpu")
    llm.unload()
    assert repr(llm) == f"LLM('{tiny_llm}', dtype=float32, device=cpu, not loaded)"
    llm.load()
    assert repr(llm) == f"LLM('{tiny_llm}', dtype=float32, device=cpu, loaded)"


@pytest.mark.parametrize("factory", ["ember_probe", "padellm_ner", "ra_it_ner"])
def test_repr_of_a_component(factory, tiny_llm):
    pipe = spacy.blank("en").add_pipe(factory, name="mine", config={"llm": tiny_llm})
    for label in "ABCDEFG":
        pipe.add_label(label)
    kind = type(pipe).__name__
    labels = "[A, B, C, D, E, ...]"
    assert repr(pipe) == f"{kind}(name='mine', llm='{tiny_llm}', labels={labels}, not trained)"


def test_repr_of_an_ensemble(tiny_llm):
    config = {"llms": {"one": tiny_llm}, "labels": ["PER"], "encoder": {"name": "some-encoder"}}
    pipe = spacy.blank("en").add_pipe("el4ner_ensemble", config=config)
    voter = f"LLMVoter('{tiny_llm}', prompts='auto', weight=1.0)"
    expected = f"EL4NER(name='el4ner_ensemble', llms=[one={voter}], labels=[PER], 0 labelled texts)"
    assert repr(pipe) == expected
