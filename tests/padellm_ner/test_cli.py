"""`spacy train` and `spacy find-threshold` with the config of the project; the real small LLM."""

from pathlib import Path

import pytest
import spacy
from spacy.cli.apply import apply
from spacy.cli.find_threshold import find_threshold
from spacy.cli.package import package
from spacy.cli.train import train as train_cli
from spacy.tokens import DocBin

from tests.helpers import TEXTS, assert_valid, entities, make_examples
from tests.padellm_ner.helpers import DATA, initialized, make_nlp

CONFIG = Path(__file__).parent.parent.parent / "configs" / "padellm_ner.cfg"


@pytest.fixture
def corpus(tmp_path):
    nlp = spacy.blank("en")
    docs = [eg.reference for eg in make_examples(nlp, DATA)]
    DocBin(docs=docs).to_disk(tmp_path / "data.spacy")
    return str(tmp_path / "data.spacy")


@pytest.mark.parametrize("template", ["compact", "published_en"])
def test_spacy_train(tiny_llm, corpus, tmp_path, template):
    overrides = {
        "paths.train": corpus,
        "paths.dev": corpus,
        "paths.llm": tiny_llm,
        "training.max_steps": 2,
        "training.eval_frequency": 1,
        "components.padellm_ner.model.template": template,
    }
    train_cli(CONFIG, tmp_path / "out", overrides=overrides)
    nlp = spacy.load(tmp_path / "out" / "model-last")
    assert nlp.get_pipe("padellm_ner").labels == ("LOC", "PER")
    assert {"ents_f", "ents_p", "ents_r", "ents_per_type", "ents_ece"} <= nlp.meta[
        "performance"
    ].keys()
    assert nlp.meta["performance"]["padellm_ner_loss"] > 0
    for doc in nlp.pipe(TEXTS):
        assert_valid(doc, doc.text)
    size = sum(f.stat().st_size for f in (tmp_path / "out" / "model-last").rglob("*"))
    llm_size = sum(f.stat().st_size for f in Path(tiny_llm).rglob("*.safetensors"))
    assert size < 10 * llm_size  # the tiny LLM is smaller than a vocabulary


def test_find_threshold(trained, corpus, tmp_path):
    trained.to_disk(tmp_path / "model")
    best, score, scores = find_threshold(
        tmp_path / "model",
        Path(corpus),
        pipe_name="padellm_ner",
        threshold_key="threshold",
        scores_key="ents_f",
        n_trials=3,
        use_gpu=-1,
        gold_preproc=False,
        silent=True,
    )
    assert score == 1.0 and len(scores) == 3
    assert 0.0 <= best < 1.0


def test_apply_and_package(trained, tmp_path):
    """The results of other commands are those of the pipeline."""
    trained.to_disk(tmp_path / "model")
    (tmp_path / "texts.jsonl").write_text("".join(f'{{"text": "{text}"}}\n' for text in TEXTS))
    out = tmp_path / "out.spacy"
    apply(tmp_path / "texts.jsonl", out, str(tmp_path / "model"), "text", 1, 1)
    docs = list(DocBin().from_disk(out).get_docs(trained.vocab))
    assert [entities(doc) for doc in docs] == [entities(trained(text)) for text in TEXTS]
    package(tmp_path / "model", tmp_path, name="x", version="1.0", create_wheel=False,
            create_sdist=False, silent=True)  # fmt: skip
    nlp = spacy.load(tmp_path / "en_x-1.0" / "en_x" / "en_x-1.0")
    assert [entities(nlp(text)) for text in TEXTS] == [entities(trained(text)) for text in TEXTS]


@pytest.mark.llm
def test_smollm2(smollm2):
    """With the real LLM, an untrained adapter finds exact spans, and one training step lowers the loss."""
    from tests.helpers import make_sgd

    words = {"PER": "person", "LOC": "place"}
    nlp = initialized(make_nlp(smollm2, template="published_en", label_words=words, first_layer=28))
    for doc in nlp.pipe([*TEXTS[:2], "", "Zoë 🚀 in 北京"], batch_size=4):
        assert_valid(doc, doc.text)
    examples = make_examples(nlp, DATA[:2])
    losses = [nlp.update(examples, sgd=make_sgd(0.003))["padellm_ner"] for _ in range(4)]
    assert losses[-1] < losses[0]
