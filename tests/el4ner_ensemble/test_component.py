"""Pools, prompts and provenance, also of saved pipelines."""

import copy
import json
import pickle
import re
import warnings

import pytest
import spacy
import srsly
from spacy.tokens import Span

from spacy_llmner.el4ner_ensemble.voter.prompt_files import parse_prompts, read_prompts
from spacy_llmner.errors import LLMMismatchError, LLMNERError, LLMNotFoundError
from spacy_llmner.llm import registry as pool
from tests.el4ner_ensemble.helpers import (
    MockVoter,
    config_of,
    initialized,
    make_mock_nlp,
    make_nlp,
)
from tests.helpers import (
    TEXTS,
    TRAIN,
    assert_same,
    assert_valid,
    damage,
    make_examples,
    make_sgd,
)

UNSEEN = "Yesterday Mira Stone left Port Ellam ; nobody saw Oskar."
SOME = [*TEXTS[:3], UNSEEN]


def assert_same_answers(one, other, tolerance=1e-4):
    for a, b in zip(one.pipe(SOME), other.pipe(SOME)):
        assert_same(a, b, tolerance)


def test_initialize_takes_labels_and_pool(two, roomy):
    pipe = two.get_pipe("el4ner_ensemble")
    assert pipe.labels == ("LOC", "PER") and len(pipe.pool) == len(TRAIN)
    assert pipe.is_trainable and pipe.label_data == ["LOC", "PER"]
    names = {name for s in pipe.pool.spans for _, _, by in s.proposed for name in by}
    assert names <= {"a", "b"} and names
    assert pipe.cfg["voters"]["a"]["fingerprint"] == pool.make_llm(roomy[0]).load().fingerprint
    doc = two(UNSEEN)
    assert_valid(doc, UNSEEN)
    assert pipe.call_counts.calls > 0 and pipe.call_counts.tokens > 0


def test_saved_pool_is_not_encoded_again(two, tmp_path):
    """Neither LLMs nor the encoder read the pool twice."""
    two.to_disk(tmp_path)
    loaded = spacy.load(tmp_path)
    pipe = loaded.get_pipe("el4ner_ensemble")
    loaded(UNSEEN)
    assert pipe.pool.encoder.texts == 1  # the text itself
    assert pipe.call_counts.pre_extraction == 2
    loaded(TEXTS[0])
    assert pipe.pool.encoder.texts == 1  # its vector is in the pool
    assert pipe.call_counts.pre_extraction == 4


def test_own_prompts_are_saved(roomy, tmp_path):
    """The file may be gone where the pipeline is used."""
    file = tmp_path / "my.txt"
    file.write_text(read_prompts("en_base", "en", False).replace("Names:", "All names:"))
    nlp = initialized(make_nlp({"a": {"folder": roomy[0], "prompts": str(file)}}))
    nlp.to_disk(tmp_path / "pipeline")
    file.unlink()
    assert_same_answers(nlp, spacy.load(tmp_path / "pipeline"))


def test_other_prompts_when_it_is_loaded(roomy, two, tmp_path):
    """If the config was overridden, its prompts are used instead of the saved ones."""
    two.to_disk(tmp_path)
    voters = "components.el4ner_ensemble.llms"
    other = {f"{voters}.a.prompts": "zh_base", f"{voters}.b.chat": False}
    nlp = spacy.load(tmp_path, config=other)
    a, b = nlp.get_pipe("el4ner_ensemble").voters.values()
    nlp(UNSEEN)
    said = [next(iter(voter._prompt_encoders.values())) for voter in (a, b)]
    assert (said[0].prompts.none, said[0].chat) == ("无", False)
    assert not said[1].chat
    assert said[1].prompts == parse_prompts("x", read_prompts("en_base", "en", False))


def test_provenance_can_be_asked_for_later(two, tmp_path):
    """It is set in `cfg`, as in the documentation, since saved settings override the config."""
    two.to_disk(tmp_path)
    nlp = spacy.load(tmp_path)
    doc = nlp(UNSEEN)
    assert {span._.el4ner for span in doc.spans["llmner"]} == {None}
    nlp.get_pipe("el4ner_ensemble").cfg["provenance"] = True
    doc = nlp(UNSEEN)
    assert doc.spans["llmner"]
    for span in doc.spans["llmner"]:
        assert set(span._.el4ner["votes"]) == {"a", "b"}


