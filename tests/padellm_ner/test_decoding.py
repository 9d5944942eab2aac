"""Counts and mentions: the prompts, the forward passes, and the results."""

import math
import re

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from spacy_llmner.padellm_ner.decoding import MentionDecodingSettings, find_mentions
from spacy_llmner.padellm_ner.postprocess import confidence
from spacy_llmner.padellm_ner.templates import Template
from spacy_llmner.padellm_ner.training_data import mention_tokens, training_sequences
from spacy_llmner.pipeline.spans import assign_occurrences
from tests.padellm_ner.helpers import KnowingDecoder, make_prompt_encoder, spell, split, words_of

LABELS = ["LOC", "MISC", "ORG", "PER"]
TEXT = "Ada Hale met Bo Lund in Bonn , and Ada Hale left Rome"
MENTIONS = {"PER": [(0, 2), (3, 5), (8, 10)], "LOC": [(6, 7), (11, 12)], "MISC": [(6, 7)]}
PLAIN = MentionDecodingSettings(draft=0, look_ahead=False)
RAW = MentionDecodingSettings(draft=0, look_ahead=False, raw=True)
SURE = KnowingDecoder.SURE


def find(
    prompt_encoder, text=TEXT, mentions=MENTIONS, labels=LABELS, settings=PLAIN, on_label=None
):
    """RETURNS (Tuple[Dict, Decoder]): The mentions that an LLM with perfect knowledge decodes."""
    words = words_of(prompt_encoder, text)
    sequences = training_sequences(prompt_encoder, words, text, labels, mentions)
    decoder = KnowingDecoder(sequences, raw=settings.raw)
    (found,) = decoder.run([find_mentions(prompt_encoder, words, text, labels, settings, on_label)])
    return found, decoder


def spans(text, mentions, labels=LABELS):
    bounds = split(text)
    return {
        label: [
            (bounds[a][0], bounds[b - 1][1])
            for a, b in sorted(mentions.get(label, []), key=lambda m: (m[0], -m[1]))
        ]
        for label in labels
    }


def places(found):
    return {label: assign_occurrences(answers) for label, answers in found.items()}


@pytest.mark.parametrize("draft,look_ahead", [(0, False), (4, False), (0, True), (4, True)])
def test_what_was_learnt_is_found(prompt_encoder, draft, look_ahead):
    """Decoding uses the same prompts as training, and drafting changes nothing."""
    found, _ = find(
        prompt_encoder, settings=MentionDecodingSettings(draft=draft, look_ahead=look_ahead)
    )
    assert places(found) == spans(TEXT, MENTIONS)
    assert [w.index for w in found["PER"]] == [1, 2, 3]
    assert {w.label for w in found["PER"]} == {"PER"} and found["ORG"] == []
    assert all(len(w.log_probs) for label in found for w in found[label])


@pytest.mark.parametrize(
    "text",
    [
        "Oslo Oslo Oslo Oslo",
        "Oslo is big and Oslo is cold .",
        "Oslo\nOslo and\n\nOslo , Oslo",
        '" Oslo " ( Oslo ) Oslo',
        "Port Oslo met Port Oslo",
    ],
)
@pytest.mark.parametrize("count_threshold", [None, 0.2])
def test_every_occurrence_of_a_string_is_found(prompt_encoder, text, count_threshold):
    """Without a space before it, as at the beginning of a text, a word has other tokens."""
    settings = MentionDecodingSettings(count_threshold=count_threshold)
    words = text.split()
    oslo = [(k - (words[k - 1] == "Port"), k + 1) for k in range(len(words)) if words[k] == "Oslo"]
    found, _ = find(prompt_encoder, text, {"LOC": oslo}, ["LOC", "X"], settings)
    assert places(found) == spans(text, {"LOC": oslo}, ["LOC", "X"])


