import pytest

from spacy_llmner.errors import LLMNERError
from spacy_llmner.models import catalogue
from spacy_llmner.models import sanity_checks as model_checks


@pytest.mark.llm
def test_smollm2_predicts_english(smollm2):
    assert catalogue.path_of("smollm2-135m-instruct") == smollm2
    nats = catalogue.likelihood(smollm2)
    assert nats == pytest.approx(3.82, abs=0.02)
    assert nats < catalogue.CATALOGUE["smollm2-135m-instruct"].max_nats


def test_likelihood_of_no_causal_lm(tmp_path):
    (tmp_path / "config.json").write_text('{"architectures": ["BertModel"]}')
    with pytest.raises(LLMNERError, match="contains a BertModel"):
        catalogue.likelihood(tmp_path)


def test_find_fault(monkeypatch, tmp_path):
    monkeypatch.setattr(model_checks, "likelihood", lambda path: 6.55)
    assert "6.55 nats per token, but must cost at most 3.5" in model_checks.find_fault(
        tmp_path, 3.5
    )
    monkeypatch.setattr(model_checks, "likelihood", lambda path: float("nan"))
    assert model_checks.find_fault(tmp_path, 3.5) is not None
    monkeypatch.setattr(model_checks, "likelihood", lambda path: 2.8)
    assert model_checks.find_fault(tmp_path, 3.5) is None
    monkeypatch.setattr(model_checks, "_similarities", lambda path: (0.4, 0.3))
    assert "the same meaning is 0.40" in model_checks.find_fault(tmp_path, None)