def test_saved_verifier_is_gone(roomy, tmp_path):
    nlp = initialized(make_nlp({"a": roomy[0], "b": roomy[1]}, verifier="b", pre_extract="gold"))
    nlp.to_disk(tmp_path)
    config = spacy.util.load_config(tmp_path / "config.cfg")
    settings = config["components"]["el4ner_ensemble"]
    del settings["llms"]["b"]
    settings["verifier"] = None
    config.to_disk(tmp_path / "config.cfg")
    match = (
        "'el4ner_ensemble' was saved with the verifier 'b', which is not one of its LLMs .a..*cfg"
    )
    with pytest.raises(LLMNERError, match=match):
        spacy.load(tmp_path)
    nlp.get_pipe("el4ner_ensemble").cfg["verifier"] = "a"
    nlp.to_disk(tmp_path)
    config.to_disk(tmp_path / "config.cfg")
    assert list(spacy.load(tmp_path).get_pipe("el4ner_ensemble").voters) == ["a"]


def test_unpickled_voters_take_turns(roomy, monkeypatch):
    """After unpickling, no voter has its tokenizer. They load their LLMs one after another."""
    nlp = initialized(make_nlp({"a": roomy[0], "b": roomy[1]}, resident=1, pre_extract="gold"))
    expected = nlp(UNSEEN)
    again = pickle.loads(pickle.dumps(nlp))
    pool.clear()
    load, beside = pool.load_llm, []
    monkeypatch.setattr(
        pool, "load_llm", lambda spec: beside.append(len(pool.loaded())) or load(spec)
    )
    assert_same(expected, again(UNSEEN))
    assert len(beside) > 2 and not any(beside)


def test_default_voters():
    """Without a setting both LLMs of the catalogue vote; nothing is loaded or read."""
    nlp = spacy.blank("en")
    pipe = nlp.add_pipe("el4ner_ensemble")
    specs = {name: voter.llm.spec.name for name, voter in pipe.voters.items()}
    assert specs == {"gemma": "gemma-3-270m", "smollm2": "smollm2-135m-instruct"}
    match = "'el4ner_ensemble' has no labels. Set labels = .*set_labels"
    with pytest.raises(LLMNERError, match=match):
        nlp("Some text")
    with pytest.raises(LLMNotFoundError, match="`components.el4ner_ensemble.llms.a.llm.name`"):
        nlp = spacy.blank("en")
        empty = {"a": {"@misc": "spacy_llmner.Voter.v1"}}
        nlp.add_pipe("el4ner_ensemble", config={"llms": empty, "labels": ["PER"]})
        nlp("Some text")


def test_order_of_voters_is_that_of_their_names(roomy):
    """A config file is sorted when it is saved."""
    one = initialized(make_nlp({"b": roomy[1], "a": roomy[0]}))
    assert list(one.get_pipe("el4ner_ensemble").voters) == ["a", "b"]
    assert_same_answers(
        one, spacy.util.load_model_from_config(one.config).from_bytes(one.to_bytes())
    )


def test_update_does_nothing(two):
    before = two.to_bytes()
    losses = two.update(make_examples(two), sgd=make_sgd())
    assert losses == {"el4ner_ensemble": 0.0}
    two.get_pipe("el4ner_ensemble").finish_update(make_sgd())
    assert two.to_bytes() == before


def test_spans_of_gold(roomy):
    """The pool's own entities are used, so no LLM has to run."""
    nlp = initialized(make_nlp({"a": roomy[0]}, pre_extract="gold"))
    pipe = nlp.get_pipe("el4ner_ensemble")
    assert [[(a, b) for a, b, _ in s.proposed] for s in pipe.pool.spans] == [
        [(a, b) for a, b, _ in ents] for _, ents in TRAIN
    ]
    assert_valid(nlp(UNSEEN), UNSEEN)


@pytest.mark.parametrize("retrieval", ["sentence", "random", "none"])
def test_other_retrieval(roomy, retrieval):
    nlp = initialized(make_nlp({"a": roomy[0]}, retrieval=retrieval))
    pipe = nlp.get_pipe("el4ner_ensemble")
    pipe.call_counts.pre_extraction = 0
    assert_valid(nlp(UNSEEN), UNSEEN)
    assert pipe.call_counts.pre_extraction == 0 and len(pipe.pool) == (retrieval != "none") * len(
        TRAIN
    )


@pytest.mark.parametrize("lang,text", [("en", UNSEEN), ("zh", "王小明住在上海。")])
def test_zero_shot(roomy, lang, text):
    words = {"PER": "人名", "LOC": "地名"} if lang == "zh" else {}
    voters = {"a": roomy[0], "b": roomy[1]}
    nlp = make_nlp(voters, lang=lang, labels=["PER", "LOC"], label_words=words)
    with pytest.warns(UserWarning, match="W010|no labelled texts"):
        doc = nlp(text)
    assert_valid(doc, text)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        nlp(text)  # there is only one warning


