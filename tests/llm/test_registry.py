import json
import pickle
import shutil
import threading
from pathlib import Path

import psutil
import pytest
import spacy
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from spacy_llmner.errors import LLMNERError, LLMNotFoundError
from spacy_llmner.llm import registry as pool
from spacy_llmner.llm.hidden_states import FeatureSpec, StepReader, read_texts
from spacy_llmner.llm.registry import LLM, LLMSpec, make_llm
from spacy_llmner.llm.views import generating_view
from spacy_llmner.models import catalogue

PROBED = FeatureSpec((0, 2, 4), window=6)


@pytest.fixture(autouse=True)
def empty_pool():
    pool.clear()
    yield
    pool.clear()


@pytest.fixture
def broken(tiny_llm, tmp_path):
    """A copy of a model's folder, to be broken."""
    return Path(shutil.copytree(tiny_llm, tmp_path / "broken"))


def cpu(path, **settings):
    return make_llm(str(path), device="cpu", **settings)


def test_registered(tiny_llm):
    config = {"llm": {"@misc": "spacy_llmner.LLM.v1", "name": tiny_llm, "device": "cpu"}}
    llm = spacy.registry.resolve(config)["llm"]
    assert isinstance(llm, LLM)
    assert llm.spec == LLMSpec(tiny_llm, device="cpu")
    assert not pool.loaded()
    assert tiny_llm in repr(llm)


def test_handles_share_the_weights(tiny_llm):
    first, second = cpu(tiny_llm), cpu(tiny_llm, dtype="float32")
    assert not pool.loaded()
    assert first.load() is second.load() is first.load()
    assert pool.loaded() == [first.load()]
    other = cpu(tiny_llm, dtype="bfloat16").load()
    assert other is not first.load()
    assert {p.dtype for p in other.model.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in first.load().model.parameters()} == {torch.float32}
    assert len(pool.loaded()) == 2


def test_one_folder_by_several_names(tiny_llm, tmp_path, monkeypatch):
    folder = tmp_path / "llm"  # one that no other test has handles on
    shutil.copytree(tiny_llm, folder)
    (tmp_path / "link").symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    names = [folder, f"{folder}/", "llm", f"{folder}/../llm", tmp_path / "link"]
    handles = [cpu(name) for name in names]
    handles.append(cpu(folder, revision="v1"))  # has no effect on a folder
    assert len({id(handle.load()) for handle in handles}) == 1 == len(pool.loaded())
    assert pool.count_handles(handles[1].spec) == len(handles)
    assert handles[1].spec.name == f"{folder}/"  # saved as it was given
    handles[2].unload()
    assert not pool.loaded()


def test_a_catalogue_name_and_its_folder(tiny_llm, monkeypatch):
    monkeypatch.setattr(
        catalogue, "path_of", lambda name: Path(tiny_llm) if name == "gemma-3-270m" else None
    )
    assert cpu("gemma-3-270m").load() is cpu(tiny_llm).load()
    assert cpu("nobody/nothing").key.name == "nobody/nothing" and cpu("").key.name == ""


def test_facts(tiny_llm):
    llm = cpu(tiny_llm).load()
    assert (llm.n_layers, llm.n_heads, llm.width, llm.max_length) == (4, 4, 32, 256)
    assert llm.device == torch.device("cpu")
    assert llm.spec == LLMSpec(tiny_llm, None, "float32", "cpu")


