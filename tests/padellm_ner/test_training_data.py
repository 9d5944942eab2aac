"""From a text and its mentions to training sequences."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spacy_llmner.llm.packing import pack
from spacy_llmner.padellm_ner.templates import Template
from spacy_llmner.padellm_ner.training_data import mention_tokens, training_sequences
from tests.padellm_ner.helpers import make_prompt_encoder, spell, words_of

END = "<|im_end|>"
LABELS = ["LOC", "MISC", "ORG", "PER"]
# Two places, one person, something else, no organization.
TEXT = "SKIING-Hale of Norland won the Cup in Varnholm"
MENTIONS = {"LOC": [(7, 8), (2, 3)], "PER": [(0, 1)], "MISC": [(5, 6)]}


def sequences_of(
    prompt_encoder, text=TEXT, labels=LABELS, mentions=MENTIONS, allowed=False, **settings
):
    """As published, unless `allowed` is set."""
    words = words_of(prompt_encoder, text)
    settings["allowed"] = allowed
    return training_sequences(prompt_encoder, words, text, labels, mentions, **settings)


def learnt(prompt_encoder, sequence):
    """RETURNS (str): The tokens that carry loss."""
    return spell(prompt_encoder, [t for t, loss in zip(sequence.ids, sequence.loss) if loss])


@pytest.fixture(scope="module")
def counted(tiny_tokenizers):
    """A template with text before the count, and mentions after it."""
    template = Template("{text}\n{label}", "? ", "\n", "{count}\n{index}: ", True)
    return make_prompt_encoder(tiny_tokenizers["byte-level"], template)


def test_five_sequences(published):
    """2 LOC, 1 MISC, 0 ORG and 1 PER give five sequences, with the exact strings."""
    text = f"text:\n{TEXT}\nentity type:\n"
    bos = len(published.tokenizer.bos)
    assert [spell(published, s.ids[bos:]) for s in sequences_of(published)] == [
        f"{text}LOC\n\n<num>2\n<mention 1>Norland{END}",
        f"{text}LOC\n\n<num>2\n<mention 2>Varnholm{END}",
        f"{text}MISC\n\n<num>1\n<mention 1>Cup{END}",
        f"{text}ORG\n\n<num>0{END}",
        f"{text}PER\n\n<num>1\n<mention 1>SKIING-Hale{END}",
    ]


def test_loss(published):
    """Everything except the prompt is learned."""
    assert [learnt(published, s) for s in sequences_of(published)] == [
        f"2\n<mention 1>Norland{END}",
        f"2\n<mention 2>Varnholm{END}",
        f"1\n<mention 1>Cup{END}",
        f"0{END}",
        f"1\n<mention 1>SKIING-Hale{END}",
    ]


def test_loss_ignoring(published):
    """The paper's ablation leaves out the tokens between the count and the mention."""
    assert [learnt(published, s) for s in sequences_of(published, learn_index=False)] == [
        f"2\nNorland{END}",
        f"2\nVarnholm{END}",
        f"1\nCup{END}",
        f"0{END}",
        f"1\nSKIING-Hale{END}",
    ]


def test_compact(compact):
    """Here the count has a sequence of its own, and the mention is spelled as in the text, including the
    space before it if that is part of its first token."""
    text = "Ada met Bo Lund in Bonn"
    mentions = {"LOC": [(5, 6)], "PER": [(0, 1), (2, 4)]}
    assert [learnt(compact, s) for s in sequences_of(compact, text, LABELS, mentions)] == [
        f"1{END}",
        f" Bonn{END}",
        f"0{END}",
        f"0{END}",
        f"2{END}",
        f"Ada{END}",
        f" Bo Lund{END}",
    ]


def test_text_in_front_of_the_count(counted):
    bos = len(counted.tokenizer.bos)
    one, none = sequences_of(counted, "Tea in Bonn", ["LOC", "PER"], {"LOC": [(2, 3)]})
    assert spell(counted, one.ids[bos:]) == f"Tea in Bonn\nLOC? 1\n1: Bonn{END}"
    assert learnt(counted, one) == f"1\n1: Bonn{END}"
    assert spell(counted, none.ids[bos:]) == f"Tea in Bonn\nPER? 0{END}"


def test_many_mentions(prompt_encoder):
    """Counts and indices of more than one digit."""
    text = " ".join(["Bonn"] * 12)
    sequences = sequences_of(
        prompt_encoder, text, ["LOC"], {"LOC": [(k, k + 1) for k in range(12)]}
    )
    assert len(sequences) == (12 if prompt_encoder.count_first else 13)
    assert "12" in learnt(prompt_encoder, sequences[0])
    prompts = {tuple(t for t, loss in zip(s.ids, s.loss) if not loss) for s in sequences}
    assert len({tuple(s.ids) for s in sequences}) == len(sequences)
    assert len(prompts) == (1 if prompt_encoder.count_first else 13)
    if prompt_encoder.count_first:
        index = prompt_encoder.template.mention.split("\n")[1].format(index=11)
        assert index in learnt(prompt_encoder, sequences[10])