def test_occurrences_without_a_space(prompt_encoder):
    text = '"Oslo" (Oslo)\nOslo and Oslo'
    bounds = [(m.start(), m.end()) for m in re.finditer(r"\w+|[^\w\s]", text)]
    words = words_of(prompt_encoder, text, bounds)
    oslo = [(k, k + 1) for k, (a, b) in enumerate(bounds) if text[a:b] == "Oslo"]
    assert len({tuple(mention_tokens(prompt_encoder, words, text, m)) for m in oslo}) == 1
    sequences = training_sequences(prompt_encoder, words, text, ["LOC"], {"LOC": oslo})
    request = find_mentions(prompt_encoder, words, text, ["LOC"], PLAIN)
    (found,) = KnowingDecoder(sequences).run([request])
    assert places(found)["LOC"] == [bounds[k] for k, _ in oslo]


def test_an_own_template(tiny_tokenizers):
    for template in (
        Template("Text: {text}\nFind: {label}\n", "How many? ", "", "Number {index}: ", True),
        Template("{text} = {label}", "? ", ";", "{count};{index}: ", False),
    ):
        prompt_encoder = make_prompt_encoder(
            tiny_tokenizers["byte-level"], template, {"PER": "person"}
        )
        found, _ = find(prompt_encoder)
        assert places(found) == spans(TEXT, MENTIONS)


def test_labels_with_0_are_not_asked_again(prompt_encoder):
    """The count of every label is predicted once, in the first pass."""
    found, decoder = find(prompt_encoder)
    assert len(decoder.asked[0]) == len(LABELS)
    words = words_of(prompt_encoder, TEXT)
    prompt = [*prompt_encoder.before, *words.ids.tolist(), *prompt_encoder.label("ORG")]
    for asked in decoder.asked[1:]:
        assert all(path[: len(prompt)] != prompt for path in asked)


def test_all_mentions_are_written_in_the_same_passes(prompt_encoder):
    """The number of passes is that of the longest mention, not the sum over all mentions."""
    words = words_of(prompt_encoder, TEXT)
    _, decoder = find(prompt_encoder)
    heads = [
        [
            *prompt_encoder.before,
            *words.ids.tolist(),
            *prompt_encoder.label(label),
            *prompt_encoder.mention(len(ms), k),
        ]
        for label, ms in MENTIONS.items()
        for k in range(1, len(ms) + 1)
    ]
    assert len(heads) == 6
    assert {[head in asked for asked in decoder.asked].index(True) for head in heads} == {1}
    longest = max(
        len(mention_tokens(prompt_encoder, words, TEXT, m)) + 1
        for ms in MENTIONS.values()
        for m in ms
    )
    assert decoder.passes <= longest + 3
    one = {"PER": MENTIONS["PER"][:1]}
    assert decoder.passes <= find(prompt_encoder, mentions=one)[1].passes + 2


def test_look_ahead_saves_passes(compact):
    one = {"PER": MENTIONS["PER"][:1]}
    _, plain = find(compact, mentions=one)
    _, ahead = find(compact, mentions=one, settings=MentionDecodingSettings())
    assert ahead.passes < plain.passes


def test_the_text_is_read_once(prompt_encoder):
    """The tokens of a text are read once, whatever the number of labels."""
    n = []
    for text in (TEXT, "Tea ; " * 20 + TEXT):
        bounds = split(text)
        shift = len(bounds) - len(split(TEXT))
        mentions = {k: [(a + shift, b + shift) for a, b in v] for k, v in MENTIONS.items()}
        words = words_of(prompt_encoder, text)
        _, decoder = find(prompt_encoder, text, mentions)
        n.append(decoder.tokens - len(words.ids))
        assert decoder.read[: len(prompt_encoder.before)] == prompt_encoder.before
    # Digits of the possible counts are all that differs.
    assert abs(n[0] - n[1]) <= 2 * len(LABELS) + 2


def test_repeats_and_nested_mentions(prompt_encoder):
    text = "Port Ellam Club in Port Ellam , Port Ellam"
    mentions = {"LOC": [(0, 2), (4, 6), (7, 9)], "ORG": [(0, 3), (0, 2)]}
    found, _ = find(prompt_encoder, text, mentions)
    assert places(found) == spans(text, mentions)