def test_threads_load_once(tiny_llm, monkeypatch):
    loads = []
    load = pool.load_llm
    monkeypatch.setattr(pool, "load_llm", lambda spec: loads.append(spec) or load(spec))
    barrier = threading.Barrier(8)
    found = []

    def use():
        handle = cpu(tiny_llm)
        barrier.wait(timeout=60)
        found.append(handle.load())

    threads = [threading.Thread(target=use) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(loads) == 1
    assert len(found) == 8
    assert len({id(llm) for llm in found}) == 1


def test_unload(make_tiny, tmp_path):
    paths = [make_tiny(tmp_path / name, "llama") for name in "ab"]
    a, b = (cpu(path) for path in paths)
    loaded, kept = a.load(), b.load()
    pool.unload(a.spec)
    assert pool.loaded() == [kept]
    again = a.load()
    assert again is not loaded
    assert again.fingerprint == loaded.fingerprint
    a.unload()
    a.unload()  # nothing is left in memory
    pool.clear()
    assert not pool.loaded()
    assert b.load() is not kept


def test_count(make_tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    path = make_tiny(tmp_path / "llm", "llama")
    spec = LLMSpec(path)
    assert pool.count_handles(spec) == 0
    handles = [make_llm(path), cpu(path), cpu(path, dtype="float32")]
    others = [make_llm(), cpu(path, dtype="float16"), make_llm(path, device="cuda")]
    assert pool.count_handles(spec) == 3
    assert pool.count_handles(others[1].spec) == 1
    del handles[0]
    assert pool.count_handles(spec) == 2


def test_pickle(tiny_llm):
    handle = cpu(tiny_llm)
    loaded = handle.load()
    data = pickle.dumps(handle)
    assert len(data) < 1000
    copied = pickle.loads(data)
    assert copied.spec == handle.spec
    assert copied.load() is loaded


def test_fingerprint(make_tiny, tmp_path):
    path = make_tiny(tmp_path / "llm", "llama")
    fingerprint = cpu(path).load().fingerprint
    assert cpu(path, dtype="bfloat16").load().fingerprint == fingerprint
    assert cpu(shutil.copytree(path, tmp_path / "copy")).load().fingerprint == fingerprint
    other = make_tiny(tmp_path / "other", "llama", seed=1)
    assert cpu(other).load().fingerprint != fingerprint
    weights = load_file(f"{path}/model.safetensors")
    weights["model.layers.3.mlp.down_proj.weight"][-1, -1] += 1e-3
    changed = Path(shutil.copytree(path, tmp_path / "changed"))
    save_file(weights, changed / "model.safetensors", {"format": "pt"})
    assert cpu(changed).load().fingerprint != fingerprint


def snapshot(model):
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    return weights, [type(module) for module in model.modules()]


def assert_untouched(model, before):
    weights, modules = before
    assert not any(module.training for module in model.modules())
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not any(parameter.grad is not None for parameter in model.parameters())
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert not module._backward_hooks
    after = model.state_dict()
    assert list(after) == list(weights)
    assert all(torch.equal(after[name], weights[name]) for name in weights)
    assert [type(module) for module in model.modules()] == modules


def test_reads_leave_the_model_alone(any_llm):
    llm = cpu(any_llm).load()
    before = snapshot(llm.model)
    assert_untouched(llm.model, before)
    ids = llm.tokenizer.bos + llm.tokenizer.encode("Ada Hale met Bo in Bonn.").ids
    expected = read_texts(llm, [ids], PROBED)[0]
    steps = StepReader(llm, PROBED)
    steps.feed(ids)
    steps.feed([5])
    generating_view(llm, (2,)).generate(torch.tensor([ids]), max_new_tokens=3, do_sample=False)
    assert_untouched(llm.model, before)
    with pytest.raises(IndexError):
        read_texts(llm, [[0, 10_000_000]], PROBED)
    with pytest.raises(IndexError):
        StepReader(llm, PROBED).feed([10_000_000])
    assert_untouched(llm.model, before)
    after = read_texts(llm, [ids], PROBED)[0]
    assert torch.equal(after.hidden, expected.hidden)
    assert torch.equal(after.attention, expected.attention)


def test_exception_in_the_middle(tiny_llm, monkeypatch):
    llm = cpu(tiny_llm).load()
    before = snapshot(llm.model)
    ids = llm.tokenizer.encode("Ada Hale met Bo in Bonn.").ids
    expected = read_texts(llm, [ids], PROBED)[0]
    with monkeypatch.context() as context:

        def fail(*args, **kwargs):
            raise torch.OutOfMemoryError("full")

        context.setattr(llm.model.model.layers[2].mlp, "forward", fail)
        with pytest.raises(torch.OutOfMemoryError):
            read_texts(llm, [ids], PROBED)
    assert_untouched(llm.model, before)
    assert torch.equal(read_texts(llm, [ids], PROBED)[0].hidden, expected.hidden)
    assert read_texts(llm, [ids], FeatureSpec((1,)))[0].attention is None


def test_no_llm_is_set():
    handle = make_llm()
    with pytest.raises(LLMNotFoundError, match=r"No LLM is set.*--paths.llm NAME"):
        handle.load()


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("no-such-llm", "the hub is switched off by HF_HUB_OFFLINE"),
        ("nobody/no-such-llm", "the hub is switched off by HF_HUB_OFFLINE"),
        ("/no/such/folder", "not a valid hub id"),
    ],
)
def test_unknown_name(name, reason):
    with pytest.raises(LLMNotFoundError) as error:
        cpu(name).load()
    assert f"Can't find the LLM '{name}': " in str(error.value)
    assert f"({reason})" in str(error.value)
    assert "python -m spacy llmner download smollm2-135m-instruct" in str(error.value)


