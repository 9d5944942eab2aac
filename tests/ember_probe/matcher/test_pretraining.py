"""Training a matcher: corpora with their own labels, names of labels, WordNet, held-out labels."""

import random

import pytest
import spacy
import srsly
from spacy.tokens import DocBin

from spacy_llmner.ember_probe.features.words import WordReader
from spacy_llmner.ember_probe.matcher.corpora import (
    Labels,
    draw_offer,
    read_corpus_file,
    read_labels,
)
from spacy_llmner.ember_probe.matcher.held_out import labels_to_hold_out
from spacy_llmner.ember_probe.matcher.label_states import phrases_of
from spacy_llmner.ember_probe.matcher.wordnet import WordNet
from spacy_llmner.errors import LLMNERError
from tests.ember_probe.matcher.conftest import make_docs

# A made-up WordNet. The columns of a synset: identifier, file, part of speech, number of names, names (each
# with a number), number of pointers, pointers (symbol, target, part of speech, number).
DATA = """\
  1 The licence of the database
00000001 03 n 01 entity 0 000 | everything
00000002 03 n 01 object 0 001 @ 00000001 n 0000 | a thing
00000003 03 n 01 artefact 0 001 @ 00000002 n 0000 | made by people
00000004 03 n 01 instrument 0 001 @ 00000003 n 0000 | a tool
00000005 03 n 02 musical_instrument 0 noisemaker 0 001 @ 00000004 n 0000 | makes music
00000006 03 n 01 zither 0 001 @ 00000005 n 0000 | has strings
00000007 03 n 01 settlement 0 001 @ 00000003 n 0000 | people live there
00000008 03 n 01 Varnholm 0 001 @i 00000007 n 0000 | a town
00000009 03 n 01 saw 0 001 @ 00000004 n 0000 | cuts
00000010 03 n 02 glass_harp 0 bottle_organ 0 001 @ 00000005 n 0000 | made of glasses
"""
INDEX = """\
  1 The licence of the database
zither n 1 1 @ 1 0 00000006
varnholm n 1 1 @i 1 0 00000008
saw n 1 1 @ 1 0 00000009
glass_harp n 1 1 @ 1 0 00000010
instrument n 1 1 @ 1 0 00000004
"""


