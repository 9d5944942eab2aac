import math
import threading

import pytest
import torch

from spacy_llmner.llm.hidden_states import FeatureSpec, read_texts
from spacy_llmner.llm.lora import Adapter, AdapterSettings, new_adapter

IDS = torch.tensor([[0, *range(20, 34)]])
LORA = AdapterSettings(rank=3, alpha=6, first_layer=0)
FULL = AdapterSettings(rank=0, first_layer=0)


@pytest.fixture
def llm(any_llm, load):
    return load(any_llm)


@torch.no_grad()
def states(decoder):
    return decoder(input_ids=IDS, use_cache=False).last_hidden_state


def snapshot(llm):
    return {name: tensor.clone() for name, tensor in llm.model.state_dict().items()}


def assert_untouched(llm, before):
    model = llm.model
    assert not any(module.training for module in model.modules())
    assert not any(p.requires_grad or p.grad is not None for p in model.parameters())
    assert not any("lora" in name for name, _ in model.named_modules())
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)


def changed(llm, settings, seed):
    """A trained adapter, and its view."""
    adapter, _ = new_adapter(llm, settings)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return adapter, adapter.attach(llm, settings)


def train(view, adapter, steps=3):
    """RETURNS: the loss of each step."""
    optimizer = torch.optim.SGD(adapter.parameters(), lr=1e-3)
    losses = []
    for _ in range(steps):
        loss = view(input_ids=IDS, use_cache=False).last_hidden_state.square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize("settings", [LORA, FULL])
def test_a_new_adapter_changes_nothing(llm, settings):
    expected = states(llm.decoder)
    adapter, _ = new_adapter(llm, settings)
    assert torch.equal(states(adapter.attach(llm, settings)), expected)
    assert {p.dtype for p in adapter.parameters()} == {torch.float32}


@pytest.mark.parametrize("settings", [LORA, FULL])
def test_the_shared_model_stays_bit_identical(llm, settings):
    before, expected = snapshot(llm), states(llm.decoder)
    features = read_texts(llm, IDS.tolist(), FeatureSpec((2, 4)))[0].hidden
    adapter, view = changed(llm, settings, 1)
    assert torch.equal(states(llm.decoder), expected)
    own = states(view)
    assert not torch.allclose(own, expected, atol=1e-2)
    found = {}

    def other():
        found["shared"], found["view"] = states(llm.decoder), states(view)

    class Watched(torch.nn.Module):
        """In the middle of a pass of the view, another thread uses the shared model."""

        def forward(self, hidden):
            thread = threading.Thread(target=other)
            thread.start()
            thread.join()
            return hidden

    watched = adapter.attach(llm, settings)
    name = "ln_f" if hasattr(watched, "ln_f") else "norm"
    watched._modules[name] = torch.nn.Sequential(Watched(), watched._modules[name])
    assert torch.equal(states(watched), own)
    assert torch.equal(found["shared"], expected)
    assert torch.equal(found["view"], own)
    train(view, adapter)
    assert not torch.equal(states(view), own)
    assert torch.equal(states(llm.decoder), expected)
    assert torch.equal(read_texts(llm, IDS.tolist(), FeatureSpec((2, 4)))[0].hidden, features)
    assert_untouched(llm, before)


@pytest.mark.parametrize("settings", [LORA, FULL])
def test_hooks_are_not_shared(llm, settings):
    """Views don't call the hooks of the shared model, and the model doesn't call those of its views."""
    _, view = changed(llm, settings, 1)
    called = []
    watched = {"shared": llm.decoder, "view": view}
    hooks = [
        module.register_forward_hook(lambda *args, name=name: called.append(name))
        for name, decoder in watched.items()
        for module in [decoder.norm if hasattr(decoder, "norm") else decoder.ln_f]
    ]
    try:
        for name, decoder in watched.items():
            called.clear()
            states(decoder)
            assert called == [name]
    finally:
        for hook in hooks:
            hook.remove()


@pytest.mark.parametrize("settings", [LORA, FULL])
def test_after_an_exception(llm, settings):
    before, expected = snapshot(llm), states(llm.decoder)
    _, view = changed(llm, settings, 1)
    own = states(view)
    with pytest.raises(IndexError):
        view(input_ids=IDS + 10_000_000)
    assert torch.equal(states(llm.decoder), expected)
    assert torch.equal(states(view), own)
    assert_untouched(llm, before)


def test_several_adapters(llm):
    expected = states(llm.decoder)
    pairs = [changed(llm, settings, seed) for seed, settings in enumerate((LORA, LORA, FULL))]
    alone = [states(view) for _, view in pairs]
    for k in (2, 0, 1, 1, 0, 2):
        assert torch.equal(states(pairs[k][1]), alone[k])
        assert torch.equal(states(llm.decoder), expected)
    for a, b in [(0, 1), (0, 2), (1, 2)]:
        assert not torch.allclose(alone[a], alone[b], atol=1e-2)
    train(pairs[0][1], pairs[0][0])
    assert torch.equal(states(pairs[1][1]), alone[1])
    assert torch.equal(states(pairs[2][1]), alone[2])


