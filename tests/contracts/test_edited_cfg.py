"""Settings in `cfg` that were edited by hand, in a saved pipeline or while it is in use."""

import json
import re

import pytest
import spacy

from spacy_llmner.errors import LLMNERError
from tests.contracts.components import ADAPTERS, TRAINABLE, only, pipe_of
from tests.helpers import TEXTS

LLM = {"name": "x", "fingerprint": "y", "n_layers": 2, "width": 8, "n_heads": 2}
EDITED = [
    ("llm", "evil"),
    ("llm", {"fingerprint": None}),
    ("llm", {**LLM, "fingerprint": 7}),
    ("llm", {**LLM, "width": "8"}),
    ("llm", {**LLM, "n_heads": 0}),
    ("spans_key", 5),
    ("spans_key", None),
    ("overwrite", "yes"),
    ("labels", "PER"),
    ("labels", [1]),
    ("corpus", 3),
    ("corpus", {"texts": -1, "tokens": 2, "entities": 0}),
]


def edit(folder, component, setting, value):
    path = folder / component.name / "cfg"
    cfg = json.loads(path.read_text("utf8"))
    assert setting in cfg
    path.write_text(json.dumps({**cfg, setting: value}), "utf8")


@pytest.mark.parametrize("setting, value", EDITED)
def test_in_a_saved_pipeline(component, trained, tmp_path, setting, value):
    """Loading the pipeline raises an error that names the setting."""
    trained.to_disk(tmp_path)
    edit(tmp_path, component, setting, value)
    with pytest.raises(LLMNERError, match=setting) as raised:
        spacy.load(tmp_path)
    assert component.name in str(raised.value)


@pytest.mark.parametrize("setting, value", [EDITED[0], EDITED[1], EDITED[5], EDITED[7]])
def test_in_use(component, trained, pipe, monkeypatch, setting, value):
    """The error is not blamed on a document, so no error handler drops one."""
    monkeypatch.setitem(pipe.cfg, setting, value)
    blamed = []
    monkeypatch.setattr(pipe, "get_error_handler", lambda: lambda *args: blamed.append(args))
    with pytest.raises(LLMNERError, match=re.escape(setting)):
        list(trained.pipe(TEXTS[:2]))
    assert not blamed


@only(["ember_probe"])
@pytest.mark.parametrize("value", ["x", [1.0], [1.0, 0.0, 0.0], [-1.0, 0.0], [None, 1.0], 3])
def test_calibration(component, trained, pipe, monkeypatch, tmp_path, value):
    trained.to_disk(tmp_path)
    edit(tmp_path, component, "calibration", value)
    with pytest.raises(LLMNERError, match="`calibration` .* must be two numbers"):
        spacy.load(tmp_path)
    monkeypatch.setitem(pipe.cfg, "calibration", value)
    with pytest.raises(LLMNERError, match="`calibration` .* must be two numbers"):
        trained(TEXTS[0])


@only(TRAINABLE)
def test_sizes_that_are_not_those_of_the_weights(component, trained, tmp_path):
    """Nothing of that size is created: it would take terabytes."""
    trained.to_disk(tmp_path)
    cfg = json.loads((tmp_path / component.name / "cfg").read_text("utf8"))
    huge = 10**9
    edit(tmp_path, component, "llm", {**cfg["llm"], "width": huge})
    if "shapes" in cfg:
        edit(tmp_path, component, "shapes", {key: [huge, huge] for key in cfg["shapes"]})
    with pytest.raises(LLMNERError, match="the shape of .* but `cfg` needs .*000000000"):
        spacy.load(tmp_path)


@only(ADAPTERS)
@pytest.mark.parametrize("value", [None, {"x": 3}, {"x": [0, 1]}, {"x": ["1"]}])
def test_shapes_of_an_adapter(component, trained, tmp_path, value):
    trained.to_disk(tmp_path)
    edit(tmp_path, component, "shapes", value)
    with pytest.raises(LLMNERError, match="`shapes`"):
        spacy.load(tmp_path)


@only(TRAINABLE)
def test_weights_without_an_llm(component, trained, tmp_path):
    trained.to_disk(tmp_path)
    edit(tmp_path, component, "llm", None)
    with pytest.raises(LLMNERError, match="`llm` in `cfg` is null"):
        spacy.load(tmp_path)


@pytest.mark.parametrize("content", ["[]", '"x"', "3", "{"])
def test_a_cfg_that_is_no_dict(component, trained, tmp_path, content):
    trained.to_disk(tmp_path)
    (tmp_path / component.name / "cfg").write_text(content, "utf8")
    with pytest.raises(LLMNERError, match=component.name):
        spacy.load(tmp_path)


@pytest.mark.parametrize("data", [b"", b"x", b"\x93\x01\x02\x03", b"\x80", b"\xc1"])
def test_bytes_of_something_else(component, make, data):
    with pytest.raises(
        LLMNERError, match=f"the given bytes.*{component.name}|{component.name}.*the given"
    ):
        pipe_of(make()).from_bytes(data)