@pytest.mark.parametrize("n", [9, 10, 12, 30])
def test_many_mentions(prompt_encoder, n):
    """Counts of several digits."""
    text = " and ".join(["Bonn"] * n)
    mentions = {"LOC": [(2 * k, 2 * k + 1) for k in range(n)]}
    for mode in (PLAIN, MentionDecodingSettings(), MentionDecodingSettings(count_threshold=0.3)):
        found, _ = find(prompt_encoder, text, mentions, settings=mode)
        assert places(found) == spans(text, mentions)


def test_one_label_and_many(prompt_encoder):
    found, _ = find(prompt_encoder, labels=["PER"])
    assert places(found) == spans(TEXT, MENTIONS, ["PER"])
    labels = [f"L{k}." for k in range(200)]
    mentions = {labels[k]: [(k % 12, k % 12 + 1)] for k in range(0, 200, 7)}
    found, decoder = find(
        prompt_encoder, labels=labels, mentions=mentions, settings=MentionDecodingSettings()
    )
    for label, gold in spans(TEXT, mentions, labels).items():
        assert len(found[label]) == len(gold)
        assert all(offsets in w.occurrences for w, offsets in zip(found[label], gold))
    assert decoder.passes < 20


def test_many_labels_keep_to_the_budget(prompt_encoder):
    """There are 200 labels with mentions. Only as many are decoded at the same time as fit into memory."""
    labels = [f"L{k}." for k in range(200)]
    mentions = {label: [(0, 2), (6, 7), (8, 10)] for label in labels}
    words = words_of(prompt_encoder, TEXT)
    sequences = training_sequences(prompt_encoder, words, TEXT, labels, mentions)
    most, found = {}, {}
    for budget in (300, 100_000):
        decoder = KnowingDecoder(sequences, max_slots=budget)
        request = find_mentions(prompt_encoder, words, TEXT, labels, MentionDecodingSettings())
        rounds = [(decoder.slots.used, results) for results in decoder.steps([request])]
        most[budget], found[budget] = max(used for used, _ in rounds), rounds[-1][1][0]
    assert most[300] < 300 + 60 and most[100_000] > 3000
    assert places(found[300]) == places(found[100_000]) == spans(TEXT, mentions, labels)
    for label in labels:
        for one, other in zip(found[300][label], found[100_000][label]):
            assert one.log_probs == other.log_probs


@pytest.mark.parametrize("label", ["a\nb", 'say "x"', "<mention 1>", "2", "<num>2", "\n\n<num>"])
def test_any_label(prompt_encoder, label):
    found, _ = find(prompt_encoder, mentions={label: [(0, 2), (6, 7)]}, labels=[label, "X"])
    assert places(found) == spans(TEXT, {label: [(0, 2), (6, 7)]}, [label, "X"])


def test_probabilities_by_hand(prompt_encoder):
    """One factor for each token that had an alternative, none for the end."""
    text = "Bonn and Bonn"
    found, _ = find(prompt_encoder, text, {"LOC": [(0, 1)]}, ["LOC", "X"])
    (bonn,) = found["LOC"]
    words = words_of(prompt_encoder, text)
    ids = mention_tokens(prompt_encoder, words, text, (0, 1))
    assert len(bonn.log_probs) == len(bonn.raw_log_probs) == len(ids)
    score = confidence(bonn, "product", raw=False)
    # One choice, with which word to begin.
    assert score == pytest.approx(SURE)
    mean = confidence(bonn, "mean", raw=False)
    assert mean == pytest.approx(SURE ** (1 / len(ids)))
    found, _ = find(prompt_encoder, text, {"LOC": [(0, 1)]}, ["LOC", "X"], RAW)
    raw = confidence(found["LOC"][0], "product", raw=True)
    assert raw == pytest.approx(SURE * 0.5 ** len(ids))


class Counting(KnowingDecoder):
    """A decoder with a given probability for each count."""

    def __init__(self, sequences, prompt_encoder, p_counts):
        super().__init__(sequences)
        self.numbers, self.p_counts = prompt_encoder.numbers(9), p_counts

    def _knows(self, path, allowed):
        scores = super()._knows(path, allowed)
        first = {s[0]: n for n, s in enumerate(self.numbers.sequences)}
        if set(allowed) <= set(first) and len(allowed) > 2:
            p = np.array([self.p_counts.get(first[t], 1e-9) for t in allowed])
            scores.log_probs = np.log(p / p.sum())
        return scores


