"""A matcher for the tiny Llama, trained on made-up corpora with labels of their own."""

import random

import pytest
import spacy
from spacy.tokens import Doc, DocBin, Span

from spacy_llmner.cli.pretrain_matcher import make_matcher

NAMES = {
    "PERSON": ["Ada Hale", "Bo Lund", "Mira Stone", "Oskar Blum"],
    "TOWN": ["Bonn", "Bern", "Rome", "Port Ellam"],
    "fruit": ["apple", "pear", "plum"],
}
LABELS = {
    "PERSON": {"names": ["person", "human"]},
    "TOWN": {"names": ["town", "city"], "parent": "place"},
    "place": {"names": ["place"]},
}
WIDTH = 32


def make_docs(labels, n, seed=0):
    """RETURNS (List[Doc]): Docs with all kinds of names, of which those with these labels are annotated."""
    vocab, rng = spacy.blank("en").vocab, random.Random(seed)
    docs = []
    for _ in range(n):
        words, spans = [], []
        for _ in range(3):
            label = rng.choice(list(NAMES))
            name = rng.choice(NAMES[label]).split()
            if label in labels:
                spans.append((len(words), len(words) + len(name), label))
            words += [*name, rng.choice(["met", "saw", "and", "in"])]
        doc = Doc(vocab, words)
        doc.set_ents([Span(doc, *span) for span in spans])
        docs.append(doc)
    return docs


@pytest.fixture(scope="session")
def corpora(tmp_path_factory):
    """Folder of two corpora whose annotators looked for different labels."""
    folder = tmp_path_factory.mktemp("corpora")
    for name, labels in (("people", ["PERSON", "TOWN"]), ("food", ["TOWN", "fruit"])):
        DocBin(docs=make_docs(labels, 100)).to_disk(folder / f"{name}.spacy")
    return folder


@pytest.fixture(scope="session")
def label_names(tmp_path_factory):
    """JSON file with the names of the labels."""
    import srsly

    path = tmp_path_factory.mktemp("names") / "names.json"
    srsly.write_json(path, LABELS)
    return path


@pytest.fixture(scope="session")
def matcher(tiny_llm, corpora, label_names, tmp_path_factory):
    """Folder of a matcher for the tiny Llama."""
    folder = tmp_path_factory.mktemp("matcher") / "weights"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPACY_LLMNER_HOME", str(tmp_path_factory.mktemp("home")))
        make_matcher(
            corpora, folder, tiny_llm, names=label_names, epochs=100, width=WIDTH, device="cpu"
        )
    return folder


@pytest.fixture
def make(tiny_llm, matcher):
    """Create a pipeline: make(["person", "town"], weights=...). RETURNS (Language)."""

    def make(labels, cfg=None, **model):
        nlp = spacy.blank("en")
        settings = {
            "@architectures": "spacy_llmner.EmberMatch.v1",
            "weights": str(matcher),
            "width": WIDTH,
            **model,
        }
        llm = {"@misc": "spacy_llmner.LLM.v1", "name": str(tiny_llm), "device": "cpu"}
        config = {"llm": llm, "model": settings, "labels": labels, "feature_cache": "off"}
        nlp.add_pipe("ember_probe", config={**config, **(cfg or {})})
        return nlp

    return make
