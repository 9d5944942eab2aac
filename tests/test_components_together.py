"""All four components in one pipeline with one LLM, and their combined entities."""

import json
import random

import pytest
import spacy

from spacy_llmner.llm import registry as pool
from tests.helpers import TEXTS, entities, make_examples, make_sgd

PIPES = ["ember_probe", "padellm_ner", "ra_it_ner", "el4ner_ensemble"]


@pytest.fixture(scope="module")
def nlp(make_tiny, tmp_path_factory):
    """Two of them are trained. The other two use a random LLM without training."""
    folder = tmp_path_factory.mktemp("llm") / "roomy"
    make_tiny(folder, "llama")
    config = json.loads((folder / "config.json").read_text())
    config["max_position_embeddings"] = 2048
    (folder / "config.json").write_text(json.dumps(config))
    llm = {"@misc": "spacy_llmner.LLM.v1", "name": str(folder), "device": "cpu"}
    settings = {
        "ember_probe": {
            "llm": llm,
            "feature_cache": "off",
            "model": {"@architectures": "spacy_llmner.EmberProbe.v1", "width": 32},
        },
        "padellm_ner": {
            "llm": llm,
            "model": {"@architectures": "spacy_llmner.PaDeLLM.v1", "rank": 8, "first_layer": 0},
        },
        "ra_it_ner": {
            "llm": llm,
            "retrieval": {"@misc": "spacy_llmner.Retrieval.v1", "k": 0},
            "list_threshold": 0.0,
        },
        "el4ner_ensemble": {
            "llms": {"a": {"@misc": "spacy_llmner.Voter.v1", "llm": llm}},
            "encoder": {"@misc": "spacy_llmner.LLMEncoder.v1", "llm": llm},
            "k": 1,
            "pre_extract": "gold",
            "verify_threshold": 0.0,
        },
    }
    nlp = spacy.blank("en")
    for name in PIPES:
        nlp.add_pipe(name, config={**settings[name], "spans_key": name})
    nlp.add_pipe("llmner_combine", config={"keys": PIPES, "min_votes": 1})
    examples = make_examples(nlp)
    random.seed(0)
    pool.clear()
    nlp.initialize(lambda: examples)
    for _ in range(20):
        nlp.update(examples, sgd=make_sgd(0.02, grad_clip=1.0), exclude=PIPES[2:])
    return nlp


def group_of(doc, key):
    """RETURNS (Dict): Scores by span."""
    group = doc.spans[key]
    return {(s.start, s.end, s.label_): x for s, x in zip(group, group.attrs["scores"])}


def test_combined(nlp):
    found = dict.fromkeys(PIPES, 0)
    for doc in nlp.pipe(TEXTS):
        assert set(doc.spans) == {*PIPES, "combined"}
        groups = [group_of(doc, name) for name in PIPES]
        for name, group in zip(PIPES, groups):
            found[name] += len(group)
        mean = {span: sum(g.get(span, 0.0) for g in groups) / 4 for g in groups for span in g}
        assert group_of(doc, "combined") == pytest.approx(mean)
        for ent in doc.ents:
            assert ent._.score == pytest.approx(mean[ent.start, ent.end, ent.label_])
    assert all(found.values()), found


def test_most_must_agree(nlp):
    combine = nlp.get_pipe("llmner_combine")
    combine.min_votes = 3
    agreed = [len(doc.spans["combined"]) for doc in nlp.pipe(TEXTS)]
    combine.min_votes = 1
    assert sum(agreed) < sum(len(doc.spans["combined"]) for doc in nlp.pipe(TEXTS))


def test_the_llm_is_held_once(nlp):
    nlp(TEXTS[0])
    (held,) = pool.loaded()
    for name in PIPES[:3]:
        assert nlp.get_pipe(name).shared_llm() is held
    assert nlp.get_pipe("el4ner_ensemble").voters["a"].llm.load() is held


def test_none_changes_what_another_finds(nlp):
    together = list(nlp.pipe(TEXTS[:3]))
    for name in PIPES:
        with nlp.select_pipes(enable=[name]):
            for doc, other in zip(together, nlp.pipe(TEXTS[:3])):
                assert group_of(doc, name) == pytest.approx(group_of(other, name), abs=1e-4)


def test_saved(nlp, tmp_path):
    nlp.to_disk(tmp_path)
    loaded = spacy.load(tmp_path)
    for doc, other in zip(nlp.pipe(TEXTS[:3]), loaded.pipe(TEXTS[:3])):
        assert entities(doc) == entities(other)
        assert group_of(doc, "combined") == pytest.approx(group_of(other, "combined"), abs=1e-4)
    assert len(pool.loaded()) == 1
