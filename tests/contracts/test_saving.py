"""Saved, copied and loaded components: equal answers, small files, and errors that say what is wrong."""

import copy
import json
import pickle
import shutil
import subprocess
import sys

import pytest
import spacy
import srsly
from safetensors.torch import load_file

from spacy_llmner.errors import LLMMismatchError, LLMNERError, LLMNotFoundError
from spacy_llmner.llm import registry as pool
from tests.contracts.components import (
    ADAPTERS,
    BY_NAME,
    TRAINABLE,
    assert_same_answers,
    found_in,
    initialized,
    llms_of,
    only,
    pipe_of,
)
from tests.helpers import (
    TEXTS,
    TRAIN,
    assert_same,
    damage,
    entities,
    make_examples,
    make_sgd,
    same_state,
    share_found,
    state_of,
)

# Kinds of pipelines. They find all entities of their training texts, or more than this share.
LEARNT = {
    "ember_probe/trained": 1.0,
    "ember_probe/look_right": 1.0,
    "ember_probe/read_twice": 1.0,
    # The random LLM's attention hardly tells neighbours apart.
    "ember_probe/current": 0.75,
    "ember_probe/next": 1.0,
    "ember_probe/both": 0.75,
    "ember_probe/adjacency": 0.75,
    "padellm_ner/trained": 1.0,
    "padellm_ner/published": 1.0,
    "ra_it_ner/trained": 0.8,
    "ra_it_ner/vanilla": 0.8,
    "el4ner_ensemble/trained": -1.0,
}


@pytest.mark.parametrize("kind", LEARNT)
def test_overfitting_IO(kind, pipelines, tmp_path):
    name = kind.split("/")[0]
    nlp, component = pipelines(*kind.split("/")), BY_NAME[name]
    share = share_found(nlp, component.data)
    assert share == 1.0 or share > LEARNT[kind]
    expected = found_in(nlp, component.texts)
    nlp.to_disk(tmp_path)
    loaded = spacy.load(tmp_path)
    assert_same_answers(found_in(loaded, component.texts), expected, 1e-5)
    assert loaded.get_pipe(name).labels == ("LOC", "PER")
    fresh = spacy.util.load_model_from_config(nlp.config)
    fresh.from_bytes(nlp.to_bytes())
    assert_same_answers(found_in(fresh, component.texts), expected, 1e-5)
    if name in TRAINABLE:
        # Bytes are those of the same weights, however often they were saved.
        assert same_state(state_of(fresh), state_of(loaded))
        assert same_state(state_of(fresh), state_of(nlp))


def test_pickle(component, trained):
    """After a pipeline was used, its LLM is in memory, but not in the pickle."""
    expected = found_in(trained, component.texts)
    data = pickle.dumps(trained)
    assert_same_answers(found_in(pickle.loads(data), component.texts), expected, 1e-5)
    pool.clear()
    assert abs(len(pickle.dumps(trained)) - len(data)) < 1000


def test_deepcopy(component, trained, pipe):
    doc = trained(TEXTS[0])
    copied = copy.deepcopy(pipe)
    assert copied.labels == ("LOC", "PER")
    if component.adapter:
        assert not copied._adapted.by_llm  # a view of its own
    if component.name == "ra_it_ner":
        assert len(copied.index) == len(TRAIN)
    assert_same(copied(trained.make_doc(TEXTS[0])), doc)


@only(TRAINABLE)
def test_copies_of_a_component_in_training(component, make, tmp_path):
    """An optimizer and a feature cache in use don't prevent copies."""
    cfg = {"feature_cache": str(tmp_path)} if component.name == "ember_probe" else {}
    nlp = initialized(make(cfg=cfg))
    for _ in range(2):
        nlp.update(make_examples(nlp), sgd=make_sgd())
    again = pickle.loads(pickle.dumps(nlp))
    assert same_state(state_of(again), state_of(nlp))
    assert entities(again(TEXTS[0])) == entities(nlp(TEXTS[0]))
    copied = copy.deepcopy(pipe_of(nlp))
    assert copied.labels == ("LOC", "PER")
    assert again.update(make_examples(again), sgd=make_sgd())[component.name] > 0


READ = """
import pickle, sys
from spacy_llmner.el4ner_ensemble.voter import session

session.MAX_LIST_TOKENS = 16
for path, text in zip(sys.argv[1::2], sys.argv[2::2]):
    with open(path, "rb") as file:
        nlp = pickle.load(file)
    doc = nlp(text)
    found = [(ent.text, ent._.score > 0) for ent in doc.ents]
    print(found, len(doc._.llmner_examples) if "ra_it_ner" in nlp.pipe_names else 0)
"""


