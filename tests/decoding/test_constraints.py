import json
import random

import numpy as np
import pytest
import spacy
from hypothesis import example, given, settings
from hypothesis import strategies as st

from spacy_llmner.decoding.constraints import NO_GUESS, Choices, JsonList, Substrings, Unconstrained
from spacy_llmner.decoding.json_lists import TextLists
from spacy_llmner.decoding.substrings import spellings_in_text, substring_constraint
from spacy_llmner.llm.tokenization import LLMTokenizer
from spacy_llmner.llm.word_tokens import spelling, word_tokens

KINDS = ("byte-level", "metaspace", "metaspace with a space in front")
END = 1  # <|im_end|>, which no text is encoded to
FRAGMENTS = [
    *(
        " ",
        "  ",
        "\n",
        "\t",
        "\u3000",
        "\u200b",
        "Ada",
        " Ada",
        " Hale",
        "Ada Hale",
        "met",
        "don't",
    ),
    *(".", ",", "3.5%", "e\u0301", '"', "'s", "[", "]", '", "', '"]', "\\", "<unk>", "<|im_end|>"),
    *(
        "王",
        "小明",
        "北京北京",
        "龘",
        "🚀",
        "🚀🚀",
        "👩\u200d💻",
        "مرحبا",
        "\u202e",
        "\x04",
        "\x00",
    ),
]
TEXTS = st.one_of(
    st.lists(st.sampled_from(FRAGMENTS)).map("".join),
    st.lists(st.sampled_from([" Ada", " Hale", "Ada", "  "])).map("".join),
    st.text(st.characters(codec="utf8"), max_size=30),
)
NLP = spacy.blank("en")


def by_spacy(text):
    return [(t.idx, t.idx + len(t)) for t in NLP(text) if not t.is_space]


def by_character(text):
    return [(k, k + 1) for k, character in enumerate(text) if not character.isspace()]


SPLITS = st.sampled_from([by_spacy, by_character])
SEEDS = st.integers(0, 2**32)


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request, tiny_tokenizers):
    return LLMTokenizer(tiny_tokenizers[request.param])


@pytest.fixture(scope="module")
def byte_level(tiny_tokenizers):
    return LLMTokenizer(tiny_tokenizers["byte-level"])


def decode(tokenizer, ids):
    return tokenizer.hf.decode(ids, clean_up_tokenization_spaces=False)


def keeps(tokenizer, text):
    """Whether the tokenizer has tokens for all of a text's characters."""
    return all(decode(tokenizer, tokenizer.encode(c).ids) == c for c in text if not c.isspace())


def wander(rule, seed, patience=30):
    """Decode as an LLM with random weights would. It stops early or late."""
    chance = random.Random(seed)
    stop = chance.random()
    ids, state = [], rule.start
    while len(allowed := rule.allowed(state)):
        assert allowed.dtype == np.int64
        assert (np.diff(allowed) > 0).all()
        assert rule.guess(state) in (*allowed, NO_GUESS)
        ends = END in allowed and (chance.random() < stop or len(ids) > patience)
        token = END if ends else int(chance.choice(allowed.tolist()))
        before = state
        state = rule.advance(state, token)
        assert np.array_equal(rule.allowed(before), allowed)  # it stayed as it was
        ids.append(token)
        assert len(ids) < 1000
    return ids, state


def spellings(tokenizer, words, text, bare):
    """For every run of words: the tokens that spell it, and its position."""
    there = [w for w in range(len(words)) if words.last[w] >= words.first[w]]
    for k, w in enumerate(there):
        first = words.ids[words.first[w] : words.last[w] + 1].tolist()
        word = text[slice(*words.bounds[w])]
        if bare:
            first = spelling(tokenizer, word) or first
        else:
            first = spellings_in_text(words, text)[word]
        for v in there[k:]:
            rest = words.ids[words.last[w] + 1 : words.last[v] + 1].tolist()
            yield first + rest, (int(words.bounds[w, 0]), int(words.bounds[v, 1]))


@given(text=TEXTS, split=SPLITS, bare=st.booleans(), seed=SEEDS)
def test_always_a_substring(tokenizer, text, split, bare, seed):
    bounds = split(text)
    words = word_tokens(tokenizer, text, bounds)
    rule = substring_constraint(words, END, tokenizer if bare else None, text)
    ids, state = wander(rule, seed)
    assert bool(ids) == bool((words.last >= words.first).any())
    if not ids:
        assert rule.spans(state) == []
        return
    assert ids[-1] == END
    assert END not in ids[:-1]
    spans = rule.spans(state)
    everywhere = [span for run, span in spellings(tokenizer, words, text, bare) if run == ids[:-1]]
    assert spans == everywhere
    assert spans
    assert {start for start, _ in spans} <= {start for start, _ in bounds}
    assert {end for _, end in spans} <= {end for _, end in bounds}
    if keeps(tokenizer, text) and decode(tokenizer, tokenizer.encode(text).ids) == text:
        for start, end in spans:
            assert decode(tokenizer, ids[:-1]).removeprefix(" ") == text[start:end]


