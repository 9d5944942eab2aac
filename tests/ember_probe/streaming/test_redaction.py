"""Redaction while a text is read or written. Nothing of an entity of the final Doc may be released."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spacy_llmner import Redactor, Restorer
from spacy_llmner.ember_probe.streaming.redaction import Placeholders
from spacy_llmner.errors import LLMNERError
from tests.ember_probe.helpers import NASTY, TEXTS, entities
from tests.ember_probe.streaming.test_reader import (  # noqa: F401
    ANY_TEXT,
    pieces_of,
    repeated,
    with_prefix,
)
from tests.ember_probe.streaming.test_stream import any_streaming  # noqa: F401

NUMBERED = "[{label}_{n}]"


def redact(nlp, pieces, **options):
    """RETURNS (Tuple): What was released after each piece and at the end; the redactor; the Doc."""
    reader = nlp.get_pipe("ember_probe").reader()
    redactor = Redactor(reader, **options)
    out = []
    for piece in pieces:
        reader.push(piece)
        out.append(redactor.release())
    reader.close()
    out.append(redactor.release())
    assert redactor.release() == ""
    return out, redactor, reader.doc


def redacted(doc, placeholder=lambda ent: f"[{ent.label_}]"):
    """RETURNS (str): The Doc's text with placeholders for all of its entities."""
    text, end = "", 0
    for ent in doc.ents:
        text += doc.text[end : ent.start_char] + placeholder(ent)
        end = ent.end_char
    return text + doc.text[end:]


@settings(repeated, max_examples=100)
@given(data=st.data(), text=ANY_TEXT)
def test_any_pieces_of_any_text(with_prefix, data, text):  # noqa: F811
    out, _, doc = redact(with_prefix, pieces_of(data, text))
    assert "".join(out) == redacted(doc)


@pytest.mark.parametrize("text", [*TEXTS, " ".join(TEXTS), *NASTY, ""])
def test_every_probe(any_streaming, text):  # noqa: F811
    for size in (1, 5, 1000):
        pieces = [text[i : i + size] for i in range(0, len(text), size)]
        out, _, doc = redact(any_streaming, pieces)
        assert "".join(out) == redacted(doc)


@pytest.mark.parametrize("seed", range(8))
def test_while_the_llm_writes(any_streaming, seed):  # noqa: F811
    ember = any_streaming.get_pipe("ember_probe")
    prompt = TEXTS[seed % len(TEXTS)] + " Mira"
    stream = ember.stream(prompt, max_new_tokens=40, temperature=1.5, seed=seed)
    redactor = Redactor(stream)
    out = "".join(redactor.release() for _ in stream) + redactor.release()
    assert out == redacted(stream.doc)


def test_text_is_released_while_it_is_read(with_prefix):  # noqa: F811
    text = " ".join(TEXTS)
    out, _, _ = redact(with_prefix, list(text))
    assert "[PER] met [PER] in" in "".join(out[: len(text) - 20])


def test_numbers(with_prefix):  # noqa: F811
    """The same text with the same label has the same number."""
    text = " ".join(TEXTS)
    out, redactor, doc = redact(with_prefix, list(text), placeholder=NUMBERED)
    numbers = {}
    for ent in doc.ents:
        of_label = numbers.setdefault(ent.label_, {})
        of_label.setdefault(ent.text, len(of_label) + 1)
    assert "".join(out) == redacted(doc, lambda e: f"[{e.label_}_{numbers[e.label_][e.text]}]")
    assert redactor.originals == {
        f"[{label}_{n}]": text for label, found in numbers.items() for text, n in found.items()
    }
    assert len(numbers["PER"]) > 1
    assert Restorer(redactor.originals).push("".join(out) + " ") == text + " "


def test_numbers_without_labels(with_prefix):  # noqa: F811
    text = " ".join(TEXTS)
    out, redactor, doc = redact(with_prefix, [text], placeholder="<{n}>")
    assert len(redactor.originals) == len({ent.text for ent in doc.ents})
    assert Restorer(redactor.originals).push("".join(out) + " ") == text + " "


def test_labels_and_scores(with_prefix):  # noqa: F811
    text = " ".join(TEXTS)
    out, _, doc = redact(with_prefix, [text], labels=["LOC"])
    assert "[LOC]" in "".join(out) and "Mira Stone" in "".join(out)
    out, _, _ = redact(with_prefix, [text], labels=[])
    assert "".join(out) == text
    out, _, _ = redact(with_prefix, [text], min_score=1.0)
    assert len("".join(out)) > len(redacted(doc))


@settings(repeated, max_examples=50)
@given(data=st.data(), text=ANY_TEXT, max_hold=st.integers(1, 12))
def test_words_that_are_held_for_too_long_are_redacted(with_prefix, data, text, max_hold):  # noqa: F811
    pieces = pieces_of(data, text)
    out, redactor, doc = redact(with_prefix, pieces, max_hold=max_hold, placeholder="⟦{label}_{n}⟧")
    released = "".join(out)
    restorer = Restorer(redactor.originals)
    assert restorer.push(released) + restorer.close() == text
    # What was replaced contains all entities.
    visible = re.sub("⟦[^⟧]*⟧", lambda m: "\ue000" * len(redactor.originals[m.group()]), released)
    for start, end, _ in entities(doc):
        assert set(visible[start:end]) == {"\ue000"}