def test_unpickled_in_another_process(pipelines, tmp_path):
    """The extension attributes exist in the other process as well."""
    args, expected = [], []
    for name, component in BY_NAME.items():
        nlp = pipelines(name)
        path = tmp_path / name
        path.write_bytes(pickle.dumps(nlp))
        args += [str(path), component.text]
        found = [(ent.text, True) for ent in nlp(component.text).ents]
        expected.append(f"{found} {int(name == 'ra_it_ner')}")
    out = subprocess.run([sys.executable, "-c", READ, *args], capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    assert out.stdout.splitlines() == expected


def test_source(component, trained):
    """A sourced component shares the LLM. It doesn't need the pipeline that it was sourced from."""
    expected = found_in(trained, component.texts)
    n_loaded = len(pool.loaded())
    nlp = spacy.blank("en")
    nlp.add_pipe(component.name, source=trained)
    assert_same_answers(found_in(nlp, component.texts), expected, 1e-5)
    assert len(pool.loaded()) == n_loaded
    assert llms_of(pipe_of(nlp)) == llms_of(pipe_of(trained))


def test_from_bytes_in_use(component, pipe, trained):
    """Loaded weights take effect immediately, even if the component has used other weights before."""
    other = initialized(spacy.util.load_model_from_config(trained.config), component.data[:2])
    other(TEXTS[0])
    pipe_of(other).from_bytes(pipe.to_bytes())
    assert_same_answers(found_in(other, component.texts), found_in(trained, component.texts), 1e-5)


FILES = {
    "ember_probe": ["cfg", "model.safetensors"],
    "padellm_ner": ["cfg", "model.safetensors"],
    "ra_it_ner": ["cfg", "model.safetensors", "pool"],
    "el4ner_ensemble": ["cfg", "pool"],
}


@pytest.mark.parametrize("kind", LEARNT)
def test_only_what_was_learnt_is_saved(kind, pipelines, tmp_path):
    name = kind.split("/")[0]
    nlp = pipelines(*kind.split("/"))
    pipe = nlp.get_pipe(name)
    nlp.to_disk(tmp_path)
    folder = tmp_path / name
    assert sorted(file.name for file in folder.iterdir()) == FILES[name]
    cfg = json.loads((folder / "cfg").read_text())
    assert len(json.dumps(cfg)) < 20_000
    if name == "el4ner_ensemble":
        assert set(cfg["voters"]) == {"a", "b"}
        assert "# instruction" in cfg["voters"]["a"]["prompts"]
        prints = [cfg["voters"][key]["fingerprint"] for key in "ab"]
        n_parameters, more = 0, 50_000
    else:
        saved = load_file(folder / "model.safetensors")
        assert saved.keys() == pipe.module.state_dict().keys()
        assert name not in ADAPTERS or all("lora_" in key for key in saved)
        prints = [cfg["llm"]["fingerprint"]]
        n_parameters = sum(p.numel() for p in pipe.module.state_dict().values())
        more = 10_000 if name == "ember_probe" else 20_000
    if name == "ember_probe":
        assert len(json.dumps(cfg)) < 1000
    assert prints == [llm.fingerprint for llm in llms_of(pipe)]
    assert len(pipe.to_bytes(exclude=["vocab"])) < 4 * n_parameters + more
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    assert size < 4 * n_parameters + more + 10_000


def test_loading_reads_no_llm(component, saved):
    pool.clear()
    nlp = spacy.load(saved)
    nlp.to_bytes()
    pickle.dumps(nlp)
    assert pool.loaded() == []
    nlp(TEXTS[0])
    assert len(pool.loaded()) == component.n_llms


def test_the_llm_may_be_missing(component, saved):
    """A pipeline can be loaded without its LLM. The LLM is only needed to use it."""
    for key in "ab"[: component.n_llms]:
        setting = component.llm_setting.replace("llms.a", f"llms.{key}")
        nlp = spacy.load(saved, config={setting: "/no/such/folder"})
        with pytest.raises(LLMNotFoundError, match="Can't find the LLM '/no/such/folder'"):
            nlp(TEXTS[0])


def test_another_llm_is_refused(component, saved, llm, other_llm):
    other = other_llm if component.trainable else llm[2]
    nlp = spacy.load(saved, config={component.llm_setting: other})
    match = f"'{component.name}' was trained on the LLM.*paths.llm"
    if component.name == "el4ner_ensemble":
        match = rf"The voter 'a' of '{component.name}' .*{component.llm_setting}': PATH"
    with pytest.raises(LLMMismatchError, match=match):
        nlp(TEXTS[0])
    # The error isn't about a document, so an error handler doesn't hide it.
    nlp.set_error_handler(lambda *args: None)
    with pytest.raises(LLMMismatchError):
        list(nlp.pipe(TEXTS))
    if component.trainable:
        with pytest.raises(LLMMismatchError):
            nlp.update(make_examples(nlp), sgd=make_sgd())


@only(TRAINABLE)
def test_no_document_is_blamed_for_a_broken_llm(component, saved, llm, tmp_path):
    shutil.copytree(llm, tmp_path / "llm")
    (tmp_path / "llm/config.json").write_text("{}")
    nlp = spacy.load(saved, config={component.llm_setting: str(tmp_path / "llm")})
    nlp.set_error_handler(lambda *args: None)
    with pytest.raises(LLMNERError, match="is incomplete or broken"):
        list(nlp.pipe(TEXTS))


@pytest.mark.parametrize("by_variable", [True, False])
def test_repoint_to_a_moved_llm(component, trained, saved, llm, tmp_path, by_variable):
    setting = component.llm_setting
    moved = tmp_path / "moved"
    moved.symlink_to(llm if isinstance(llm, str) else llm[0])
    if by_variable:
        config = spacy.util.load_config(saved / "config.cfg")
        config["paths"]["llm"] = "/gone"
        block = config["components"][component.name]
        for part in component.llm.split(".")[:-1]:
            block = block[part]
        block["name"] = "${paths.llm}"
        config.to_disk(saved / "config.cfg")
        setting = "paths.llm"
    nlp = spacy.load(saved, config={setting: str(moved)})
    assert_same_answers(found_in(nlp, component.texts), found_in(trained, component.texts), 1e-5)


WORDS = {"PER": "person"}
TRAINED_WITH = [
    ("ember_probe", "layers", [1], r"layers = None, but .* \[1\]"),
    ("ember_probe", "prefix", "In short:", "prefix = '', but .* 'In short:'"),
    ("ember_probe", "read_twice", True, "read_twice = False"),
    ("ember_probe", "width", 8, "width = 16"),
    ("ember_probe", "look_right", True, "look_right = False"),
    ("padellm_ner", "alpha", 64, "alpha = 16, but .* 64"),
    ("padellm_ner", "rank", 4, "rank = 8, but .* 4"),
    ("padellm_ner", "first_layer", 2, "first_layer = 0, but .* 2"),
    ("padellm_ner", "template", "published_en", r"template.prompt = ' \{text\}.* 'text:"),
    ("padellm_ner", "label_words.PER", "name", "label_words = .*'PER': 'person'.*'PER': 'name'"),
    ("ra_it_ner", "alpha", 64, "alpha = 16, but .* 64"),
    ("ra_it_ner", "conversation", "published_zh", "conversation.examples = 'Here are.* '以下"),
    ("ra_it_ner", "system", "Be good.", "system = None, but .* 'Be good.'"),
    ("ra_it_ner", "occurrences", "all", "occurrences = 'ordered', but .* 'all'"),
]


@pytest.fixture(scope="module")
def initialized_folders(llm_of, tmp_path_factory):
    """Folders of pipelines that were initialized, by component."""
    folders = {name: tmp_path_factory.mktemp("initialized") / name for name in TRAINABLE}
    settings = {"padellm_ner": {"label_words": WORDS}, "ra_it_ner": {"k": 0}}
    for name, folder in folders.items():
        nlp = BY_NAME[name].make(llm_of(name), **settings.get(name, {}))
        initialized(nlp).to_disk(folder)
    return folders


@pytest.mark.parametrize(("name", "setting", "value", "match"), TRAINED_WITH)
def test_what_was_trained_fits_one_model_only(initialized_folders, name, setting, value, match):
    with pytest.raises(LLMNERError, match=f"'{name}' was trained with {match}.*overrides"):
        spacy.load(initialized_folders[name], config={f"components.{name}.model.{setting}": value})


def test_without_training_any_model_fits(component, make, tmp_path):
    nlp = make()
    nlp.to_disk(tmp_path)
    loaded = spacy.load(tmp_path)
    assert loaded.get_pipe(component.name).labels == ()
    # The model card is written with the files.
    assert loaded.to_bytes(exclude=["meta"]) == nlp.to_bytes(exclude=["meta"])
    again = tmp_path / "again"
    loaded.to_disk(again)
    assert (again / "meta.json").read_text() == (tmp_path / "meta.json").read_text()
    if component.adapter:
        spacy.load(tmp_path, config={f"components.{component.name}.model.alpha": 64})


@pytest.mark.parametrize("file", ["cfg", "model.safetensors"])
@pytest.mark.parametrize("left", [None, 0, 9, -9])
def test_broken_folder(component, saved, file, left):
    if file not in FILES[component.name]:
        pytest.skip("it has no weights")
    damage(saved / component.name / file, left)
    with pytest.raises(LLMNERError, match=f"'{component.name}'.*again with nlp.to_disk") as raised:
        spacy.load(saved)
    assert str(saved / component.name) in str(raised.value)


# TODO: ra_it_ner raises errors of msgpack, or a KeyError.
@only(["ember_probe", "padellm_ner", "el4ner_ensemble"])
@pytest.mark.parametrize(
    "data", [b"abc", b"", srsly.msgpack_dumps({"cfg": "{}"}), srsly.msgpack_dumps({"other": 1})]
)
def test_bytes_of_something_else(component, fresh, data):
    """Bytes that can't be loaded change nothing."""
    pipe = pipe_of(fresh)
    whole, found = pipe.to_bytes(), entities(fresh(TEXTS[0]))
    with pytest.raises(
        LLMNERError, match=f"iven bytes.*'{component.name}'|'{component.name}'.*iven bytes"
    ):
        pipe.from_bytes(data)
    assert pipe.to_bytes() == whole
    assert entities(fresh(TEXTS[0])) == found