@settings(max_examples=30)
@given(text=TEXTS, split=SPLITS, bare=st.booleans())
def test_every_run_of_words_can_be_written(tokenizer, text, split, bare):
    words = word_tokens(tokenizer, text, split(text))
    rule = substring_constraint(words, END, tokenizer if bare else None, text)
    for ids, span in list(spellings(tokenizer, words, text, bare))[:40]:
        state = rule.start
        for token in [*ids, END]:
            assert token in rule.allowed(state)
            state = rule.advance(state, token)
        assert span in rule.spans(state)
        assert not len(rule.allowed(state))


@pytest.mark.parametrize("text", ["Ada ", "Ada \n\n", "Ada \x04", "\x04 Ada  \x04 \n", " Ada\t \t"])
def test_nothing_is_allowed_behind_the_last_word(tokenizer, text):
    """White space at the end of a text is not allowed, since no word ends after it."""
    words = word_tokens(tokenizer, text, by_spacy(text))
    for bare in (None, tokenizer):
        rule = substring_constraint(words, END, bare, text)
        for seed in range(5):
            ids, state = wander(rule, seed)
            assert ids[-1] == END
            for start, end in rule.spans(state):
                assert text[start:end].startswith("Ada") or "\x04" in text


def test_repeated_words(byte_level):
    text = "Ada met Ada Hale, and Ada left Ada Hale"
    words = word_tokens(byte_level, text, by_spacy(text))
    ada = words.ids[words.first[2] : words.last[2] + 1].tolist()
    hale = words.ids[words.last[2] + 1 : words.last[3] + 1].tolist()
    for bare in (None, byte_level):
        rule = substring_constraint(words, END, bare, text)
        for ids, spans in [
            (ada, [(0, 3), (8, 11), (22, 25), (31, 34)]),
            (ada + hale, [(8, 16), (31, 39)]),
        ]:
            state = rule.start
            for token in [*ids, END]:
                state = rule.advance(state, token)
            assert state.ended
            assert rule.spans(state) == spans


def test_one_word_and_none(byte_level):
    for text in ("Ada", " Ada", "王"):
        words = word_tokens(byte_level, text, by_spacy(text))
        ids, state = wander(substring_constraint(words, END), 0)
        assert decode(byte_level, ids[:-1]).strip() == text.strip()
        assert len(substring_constraint(words, END).spans(state)) == 1
    for text in ("", " \n", "\x04"):
        rule = substring_constraint(
            word_tokens(byte_level, text, by_spacy(text)), END, byte_level, text
        )
        assert isinstance(rule, Substrings)
        assert wander(rule, 0)[0] == []
        assert rule.spans(rule.start) == []


def test_choices():
    rule = Choices([(5, 6, END), (5, 7, 8, END), (9,), (9,)])
    assert rule.sequences == [(5, 6, END), (5, 7, 8, END), (9,), (9,)]
    written = {tuple(wander(rule, seed)[0]) for seed in range(50)}
    assert written == set(rule.sequences)
    assert rule.allowed(()).tolist() == [5, 9]
    assert rule.allowed((5,)).tolist() == [6, 7]
    assert not len(rule.allowed((9,)))


@given(st.lists(st.lists(st.integers(0, 3), max_size=4), max_size=5), SEEDS)
def test_any_choices(sequences, seed):
    known = {tuple(s) for s in sequences}
    if any(a != b and b[: len(a)] == a for a in known for b in known):
        with pytest.raises(ValueError, match="is the beginning of"):
            Choices(sequences)
    else:
        rule = Choices(sequences)
        state, ids = rule.start, []
        chance = random.Random(seed)
        while len(allowed := rule.allowed(state)):
            assert rule.guess(state) in allowed
            ids.append(int(chance.choice(allowed.tolist())))
            state = rule.advance(state, ids[-1])
        assert tuple(ids) in known or not known


@pytest.mark.parametrize("sequences", [[(5,), (5, 6)], [(5, 6, 7), (5, 6)], [(), (5,)]])
def test_a_choice_that_begins_another(sequences):
    with pytest.raises(ValueError, match="is the beginning of"):
        Choices(sequences)


def json_list(tokenizer, text, bounds):
    """A list of the text's substrings."""
    return TextLists(tokenizer, text, bounds, END).rule


# The tiny tokenizer has no token for the first byte of U+40000.
@example(text="0\U00040000\x1b", split=by_character, seed=0)
@given(text=TEXTS, split=SPLITS, seed=SEEDS)
def test_json_always_parses(tokenizer, text, split, seed):
    bounds = split(text)
    rule = json_list(tokenizer, text, bounds)
    ids, state = wander(rule, seed)
    assert ids[-1] == END
    items = json.loads(decode(tokenizer, ids[:-1]))
    assert isinstance(items, list)
    assert all(isinstance(item, str) for item in items)
    places = rule.spans(state)
    assert len(places) == len(items)
    assert all(places)
    if keeps(tokenizer, text):
        for item, spans in zip(items, places):
            for start, end in spans:
                # White space inside of an item is written as one space.
                assert item.split() == text[start:end].split()