def test_empty_pool(roomy):
    nlp = make_nlp({"a": roomy[0]}, labels=["PER"])
    nlp.initialize()  # spaCy makes up an example without annotation
    with pytest.warns(UserWarning, match="no labelled texts"):
        nlp(UNSEEN)
    bare = make_nlp({"a": roomy[0]})
    with pytest.raises(LLMNERError, match="None of the training examples for"):
        bare.initialize()


def test_pool_with_other_labels():
    voters = {"a": MockVoter({"Mira Stone": {"PER": 1.0}})}
    with pytest.warns(UserWarning, match=r"1 of 6 labelled texts .*not requested \(PER\)"):
        nlp, pipe = make_mock_nlp(voters, labels=["LOC"])
    assert pipe.labels == ("LOC",) and len(pipe.pool) == 5
    shown = [d for _, _, demos in voters["a"].asked for of_task in demos for d in of_task]
    pipe(nlp.make_doc(UNSEEN))
    shown = [d for _, _, demos in voters["a"].asked for of_task in demos for d in of_task]
    assert shown and {label for d in shown for _, _, label in d.entities} <= {"LOC"}


def test_provenance(tmp_path):
    voters = {
        "a": MockVoter({"Mira Stone": {"PER": 0.9}}),
        "b": MockVoter({"Oskar": {"PER": 0.6}}, fails={"classification": {UNSEEN}}),
    }
    nlp, pipe = make_mock_nlp(voters, provenance=True, verifier="a")
    doc = pipe(nlp.make_doc(UNSEEN))
    (ent,) = doc.ents
    assert ent.text == "Mira Stone" and ent._.score == pytest.approx(0.81)
    assert ent._.el4ner == {
        "proposed": ["a"],
        "votes": {"a": ["PER", 0.9]},
        "voted": 0.9,
        "verified": 0.9,
        "failed": {"b": "classification: MemoryError: no room"},
    }
    again = spacy.tokens.Doc(nlp.vocab).from_bytes(doc.to_bytes())
    assert again.ents[0]._.el4ner == ent._.el4ner
    assert again._.el4ner_rejected == doc._.el4ner_rejected
    quiet, pipe = make_mock_nlp({"a": MockVoter({"Mira Stone": {"PER": 0.9}})})
    doc = pipe(quiet.make_doc(UNSEEN))
    assert doc.ents and {key[1] for key in doc.user_data} == {"llmner_found"}
    assert Span.has_extension("el4ner")


def test_what_was_rejected_can_be_seen():
    """Spans can be rejected by the vote or by the verifier."""
    knows = {"Mira Stone": {"PER": 0.9}, "Oskar": {"": 0.8, "PER": 0.2}}
    voters = {
        "a": MockVoter(knows),
        "b": MockVoter({**knows, "Oskar": {"": 0.6}}, true={("Mira Stone", "PER"): 0.1}),
    }
    nlp, pipe = make_mock_nlp(voters, provenance=True, verifier="b")
    doc = pipe(nlp.make_doc("Mira Stone met Oskar."))
    assert not doc.ents
    said, outvoted = doc._.el4ner_rejected
    assert (said["start"], said["end"], said["label"]) == (0, 10, "PER")
    assert said["verified"] == 0.1 and said["proposed"] == ["a", "b"]
    assert (outvoted["start"], outvoted["end"], outvoted["label"]) == (15, 20, "")
    assert outvoted["votes"] == {"a": ["", 0.8], "b": ["", 0.6]} and outvoted["verified"] is None
    pipe.cfg.update(verify_threshold=0.0)
    assert [ent.text for ent in pipe(doc).ents] == ["Mira Stone"]
    assert [of["label"] for of in doc._.el4ner_rejected] == [""]
    pipe.cfg.update(provenance=False)
    assert pipe(doc)._.el4ner_rejected is None


def test_calls_of_a_document():
    """One for each voter in each of three stages, and one for each claim that is verified."""
    voters = {
        name: MockVoter({"Mira Stone": {"PER": 0.9}, "Oskar": {"PER": 0.9}}) for name in "abc"
    }
    nlp, pipe = make_mock_nlp(voters)
    before = copy.copy(pipe.call_counts)
    pipe(nlp.make_doc(UNSEEN))
    assert pipe.call_counts.calls - before.calls == 3 + 3 + 3 + 2