@pytest.mark.parametrize(
    "threshold,n", [(None, 1), (0.9, 0), (0.5, 1), (0.39, 2), (0.3, 2), (0.1, 3)]
)
def test_calibrated_counts(prompt_encoder, threshold, n):
    """Mention k is decoded if P(at least k mentions) is above the threshold."""
    p_counts = {0: 0.2, 1: 0.4, 2: 0.25, 3: 0.15}
    text = "Ada met Bo , Zoe and Kim"
    words = words_of(prompt_encoder, text)
    gold = [(0, 1), (2, 3), (4, 5), (6, 7)]
    known = [
        s
        for k in range(1, 5)
        for s in training_sequences(prompt_encoder, words, text, ["PER"], {"PER": gold[:k]})
    ]
    decoder = Counting(known, prompt_encoder, p_counts)
    mode = MentionDecodingSettings(threshold, draft=0, look_ahead=False)
    (found,) = decoder.run([find_mentions(prompt_encoder, words, text, ["PER"], mode)])
    assert places(found)["PER"] == spans(text, {"PER": gold[:n]})["PER"]
    at_least = [0.8, 0.4, 0.15]
    if threshold is not None:
        p = [math.exp(w.log_probs[0]) for w in found["PER"]]
        assert p == pytest.approx(at_least[:n], abs=0.03)


def test_a_string_that_comes_again_behind_another(prompt_encoder):
    """If a string occurs twice, with another one in between, the mentions are in the order of the text."""
    text = "Bonn and Ellam and Bonn"
    mentions = {"LOC": [(0, 1), (2, 3), (4, 5)]}
    found, _ = find(
        prompt_encoder, text, mentions, settings=MentionDecodingSettings(count_threshold=0.15)
    )
    assert places(found) == spans(text, mentions)
    assert [w.index for w in found["LOC"]] == [1, 2, 3]


def test_calibrated_counts_of_several_digits(prompt_encoder):
    """If the count is certainly 12, each of the 12 mentions has a high probability."""
    text = " and ".join(["Bonn"] * 12)
    mentions = {"LOC": [(2 * k, 2 * k + 1) for k in range(12)]}
    found, _ = find(
        prompt_encoder, text, mentions, settings=MentionDecodingSettings(count_threshold=0.3)
    )
    p = [math.exp(w.log_probs[0]) for w in found["LOC"]]
    assert len(p) == 12 and min(p) >= SURE**3 - 1e-6
    assert p == sorted(p, reverse=True)


class CountingByDigits(KnowingDecoder):
    """A decoder with a given probability for each digit of the count. The second digit is uncertain."""

    FIRST = {0: 0.01, 1: 0.95, 2: 0.04}
    THEN = {None: 0.02, 0: 0.15, 1: 0.16, 3: 0.2, 4: 0.18, 5: 0.16, 6: 0.13}  # "12" is a token

    def __init__(self, sequences, prompt_encoder):
        super().__init__(sequences)
        numbers = prompt_encoder.numbers(30).sequences
        self.first = {numbers[n][0]: p for n, p in self.FIRST.items()}
        self.then = {numbers[1][1]: self.THEN[None]}
        self.then.update({numbers[10 + n][1]: p for n, p in self.THEN.items() if n is not None})
        self.one = numbers[1][0]

    def _knows(self, path, allowed):
        scores = super()._knows(path, allowed)
        known = None
        if set(self.first) <= set(allowed.tolist()):
            known = self.first
        elif path[-1] == self.one and set(self.then) <= set(allowed.tolist()):
            known = self.then
        if known is not None:
            p = np.array([known.get(token, 1e-9) for token in allowed.tolist()])
            scores.log_probs = np.log(p / p.sum())
        return scores