@pytest.mark.parametrize(
    ("text", "spans"),
    [
        ('He said "Hi [Bo]" to', [[(8, 16)], [(12, 16)], [(8, 9), (16, 17)]]),
        ("a\\b [x, y] \\", [[(0, 3)], [(4, 10)], [(1, 2), (11, 12)]]),
        ('王小明 " 王', [[(0, 1), (6, 7)], [(0, 3)], [(4, 5)]]),
    ],
)
def test_json_of_quotes_and_brackets(tokenizer, text, spans):
    rule = json_list(tokenizer, text, by_character(text))
    answer = json.dumps([text[slice(*places[0])] for places in spans], ensure_ascii=False)
    ids, state = write(tokenizer, rule, [], rule.start, answer)
    assert decode(tokenizer, ids[:-1]) == answer
    assert rule.spans(state) == spans


def write(tokenizer, rule, ids, state, answer):
    """RETURNS: tokens that spell an answer, and the state after them; None if there are none."""
    for token in rule.allowed(state).tolist():
        after = rule.advance(state, token)
        if token == END:
            if decode(tokenizer, ids) == answer:
                return [*ids, END], after
        elif answer.startswith(decode(tokenizer, [*ids, token]).rstrip("\ufffd")):
            found = write(tokenizer, rule, [*ids, token], after, answer)
            if found:
                return found
    return None


def test_json_without_words(tokenizer):
    rule = json_list(tokenizer, " \n", [])
    ids, state = wander(rule, 0)
    assert json.loads(decode(tokenizer, ids[:-1])) == []
    assert rule.spans(state) == []


def test_json_that_contradicts_itself(byte_level):
    rule = substring_constraint(word_tokens(byte_level, "Ada", [(0, 3)]), END)
    with pytest.raises(ValueError, match="is the beginning of"):
        JsonList(rule, [5, END], [5], [6], [7, END])
    with pytest.raises(ValueError, match="is the beginning of"):
        JsonList(rule, [4, END], [5], [6], [6, END])


@given(text=TEXTS, split=SPLITS, seed=SEEDS)
def test_json_is_written_as_it_is_allowed(tokenizer, text, split, seed):
    bounds = split(text)
    lists = TextLists(tokenizer, text, bounds, END)
    there = [k for k in range(len(bounds)) if lists.words.last[k] >= lists.words.first[k]]
    generator = random.Random(seed)
    spans = []
    for _ in range(generator.randrange(4) if there else 0):
        start = generator.choice(there)
        spans.append((start, generator.choice([k for k in there if k >= start]) + 1))
    state = lists.rule.start
    ids = lists.spell(spans)
    for token in ids:
        assert token in lists.rule.allowed(state)
        state = lists.rule.advance(state, token)
    assert not len(lists.rule.allowed(state))
    for (start, stop), places in zip(spans, lists.rule.spans(state)):
        assert (bounds[start][0], bounds[stop - 1][1]) in places
    log_probs = lists.item_log_probs(ids, [-1.0] * len(ids))
    assert len(log_probs) == len(spans)
    # All tokens except those that end the list belong to one of the strings.
    closing = [*spelling(tokenizer, '"]'), END] if spans else lists.spell([])
    assert -sum(log_probs) == len(ids) - len(closing)


@given(text=TEXTS, split=SPLITS, seed=SEEDS)
def test_an_ordered_list_goes_on_in_the_text(tokenizer, text, split, seed):
    """Each item begins after the beginning of the previous one, so that no list is endless."""
    bounds = split(text)
    rule = TextLists(tokenizer, text, bounds, END, ordered=True).rule
    _, state = wander(rule, seed, patience=10_000)
    firsts = [min(places)[0] for places in rule.spans(state)]
    assert firsts == sorted(set(firsts))
    assert len(firsts) <= len(bounds)


def test_anything():
    rule = Unconstrained(9, end=4)
    assert rule.allowed(rule.start).tolist() == list(range(9))
    assert rule.guess(rule.start) == NO_GUESS
    assert not rule.advance(rule.start, 3)
    assert not len(rule.allowed(rule.advance(rule.start, 4)))


@given(st.lists(st.sampled_from([5, 6, 7]), min_size=1, max_size=12), st.data())
def test_known_states_are_those_of_a_new_constraint(ids, data):
    """A constraint remembers the states that answers have passed."""

    def fresh():
        tokens = np.array(ids, dtype=np.int64)
        follow = np.append(np.arange(1, len(ids)), -1)
        words = np.arange(len(ids))
        return Substrings(tokens, follow, words + 1, words, words, end=1)

    used = fresh()
    for _ in range(4):
        new, known = fresh(), used
        state, other = new.start, known.start
        while len(new.allowed(state)):
            assert new.allowed(state).tolist() == known.allowed(other).tolist()
            token = data.draw(st.sampled_from(new.allowed(state).tolist()))
            state, other = new.advance(state, token), known.advance(other, token)
            assert (state.starts.tolist(), state.last.tolist()) == (
                other.starts.tolist(),
                other.last.tolist(),
            )
        assert new.spans(state) == known.spans(other)