def test_nested_and_flat():
    voters = {"a": MockVoter({"Bank of Varnholm": {"LOC": 0.9}, "Varnholm": {"LOC": 0.8}})}
    nlp, pipe = make_mock_nlp(voters)
    doc = pipe(nlp.make_doc("The Bank of Varnholm is old."))
    assert [s.text for s in doc.spans["llmner"]] == ["Bank of Varnholm", "Varnholm"]
    assert [e.text for e in doc.ents] == ["Bank of Varnholm"]


def test_broken_folder(two, tmp_path):
    two.to_disk(tmp_path)
    (tmp_path / "el4ner_ensemble" / "cfg").unlink()
    with pytest.raises(LLMNERError, match="no cfg"):
        spacy.load(tmp_path)
    two.to_disk(tmp_path)
    (tmp_path / "el4ner_ensemble" / "pool" / "spans.json").unlink()
    with pytest.raises(LLMNERError, match="Can't load the pool .*spans.json.*nlp.to_disk"):
        spacy.load(tmp_path)


DAMAGED = [
    '{"labels": ["P',
    "",
    "[]",
    "{}",
    "null",
    {"labels": 5},
    {"labels": "PER"},
    {"labels": ["PER", 5]},
    {"labels": ["\ud800"]},
    {"read_labels": None},
    {"verifier": ["a"]},
    {"label_words": {"PER": 5}},
    {"pos_weights": {"noun": "2"}},
    {"voters": None},
    {"voters": {"a": 5}},
    {"factors": []},
    {"factors": {"a": {"PER": "x"}}},
    {"weights": {"a": None}},
]


@pytest.mark.parametrize("damaged", DAMAGED)
def test_damaged_settings(damaged, tmp_path):
    """If saved settings can't be loaded, none of them are used."""
    nlp, pipe = make_mock_nlp({"a": MockVoter(), "b": MockVoter()})
    whole = pipe.to_bytes()
    if isinstance(damaged, dict):
        damaged = json.dumps({**pipe.cfg, **damaged})
    pipe.to_disk(tmp_path)
    (tmp_path / "cfg").write_text(damaged)
    match = "Can't load 'el4ner_ensemble' from {} .*Save the pipeline again with nlp.to_disk"
    with pytest.raises(LLMNERError, match=match.format(re.escape(str(tmp_path)))):
        pipe.from_disk(tmp_path)
    state = srsly.msgpack_loads(whole)
    with pytest.raises(LLMNERError, match=match.format("the given bytes")):
        pipe.from_bytes(srsly.msgpack_dumps({**state, "cfg": damaged}))
    assert pipe.to_bytes() == whole and len(pipe.pool) == len(TRAIN)


def test_a_damaged_pool_leaves_the_old_one(tmp_path):
    nlp, pipe = make_mock_nlp({"a": MockVoter()})
    pipe.to_disk(tmp_path)
    damage(tmp_path / "pool" / "spans.json", 10)
    whole = pipe.to_bytes()
    with pytest.raises(LLMNERError, match="Can't load the pool of labelled texts"):
        pipe.from_disk(tmp_path)
    assert pipe.to_bytes() == whole


def test_another_encoder_is_refused(two, tmp_path):
    two.to_disk(tmp_path)
    other = {"components.el4ner_ensemble.encoder.fingerprint": "fake-2"}
    nlp = spacy.load(tmp_path, config=other)
    with pytest.raises(LLMMismatchError, match="fake-2"):
        nlp(TEXTS[0])


def test_chat_without_a_template(roomy):
    nlp = make_nlp({"a": {"folder": roomy[0], "chat": True}})
    with pytest.raises(LLMNERError, match="'a' has chat = true.*no chat template"):
        initialized(nlp)


def test_prompts_that_leave_no_room(tiny_llm):
    nlp = make_nlp({"a": tiny_llm}, label_words={"LOC": "somewhere in the world " * 40})
    with pytest.raises(LLMNERError, match="'a' take .* leave no room.*label_words"):
        initialized(nlp)


def test_one_llm_only(roomy):
    nlp = initialized(make_nlp({"a": roomy[0]}))
    for doc in nlp.pipe(SOME):
        assert_valid(doc, doc.text)


def test_config_block_of_a_mock():
    """Any object with the methods is a voter. A registered function can create it."""
    spacy.registry.misc("el4ner_tests.Mock.v1", func=lambda: MockVoter({"Oskar": {"PER": 1.0}}))
    nlp = spacy.blank("en")
    config = config_of({}, labels=["PER"], k=0)
    config["llms"] = {"mock": {"@misc": "el4ner_tests.Mock.v1"}}
    nlp.add_pipe("el4ner_ensemble", config=config)
    assert [e.text for e in nlp("Oskar sings").ents] == ["Oskar"]