@pytest.mark.parametrize("name", ["smollm2-135m-instruct", "gemma-3-270m"])
def test_not_downloaded(name, monkeypatch, tmp_path):
    monkeypatch.setenv(catalogue.HOME_VARIABLE, str(tmp_path))
    handle = cpu(name)
    with pytest.raises(LLMNotFoundError) as error:
        handle.load()
    assert f"'{name}' is in the catalogue but not downloaded" in str(error.value)
    assert str(error.value).endswith(catalogue.CATALOGUE[name].command)
    assert not list(tmp_path.iterdir())


def test_absent_device(tiny_llm, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    handle = make_llm(tiny_llm, device="cuda")
    with pytest.raises(LLMNERError, match="The device 'cuda' is not available"):
        handle.load()


def test_folder_without_config(tmp_path):
    with pytest.raises(LLMNERError, match="incomplete or broken.*no config.json") as error:
        cpu(tmp_path).load()
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize("left", [0, 4, 1000, -1])
def test_truncated_weights(broken, left):
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:left])
    with pytest.raises(LLMNERError) as error:
        cpu(broken).load()
    assert f"'{broken}' is incomplete or broken" in str(error.value)
    assert "spacy llmner download" in str(error.value)
    assert not pool.loaded()


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json"])
def test_missing_file(broken, file):
    (broken / file).unlink()
    with pytest.raises(LLMNERError, match="incomplete or broken"):
        cpu(broken).load()


def test_weights_are_missing_in_the_file(broken):
    """transformers fills in random weights and only warns."""
    path = broken / "model.safetensors"
    weights = load_file(path)
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, path, {"format": "pt"})
    with pytest.raises(LLMNERError, match="layers.1.mlp.up_proj.weight"):
        cpu(broken).load()


def test_broken_config(broken):
    (broken / "config.json").write_text("{")
    with pytest.raises(LLMNERError, match="incomplete or broken"):
        cpu(broken).load()


def test_slow_tokenizer(broken):
    for file in broken.glob("*token*"):
        file.unlink()
    (broken / "vocab.json").write_text('{"<unk>": 0, "a</w>": 1, "b</w>": 2}')
    (broken / "merges.txt").write_text("#version: 0.2\na b</w>\n")
    (broken / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CTRLTokenizer"}))
    with pytest.raises(LLMNERError, match="is not a fast tokenizer.*use_fast=True"):
        cpu(broken).load()


@pytest.mark.parametrize("model_type", ["bert", "distilbert", "t5"])
def test_no_causal_lm(broken, model_type):
    """For example, the folder of a sentence encoder. It isn't broken, so it shouldn't be deleted."""
    AutoConfig.for_model(model_type).save_pretrained(broken)
    with pytest.raises(LLMNERError, match=f"type '{model_type}' are not supported.*causal LM") as e:
        cpu(broken).load()
    assert "elete" not in str(e.value)


def test_revisions_of_a_hub_id(make_tiny, tmp_path, monkeypatch):
    """Each revision is a different LLM, whether or not one of them is `main`."""
    root = tmp_path / "models--someone--tiny"
    for revision, seed in ("a" * 40, 1), ("b" * 40, 2):
        shutil.copytree(
            make_tiny(tmp_path / revision, "llama", seed), root / "snapshots" / revision
        )
    # transformers 4 has its own copy of this setting.
    monkeypatch.setattr("transformers.utils.hub.TRANSFORMERS_CACHE", tmp_path, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    first, second = (
        cpu("someone/tiny", revision=revision * 40).load().fingerprint for revision in "ab"
    )
    assert first == cpu(tmp_path / ("a" * 40)).load().fingerprint
    assert second == cpu(tmp_path / ("b" * 40)).load().fingerprint
    with pytest.raises(
        LLMNotFoundError, match="the LLM 'someone/tiny' of revision 'c+': .*HF_HUB_OFFLINE"
    ):
        cpu("someone/tiny", revision="c" * 40).load()


@pytest.mark.llm
def test_memory_does_not_grow(smollm2):
    ids = [1, *range(100, 160)]
    first = make_llm("smollm2-135m-instruct", dtype="float32", device="cpu")
    llm = first.load()
    weights = sum(p.nbytes for p in llm.model.parameters())
    read_texts(llm, [ids], FeatureSpec((15, 30)))
    process = psutil.Process()
    one = process.memory_info().rss
    handles = [pickle.loads(pickle.dumps(first)) for _ in range(3)]
    for handle in handles:
        assert handle.load() is llm
        read_texts(handle.load(), [ids], FeatureSpec((15, 30)))
    assert process.memory_info().rss - one < 0.05 * weights
    assert pool.count_handles(first.spec) >= 4