@pytest.fixture(scope="module")
def wordnet(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dict")
    (folder / "data.noun").write_text(DATA)
    (folder / "index.noun").write_text(INDEX)
    (folder / "index.verb").write_text("saw v 1 1 @ 1 0 00000001\n")
    (folder / "index.adj").write_text("")
    (folder / "index.adv").write_text("")
    return folder


def test_wordnet_finds_words_with_one_meaning(wordnet):
    nouns = WordNet(wordnet)
    words = ["Zithers", "and", "a", "glass", "harp", "were", "heard", "in", "Varnholm"]
    found = {" ".join(words[m.start : m.end]): m.types for m in nouns.match(words)}
    # The types next to the root are left out, nearest types come first.
    assert found == {
        "Zithers": ["00000005", "00000004"],
        "glass harp": ["00000005", "00000004"],
        "Varnholm": ["00000007"],
    }
    assert nouns.names("00000005") == ["musical instrument", "noisemaker"]


@pytest.mark.parametrize(
    "text, why",
    [
        ("they saw it", "also a verb"),
        ("in varnholm", "a name in lower case"),
        ("the Zither", "a common noun in upper case, which is likely a name"),
        ("an instrument", "has only types next to the root"),
    ],
)
def test_words_that_could_mean_something_else(wordnet, text, why):
    assert WordNet(wordnet).match(text.split()) == [], why


def test_wordnet_that_is_not_there(tmp_path):
    with pytest.raises(LLMNERError, match="LLMNER150.*data.noun"):
        WordNet(tmp_path)


@pytest.mark.parametrize(
    "label, phrase",
    [
        ("PER", "person"),
        ("WORK_OF_ART", "work of art"),
        ("ProgrammingLanguage", "programming language"),
        ("chemical compound", "chemical compound"),
        ("DNA", "DNA"),
        ("EVENT", "event"),
        ("art/film", "art film"),
    ],
)
def test_labels_become_words(label, phrase):
    assert phrases_of("x", label, {}, {}) == [phrase]


def test_given_words_and_descriptions():
    words, descriptions = {"A": ["prize", "award"]}, {"A": "for achievements", "B": "other"}
    assert phrases_of("x", "A", words, {}) == ["prize", "award"]
    assert phrases_of("x", "A", words, descriptions) == [
        "prize: for achievements",
        "award: for achievements",
    ]
    with pytest.raises(LLMNERError, match="label_descriptions"):
        phrases_of("x", "A", {}, {"A": " "})


def test_annotators_looked_for_the_labels_of_the_file_or_of_the_doc(tmp_path):
    docs = make_docs(["PERSON", "TOWN"], 20)
    for doc in docs[:5]:
        doc._.llmner_labels = ["TOWN", "RIVER"]
    DocBin(docs=docs, store_user_data=True).to_disk(tmp_path / "a.spacy")
    corpus = read_corpus_file(tmp_path / "a.spacy", spacy.blank("en").vocab)
    assert corpus.asked[0] == {"TOWN", "RIVER"} and corpus.asked[-1] == {"PERSON", "TOWN"}


def test_offers():
    labels = Labels({"actor": ["actor", "actress"], "person": ["person"]}, {"actor": "person"})
    rng = random.Random(0)
    offers = [draw_offer(["actor", "town"], labels, rng) for _ in range(400)]
    for offer in offers:
        assert offer.names and set(offer.index.values()) <= set(range(len(offer.names)))
        if "actor" in offer.index:
            name = offer.names[offer.index["actor"]]
            assert name in ("actor", "actress", "person", "entity", "name")
        if "town" in offer.index:
            assert offer.names[offer.index["town"]] in ("town", "entity", "name")
    # The own label wins over its parent, and the parent takes its place.
    assert any(o.names[o.index["actor"]] == "person" for o in offers if "actor" in o.index)
    both = [o for o in offers if "person" in o.names and {"actor", "actress"} & set(o.names)]
    assert both and all(o.names[o.index["actor"]] != "person" for o in both)


def test_labels_are_held_out(corpora):
    vocab = spacy.blank("en").vocab
    read = [read_corpus_file(path, vocab) for path in sorted(corpora.glob("*.spacy"))]
    for corpus in read:  # more labels
        corpus.mentions = [
            [(s, e, f"{label} {i % 6}") for s, e, label in mentions]
            for i, mentions in enumerate(corpus.mentions)
        ]
    held_out = labels_to_hold_out(read)
    everything = {m[2] for corpus in read for mentions in corpus.mentions for m in mentions}
    assert held_out and held_out < everything


@pytest.mark.parametrize("content", ["[]", "{", '{"A": {"names": "person"}}', '{"A": 1}'])
def test_names_in_another_format(tmp_path, content):
    (tmp_path / "names.json").write_text(content)
    with pytest.raises(LLMNERError, match="LLMNER151"):
        read_labels(tmp_path / "names.json")


def test_corpora_that_cannot_be_used(tmp_path):
    vocab = spacy.blank("en").vocab
    (tmp_path / "a.spacy").write_bytes(b"no")
    with pytest.raises(LLMNERError, match="LLMNER151"):
        read_corpus_file(tmp_path / "a.spacy", vocab)
    DocBin(docs=make_docs([], 3)).to_disk(tmp_path / "a.spacy")
    with pytest.raises(LLMNERError, match="no entities"):
        read_corpus_file(tmp_path / "a.spacy", vocab)


def test_command(run, tiny_llm, corpora, label_names, wordnet, tmp_path, monkeypatch):
    monkeypatch.setenv("SPACY_LLMNER_HOME", str(tmp_path / "home"))
    out = tmp_path / "out"
    options = ("--llm", tiny_llm, "--names", label_names, "--wordnet", wordnet, "--epochs", 1)
    options += ("--width", 32, "--device", "cpu")
    printed = run("llmner", "pretrain-matcher", corpora, out, *options)
    assert "spacy_llmner.EmberMatch.v1" in printed and str(out) in printed
    card = (out / "README.md").read_text()
    assert "| food | 100 |" in card and "WordNet: yes" in card
    assert set(srsly.read_json(out / "scores.json")) >= {"bias", "ents_f", "labels"}
    # The LLM does not read the corpora again.
    monkeypatch.setattr(WordReader, "read", lambda *args: pytest.fail("not cached"))
    run("llmner", "pretrain-matcher", corpora, out, *options)


def test_training_is_repeatable(tiny_llm, corpora, tmp_path, monkeypatch):
    from spacy_llmner.cli.pretrain_matcher import make_matcher

    monkeypatch.setenv("SPACY_LLMNER_HOME", str(tmp_path / "home"))
    for name in ("a", "b"):
        make_matcher(corpora, tmp_path / name, tiny_llm, epochs=1, width=32, device="cpu")
    one, two = ((tmp_path / n / "matcher.safetensors").read_bytes() for n in ("a", "b"))
    assert one == two
