"""scripts/from_padellm.py on made-up rows in every reading of the indices."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "from_padellm.py"


def convert(tmp_path, rows):
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    (tmp_path / "in.json").write_text("\n".join(lines) + "\n", encoding="utf8")
    out = tmp_path / "out.jsonl"
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path / "in.json"), str(out)],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        return done
    return [json.loads(line) for line in out.read_text(encoding="utf8").split("\n") if line]


@pytest.mark.parametrize(
    "text,mention,span",
    [
        ("Mira Stone sings", [0, 1, "Mira Stone", "PER"], (0, 10)),
        ("Mira Stone sings", [0, 2, "Mira Stone", "PER"], (0, 10)),
        ("石米拉唱歌", [0, 2, "石米拉", "PER"], (0, 3)),
        ("石米拉唱歌", [0, 3, "石米拉", "PER"], (0, 3)),
    ],
)
def test_indices_of_words_or_characters(tmp_path, text, mention, span):
    (row,) = convert(tmp_path, [[text, mention]])
    start, end = span
    assert row == {"text": text, "spans": [{"start": start, "end": end, "label": "PER"}]}


def test_texts_without_mentions_and_nested_ones(tmp_path):
    rows = convert(
        tmp_path,
        [
            ["Rain all day ."],
            [
                "Port Ellam Rowing Club",
                [0, 3, "Port Ellam Rowing Club", "ORG"],
                [0, 1, "Port Ellam", "LOC"],
            ],
        ],
    )
    assert rows[0]["spans"] == []
    assert [(s["start"], s["end"]) for s in rows[1]["spans"]] == [(0, 10), (0, 22)]


def test_line_separators_inside_a_text(tmp_path):
    rows = convert(tmp_path, [["石米拉\u2028唱歌", [0, 2, "石米拉", "PER"]], ["下雨。"]])
    assert [row["text"] for row in rows] == ["石米拉\u2028唱歌", "下雨。"]


def test_white_space_around_a_mention_is_left_out(tmp_path):
    (row,) = convert(tmp_path, [["石米拉 唱歌", [0, 3, "石米拉 ", "PER"]]])
    assert (row["spans"][0]["start"], row["spans"][0]["end"]) == (0, 3)


def test_a_mention_that_is_not_there(tmp_path):
    done = convert(tmp_path, [["Rain .", [0, 0, "Rain", "X"]], ["Snow .", [0, 0, "Rain", "X"]]])
    assert done.returncode == 1
    assert "in.json:2: the text at a mention's indices differs from it" in done.stderr


def test_a_line_that_is_no_array(tmp_path):
    done = convert(tmp_path, ['{"text": "Rain."}'])
    assert done.returncode == 1 and "in.json:1: not an array" in done.stderr