def test_nested_mentions(published):
    """If nested mentions begin with the same word, the outer one comes first."""
    text = "Port Ellam Sailing Club"
    mentions = {"ORG": [(0, 2), (0, 4), (2, 4)]}
    assert [learnt(published, s) for s in sequences_of(published, text, ["ORG"], mentions)] == [
        f"3\n<mention 1>Port Ellam Sailing Club{END}",
        f"3\n<mention 2>Port Ellam{END}",
        f"3\n<mention 3>Sailing Club{END}",
    ]


def test_a_mention_given_twice_counts_once(published):
    sequences = sequences_of(published, "Tea in Bonn", ["LOC"], {"LOC": [(2, 3), (2, 3)]})
    assert [learnt(published, s) for s in sequences] == [f"1\n<mention 1>Bonn{END}"]


def test_mention_of_words_that_hang_together(published):
    text = "Tea(Bonn)too"
    words = words_of(published, text, [(0, 3), (3, 4), (4, 8), (8, 9), (9, 12)])
    assert spell(published, mention_tokens(published, words, text, (2, 3))) == "Bonn"
    assert spell(published, mention_tokens(published, words, text, (1, 4))) == "(Bonn)"


def chosen(prompt_encoder, sequence):
    """RETURNS (List[Tuple[str, int]]): The learned tokens, and among how many tokens each is chosen."""
    tokens = enumerate(sequence.ids)
    return [
        (spell(prompt_encoder, [t]), len(sequence.allowed[k]))
        for k, t in tokens
        if sequence.learns(k)
    ]


def test_choices_that_are_learnt(compact):
    """The choice is among the words of the text, or the possible counts. A token without alternatives isn't
    learned: after a 0, inside words, and at the end of the text."""
    text = "Ada met Bo"
    sequences = sequences_of(compact, text, ["LOC", "PER"], {"PER": [(2, 3)]}, allowed=True)
    none, count, mention = sequences
    # 0, 1, 2 or 3.
    assert chosen(compact, none) == [("0", 4)]
    assert chosen(compact, count)[0] == ("1", 4)
    assert chosen(compact, mention)[0][1] == 3
    packed = pack(sequences)
    assert len(packed.allowed) == len(packed.targets)
    assert all(target in ids for target, ids in zip(packed.targets, packed.allowed))
    # A 0 is not in the input, since nothing is learned after it.
    [zero] = none.ids[-2:-1]
    assert compact.number(0) == none.ids[-2:]
    assert zero not in packed.ids.tolist()


def test_published_wording_with_choices(published):
    """The tokens between count and mention have no alternatives, so they are not learned."""
    first, *_ = sequences_of(published, allowed=True)
    assert chosen(published, first)[0][0].strip() == "2"
    assert not any("mention" in token for token, _ in chosen(published, first))


TEXTS = st.lists(st.sampled_from(["Bonn", "Ada", "tea", "3.5%", "王", "🚀", "a-b"]), min_size=1)


@given(TEXTS, st.data())
def test_any_mentions(prompt_encoder, words, data):
    """One sequence for each mention or empty label; packed, shared tokens are stored once."""
    n = len(words)
    spans = st.tuples(st.integers(0, n - 1), st.integers(1, n)).filter(lambda s: s[0] < s[1])
    mentions = data.draw(st.dictionaries(st.sampled_from(LABELS), st.lists(spans, unique=True)))
    text = " ".join(words)
    sequences = sequences_of(prompt_encoder, text, LABELS, mentions)
    counts = [len(mentions.get(label, [])) for label in LABELS]
    if prompt_encoder.count_first:
        assert len(sequences) == sum(max(1, c) for c in counts)
    else:
        assert len(sequences) == sum(1 + c for c in counts)
    prefixes = {tuple(s.ids[: k + 1]) for s in sequences for k in range(len(s.ids) - 1)}
    packed = pack(sequences)
    assert len(packed) == len(prefixes)
    assert packed.weights.sum() == sum(s.weight * sum(s.loss) for s in sequences)
    # With `allowed`, only tokens with alternatives are learned, and they are among the allowed ones.
    narrow = sequences_of(prompt_encoder, text, LABELS, mentions, allowed=True)
    assert [s.ids for s in narrow] == [s.ids for s in sequences]
    for a, b in zip(narrow, sequences):
        for k in range(len(a.ids)):
            assert b.loss[k] or not a.loss[k]
            assert not a.loss[k] or a.ids[k] in a.allowed[k]
    assert len(pack(narrow)) <= len(packed)
    text_tokens = len(words_of(prompt_encoder, text).ids)
    assert len(packed) <= len(prompt_encoder.before) + text_tokens + sum(
        len(s.ids) - text_tokens for s in sequences
    )
