import pytest

from tests.corpora.helpers import ents, fails, fails_at, run, write

TEXT = "Ada Hale lives in Bonn."
EMOJI = "🚀 Ada 🚀🚀 met Bo."


@pytest.mark.parametrize(
    "row",
    [
        {"id": 1, "text": TEXT, "label": [[0, 8, "PER"], [18, 22, "LOC"]], "Comments": []},
        {"id": 1, "data": TEXT, "label": [[0, 8, "PER"], [18, 22, "LOC"]]},
        {"text": TEXT, "labels": [[0, 8, "PER"], [18, 22, "LOC"]]},
        {
            "id": 1,
            "text": TEXT,
            "entities": [
                {"id": 7, "label": "PER", "start_offset": 0, "end_offset": 8},
                {"id": 8, "label": "LOC", "start_offset": 18, "end_offset": 22},
            ],
            "relations": [{"id": 1, "from_id": 7, "to_id": 8, "type": "lives"}],
        },
    ],
)
def test_forms(tmp_path, row):
    result, (doc,) = run(write(tmp_path / "a.jsonl", row))
    assert doc.text == TEXT
    assert ents(doc) == [("Ada Hale", "PER"), ("Bonn", "LOC")]
    assert result.stderr == ""


def test_offsets_count_utf16(tmp_path):
    path = write(tmp_path / "a.jsonl", {"text": EMOJI, "label": [[3, 6, "PER"], [16, 18, "PER"]]})
    result, (doc,) = run(path)
    assert ents(doc) == [("Ada", "PER"), ("Bo", "PER")]
    assert "1 texts contain characters such as emoji" in result.stderr
    assert "LLMNER-W016" in result.stderr
    result, (doc,) = run(path, "--offsets", "utf16")
    assert ents(doc) == [("Ada", "PER"), ("Bo", "PER")]
    assert result.stderr == ""
    path = write(tmp_path / "a.jsonl", {"text": EMOJI, "label": [[2, 5, "PER"], [13, 15, "PER"]]})
    result, (doc,) = run(path, "--offsets", "codepoints")
    assert ents(doc) == [("Ada", "PER"), ("Bo", "PER")]
    assert result.stderr == ""


def test_half_a_character(tmp_path):
    path = write(tmp_path / "a.jsonl", {"text": EMOJI, "label": [[1, 6, "PER"]]})
    fails_at(path, 1, "the span (1, 6, PER) cuts a character in half")
    path = write(tmp_path / "a.jsonl", {"text": EMOJI, "label": [[3, 99, "PER"]]})
    fails_at(path, 1, "the span (3, 99, PER) is outside the text (0 to 19)")


@pytest.mark.parametrize(
    "row,reason",
    [
        ({"label": []}, 'the key "data" is missing'),
        ({"text": None, "label": []}, 'the key "text" is not a string'),
        ({"text": TEXT}, 'the key "label" is missing'),
        (
            {"text": TEXT, "label": ["positive"]},
            "the entity positive is neither [start, end, label]",
        ),
        ({"text": TEXT, "label": [[0, 3]]}, "the entity [0, 3] is neither [start, end, label]"),
        ({"text": TEXT, "label": [[0, 99, "PER"]]}, "is outside the text (0 to 23)"),
        ({"text": TEXT, "label": [["0", 3, "PER"]]}, "whole numbers"),
        ({"text": TEXT, "label": [[0, 8, "PER"], [4, 8, "PER"]]}, "overlap"),
    ],
)
def test_bad_row(tmp_path, row, reason):
    good = {"text": TEXT, "label": []}
    fails_at(write(tmp_path / "a.jsonl", good, row), 2, reason)


def test_text_field(tmp_path):
    path = write(tmp_path / "a.jsonl", {"sentence": TEXT, "label": [[18, 22, "LOC"]]})
    fails(path, 'the key "data" is missing')
    _, (doc,) = run(path, "--text-field", "sentence")
    assert ents(doc) == [("Bonn", "LOC")]
