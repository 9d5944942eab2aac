import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spacy_llmner.llm.lora import AdapterSettings, new_adapter
from spacy_llmner.llm.packing import TrainingSequence, pack, target_logits

TEXT = [0, *range(20, 34)]


def sequence(ids, n_learnt):
    return TrainingSequence(list(ids), [k >= len(ids) - n_learnt for k in range(len(ids))])


# A text and questions about it; some answers are the same, some begin alike.
TREES = [
    [
        sequence([*TEXT, 40, 41, 50, 51, 1], 3),
        sequence([*TEXT, 40, 41, 50, 52, 53, 1], 4),
        sequence([*TEXT, 40, 42, 60, 1], 2),
        sequence([*TEXT, 40, 42, 60, 1], 2),
    ],
    [sequence([0, 9, 8, 7, 1], 2)],
    [sequence([0, *range(5, 12), n, 1], 2) for n in (30, 31, 32)],
]


@pytest.fixture
def llm(any_llm, load):
    return load(any_llm)


def alone(llm, sequence, decoder=None):
    """The (logits, target) pairs of one sequence, computed with transformers."""
    ids = torch.tensor([sequence.ids])
    hidden = (decoder or llm.decoder)(input_ids=ids, use_cache=False).last_hidden_state[0]
    logits = llm.model.get_output_embeddings()(hidden)
    return [(logits[k - 1], sequence.ids[k]) for k, learnt in enumerate(sequence.loss) if learnt]


def paths(packed):
    """The tokens on the path from the root to each token."""
    return [tuple(packed.ids[seen]) for seen in packed.mask]


def prefixes(sequences):
    """For each target: the tokens before it, and the target itself."""
    return [
        (tuple(s.ids[:k]), s.ids[k])
        for s in sequences
        for k, learnt in enumerate(s.loss)
        if learnt and k
    ]


@torch.no_grad()
def test_logits_are_those_of_the_sequences(llm):
    batch = [pack(tree) for tree in TREES]
    logits = target_logits(llm, llm.decoder, batch)
    assert logits.dtype == torch.float32
    assert len(logits) == sum(len(packed.targets) for packed in batch)
    start = 0
    for packed, tree in zip(batch, TREES):
        expected = {}
        for s in tree:
            answers = (logits for logits, _ in alone(llm, s))
            expected.update(zip(prefixes([s]), answers))
        for k, (row, target) in enumerate(zip(packed.rows, packed.targets)):
            one = expected.pop((paths(packed)[row], target))
            torch.testing.assert_close(logits[start + k], one, rtol=0, atol=1e-4)
        assert not expected
        start += len(packed.targets)


def test_gradients_are_those_of_the_sequences(llm):
    torch.manual_seed(0)
    settings = AdapterSettings(rank=2, alpha=8)
    adapter, _ = new_adapter(llm, settings)
    for parameter in adapter.parameters():
        parameter.data.normal_(std=0.1)
    view = adapter.attach(llm, settings)
    total = 0.0
    for s in (s for tree in TREES for s in tree):
        for logits, target in alone(llm, s, view):
            total = total - logits.log_softmax(0)[target]
    total.backward()
    expected = {name: p.grad.clone() for name, p in adapter.named_parameters()}
    adapter.zero_grad()
    batch = [pack(tree) for tree in TREES]
    log_probs = target_logits(llm, view, batch).log_softmax(1)
    targets = torch.from_numpy(np.concatenate([p.targets for p in batch]))
    weights = torch.from_numpy(np.concatenate([p.weights for p in batch]))
    loss = -(weights * log_probs[torch.arange(len(targets)), targets]).sum()
    loss.backward()
    torch.testing.assert_close(loss, total, rtol=1e-4, atol=1e-3)
    for name, parameter in adapter.named_parameters():
        scale = float(expected[name].abs().max())
        assert scale > 0
        torch.testing.assert_close(parameter.grad, expected[name], rtol=0, atol=1e-3 * scale)


SEQUENCES = st.lists(
    st.lists(st.tuples(st.integers(0, 2), st.booleans()), max_size=7).map(
        lambda pairs: TrainingSequence([7, *(t for t, _ in pairs)], [False, *(p for _, p in pairs)])
    ),
    max_size=6,
)


@given(sequences=SEQUENCES)
def test_the_smallest_tree(sequences):
    """The tree has one token for each prefix from which a token is predicted."""
    packed = pack(sequences)
    beginnings = {tuple(s.ids[:k]) for s in sequences for k in range(1, len(s.ids))}
    assert len(packed) == len(beginnings)
    assert set(paths(packed)) == beginnings
    assert packed.positions.tolist() == [len(path) - 1 for path in paths(packed)]
    assert packed.mask.diagonal().all()
    assert not np.triu(packed.mask, 1).any()  # parents come before children


@given(sequences=SEQUENCES)
def test_weights_count_the_sequences(sequences):
    packed = pack(sequences)
    found = {
        (paths(packed)[row], target): weight
        for row, target, weight in zip(packed.rows, packed.targets, packed.weights)
    }
    learnt = prefixes(sequences)
    assert len(found) == len(packed.targets)
    assert found == {pair: learnt.count(pair) for pair in learnt}
    assert packed.weights.dtype == np.float32


def test_learnt_in_one_and_read_in_the_other():
    packed = pack([sequence([0, 5, 6, 7], 1), sequence([0, 5, 6, 7], 2)])
    assert packed.ids.tolist() == [0, 5, 6]
    assert dict(zip(packed.targets.tolist(), packed.weights.tolist())) == {7: 2, 6: 1}


@torch.no_grad()
def test_another_tree_beside_it_changes_nothing(llm):
    small, large = pack(TREES[1]), pack(TREES[0])
    n = len(small.targets)
    expected = target_logits(llm, llm.decoder, [small])
    found = target_logits(llm, llm.decoder, [small, large])[:n]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    found = target_logits(llm, llm.decoder, [large, small])[-n:]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_nothing_to_learn(tiny_llm, load):
    llm = load(tiny_llm)
    packed = pack([TrainingSequence([0, 5, 6], [False] * 3)])
    assert len(packed.targets) == 0
    logits = target_logits(llm, llm.decoder, [packed])
    assert logits.shape == (0, llm.model.config.vocab_size)
    assert len(pack([])) == 0