def test_adapters_learn(llm):
    for settings in (LORA, FULL):
        adapter, _ = new_adapter(llm, settings)
        losses = train(adapter.attach(llm, settings), adapter, 6)
        assert losses[-1] < losses[0]


def test_base_weights_are_held_once(llm):
    shared = {id(p) for p in llm.decoder.parameters()}
    adapter, view = changed(llm, LORA, 0)
    own = {id(p) for p in adapter.parameters()}
    assert {id(p) for p in view.parameters()} == shared | own
    assert [id(b) for b in view.buffers()] == [id(b) for b in llm.decoder.buffers()]
    # A full copy shares what it does not train: the embeddings.
    adapter, view = changed(llm, FULL, 0)
    own = {id(p) for p in adapter.parameters()}
    left = {id(p) for p in view.parameters()} - own
    embeddings = [m for m in llm.decoder.modules() if isinstance(m, torch.nn.Embedding)]
    assert left == {id(m.weight) for m in embeddings}


@pytest.mark.parametrize("rank", [3, 0])
@pytest.mark.parametrize("first_layer", [0, 2, 3])
def test_first_layer(llm, rank, first_layer):
    """The input of the first trained layer is the same as without an adapter."""
    settings = AdapterSettings(rank=rank, first_layer=first_layer)
    adapter, view = changed(llm, settings, 0)
    seen = []

    def note(module, args, kwargs):
        seen.append(args[0] if args else kwargs["hidden_states"])

    for decoder in (llm.decoder, view):
        blocks = next(m for m in decoder.modules() if isinstance(m, torch.nn.ModuleList))
        handles = [b.register_forward_pre_hook(note, with_kwargs=True) for b in blocks]
        states(decoder)
        for handle in handles:
            handle.remove()
    same = [torch.equal(a, b) for a, b in zip(seen[:4], seen[4:])]
    assert same == [k <= first_layer for k in range(4)]
    layers = {
        int(part)
        for name, _ in adapter.named_parameters()
        for part in name.split("/")
        if part.isdigit()
    }
    assert layers == set(range(first_layer, 4))


@pytest.mark.parametrize("settings", [LORA, FULL, AdapterSettings(rank=2, first_layer=2)])
def test_saved_and_loaded(llm, settings):
    adapter, shapes = new_adapter(llm, settings)
    assert {name: list(p.shape) for name, p in adapter.named_parameters()} == {
        name.replace(".", "/"): shape for name, shape in shapes.items()
    }
    train(adapter.attach(llm, settings), adapter)
    # The adapter is created and loaded before its LLM.
    loaded = Adapter(shapes)
    loaded.load_state_dict(adapter.state_dict())
    found = states(loaded.attach(llm, settings))
    assert torch.equal(found, states(adapter.attach(llm, settings)))


def test_the_view_follows_its_tensors(llm):
    adapter, view = changed(llm, LORA, 0)
    before = states(view)
    other, _ = changed(llm, LORA, 1)
    adapter.load_state_dict(other.state_dict())
    assert not torch.equal(states(view), before)
    assert torch.equal(states(view), states(other.attach(llm, LORA)))


def test_all_linear_layers_are_adapted(llm):
    """This includes those of GPT-2, whose weights are transposed."""
    _, shapes = new_adapter(llm, LORA)
    weights = dict(llm.decoder.named_parameters())
    conv = "gpt2" in llm.spec.name
    for name, weight in weights.items():
        if weight.ndim < 2 or name.startswith(("w", "embed")):
            continue
        place = name[: -len(".weight")]
        n_out, n_in = reversed(weight.shape) if conv else weight.shape
        assert shapes[f"{place}.lora_A.default.weight"] == [3, n_in]
        assert shapes[f"{place}.lora_B.default.weight"] == [n_out, 3]
    assert len(shapes) == 2 * 4 * (4 if conv else 7)


def test_same_seed_same_adapter(llm):
    found = []
    for _ in range(2):
        torch.manual_seed(3)
        found.append(new_adapter(llm, LORA)[0].state_dict())
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_attaching_draws_no_random_numbers(llm):
    """Loading and using a pipeline must not change the results of a user's seed."""
    adapter, _ = new_adapter(llm, LORA)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    adapter.attach(llm, LORA)
    assert torch.equal(torch.rand(3), expected)


def test_half_precision(any_llm, load):
    """Trained weights are float32, whatever the dtype of the shared weights."""
    llm = load(any_llm, "bfloat16")
    adapter, _ = new_adapter(llm, LORA)
    view = adapter.attach(llm, LORA)
    assert {p.dtype for p in adapter.parameters()} == {torch.float32}
    scale = states(llm.decoder).float().abs().mean()
    assert (states(view).float() - states(llm.decoder).float()).abs().mean() < 0.05 * scale
    assert all(math.isfinite(loss) for loss in train(view, adapter))