def test_white_space_between_held_words(with_prefix):  # noqa: F811
    """It can be part of an entity, so it is replaced with the words."""
    text = "Mira Mira Stone"
    out, redactor, doc = redact(
        with_prefix, ["Mira M", "ira Stone"], max_hold=1, placeholder="<{n}>"
    )
    assert " " not in "".join(out) or not any(" " in ent.text for ent in doc.ents)
    assert Restorer(redactor.originals).push("".join(out) + " ") == text + " "


def test_from_a_start_to_a_limit(with_prefix):  # noqa: F811
    """Text before the start isn't released, and text after the limit only later."""
    text = " ".join(TEXTS)
    start = text.index(" ") + 1
    for size in (1, 7, 1000):
        reader = with_prefix.get_pipe("ember_probe").reader()
        redactor, out = Redactor(reader, start=start), ""
        for i in range(0, len(text), size):
            reader.push(text[i : i + size])
            out += redactor.release(until=max(i - 10, start))
        reader.close()
        assert len(out) < len(text) - 10
        out += redactor.release(until=len(text) - 10) + redactor.release()
        # The entity that begins before the start is replaced as well.
        assert out == redacted(reader.doc)
        assert "".join(out[r.start : r.end] for r in redactor.replacements) == "".join(
            r.text for r in redactor.replacements
        )
        assert len(redactor.replacements) == len(reader.doc.ents)


def test_shared_placeholders(with_prefix):  # noqa: F811
    """Texts can share numbers. Placeholders that a text contains are not used."""
    placeholders = Placeholders(NUMBERED, taken="[PER_2]")
    outs = [redact(with_prefix, [text], placeholder=placeholders)[0] for text in TEXTS]
    restored = [Restorer(placeholders.originals).push("".join(out) + " ") for out in outs]
    assert restored == [text + " " for text in TEXTS]
    assert "[PER_1]" in placeholders.originals and "[PER_2]" not in placeholders.originals


def test_braces_that_are_no_field():
    """Not a number, which would be searched for without end."""
    placeholders = Placeholders("{{n}}")
    assert [placeholders.replace("PER", text) for text in ("Ada", "Bo")] == ["{n}", "{n}"]


@pytest.mark.parametrize("overlong", ["redact", "release"])
@pytest.mark.parametrize("max_hold", [1, 3, 12])
def test_no_more_words_are_held(with_prefix, overlong, max_hold):  # noqa: F811
    reader = with_prefix.get_pipe("ember_probe").reader()
    placeholder = "⟦{label}_{n}⟧"
    redactor = Redactor(reader, max_hold=max_hold, overlong=overlong, placeholder=placeholder)
    text, out = " ".join(TEXTS), ""
    for end, char in enumerate(text, 1):
        reader.push(char)
        out += redactor.release()
        restorer = Restorer(redactor.originals)
        held = text[len(restorer.push(out) + restorer.close()) : end]
        assert len(with_prefix.make_doc(held.strip())) <= max_hold
    assert ("REDACTED" in out) == (overlong == "redact" and max_hold < 12)
    if max_hold == 12:
        assert "⟦LOC_1⟧" in out


@pytest.mark.parametrize(
    "setting,value",
    [
        *(("labels", ["GPE"]), ("min_score", 2), ("overlong", "stop"), ("max_hold", 0)),
        *(("placeholder", p) for p in ("", "{", "{name}", "{}", "{label.x}", None)),
        # Formats could take any amount of memory, or give all entities the same number.
        *(
            ("placeholder", p)
            for p in ("{label:>9999}", "{n.imag}", "{n!r:.0}", "{label.__class__}")
        ),
    ],
)
def test_wrong_settings(with_prefix, setting, value):  # noqa: F811
    reader = with_prefix.get_pipe("ember_probe").reader()
    with pytest.raises(LLMNERError, match=f"`{setting}` of 'redactor'"):
        Redactor(reader, **{setting: value})


ORIGINALS = {
    "[PER_1]": "Mira",
    "[PER_12]": "Oskar",
    "[PER_1": "odd",
    "aab": "1",
    "ab": "2",
    "aa": "3",
}


@given(
    data=st.data(),
    text=st.lists(st.sampled_from([*ORIGINALS, "[PER", "[", "a", "b", "_1", "]", "x"])).map(
        "".join
    ),
)
def test_placeholders_that_are_split_over_pieces(data, text):
    restorer = Restorer(ORIGINALS)
    out = "".join(map(restorer.push, pieces_of(data, text))) + restorer.close()
    longest_first = sorted(ORIGINALS, key=len, reverse=True)
    pattern = "|".join(map(re.escape, longest_first))
    assert out == re.sub(pattern, lambda match: ORIGINALS[match.group()], text)


def test_restorer_holds_back_only_what_can_be_a_placeholder():
    restorer = Restorer({"[PER_1]": "Mira"})
    assert restorer.push("Dear [PE") == "Dear "
    assert restorer.push("R_1], see [1") == "Mira, see [1"
    assert restorer.push(" [PER_2] [") == " [PER_2] "
    assert restorer.close() == "["
    assert Restorer({}).push("Dear [PER_1]") == "Dear [PER_1]"