@pytest.mark.parametrize("threshold,n", [(0.9, 10), (0.5, 13), (0.3, 14), (0.2, 15)])
def test_a_long_number_that_is_not_sure(prompt_encoder, threshold, n):
    """The probabilities of all second digits are used, not only that of the decoded one."""
    text = " and ".join(["Bonn"] * 16)
    words = words_of(prompt_encoder, text)
    gold = [(2 * k, 2 * k + 1) for k in range(16)]
    known = [
        s
        for k in range(1, 17)
        for s in training_sequences(prompt_encoder, words, text, ["LOC"], {"LOC": gold[:k]})
    ]
    decoder = CountingByDigits(known, prompt_encoder)
    (found,) = decoder.run(
        [
            find_mentions(
                prompt_encoder,
                words,
                text,
                ["LOC"],
                MentionDecodingSettings(count_threshold=threshold),
            )
        ]
    )
    p_first, p_then = CountingByDigits.FIRST, CountingByDigits.THEN
    ten = {1 if digit is None else 10 + digit: p_first[1] * p for digit, p in p_then.items()}
    by_number = {**p_first, **ten}
    at_least = [sum(p for m, p in by_number.items() if m >= k) for k in range(1, 17)]
    p = [math.exp(w.log_probs[0]) for w in found["LOC"]]
    assert p == pytest.approx(at_least[:n], abs=0.03)
    assert places(found)["LOC"] == spans(text, {"LOC": gold[:n]})["LOC"]


def test_each_label_is_reported_when_it_is_done(prompt_encoder):
    """Labels without mentions come first, and long mentions last. Each label is reported once."""
    told = []
    found, _ = find(prompt_encoder, on_label=lambda label, written: told.append((label, written)))
    assert sorted(label for label, _ in told) == LABELS
    assert dict(told) == found
    assert told[0] == ("ORG", [])


def test_a_mention_that_is_not_ended_has_no_place(compact):
    """When the budget of a mention runs out, it is dropped and can be counted."""
    text = "Ada and " * 20 + "Bo"
    mode = MentionDecodingSettings(draft=0, look_ahead=False, max_tokens=5)
    found, _ = find(compact, text, {"PER": [(0, 41), (40, 41)]}, ["PER"], mode)
    assert [w.index for w in found["PER"]] == [1, 2]
    assert assign_occurrences(found["PER"])[0] == (-1, -1)


def test_nothing_to_write(compact):
    """If the tokenizer keeps only the white space of a text, it has no mentions."""
    text = "\x04 \x04"
    found, _ = find(compact, text, {}, settings=MentionDecodingSettings())
    assert found == {label: [] for label in LABELS}


WORDS = st.sampled_from(["Bonn", "Ada", "Hale", "tea", "3.5%", "王", "🚀", "a-b", "(", "1", "10"])


@settings(max_examples=30, phases=[Phase.explicit, Phase.generate])
@given(st.lists(WORDS, min_size=1, max_size=15), st.data())
def test_any_gold_is_written(prompt_encoder, words, data):
    """Any mentions of any text are decoded, with their offsets among the occurrences."""
    n = len(words)
    one = st.tuples(st.integers(0, n - 1), st.integers(1, n)).filter(lambda s: s[0] < s[1])
    # In a text that begins with a digit, number 1 and this word could be read as number 1x.
    some = st.lists(one, unique=True, max_size=min(n, 9))
    mentions = data.draw(st.dictionaries(st.sampled_from(LABELS), some, max_size=2))
    text = " ".join(words)
    long = {"max_tokens": 1000}
    for mode in (
        MentionDecodingSettings(draft=0, look_ahead=False, **long),
        MentionDecodingSettings(**long),
    ):
        found, _ = find(prompt_encoder, text, mentions, settings=mode)
        for label, gold in spans(text, mentions).items():
            assert len(found[label]) == len(gold)
            for mention, (start, end) in zip(found[label], gold):
                assert {text[a:b] for a, b in mention.occurrences} == {text[start:end]}
                assert (start, end) in mention.occurrences


def test_log_probs_are_no_more_than_0(prompt_encoder):
    found, _ = find(prompt_encoder, settings=MentionDecodingSettings())
    values = [x for label in found for w in found[label] for x in w.log_probs]
    assert all(x <= 1e-9 and math.isfinite(x) for x in values)
    assert spell(prompt_encoder, prompt_encoder.number(0)).startswith("0")
