import pytest

from tests.corpora.helpers import ents, fails, run, write, write_list

TEXT = "Ada Hale lives in Bonn."
EMOJI = "🚀 Ada 🚀🚀 met Bo."


def region(start, end, *labels, text=None, **others):
    value = {"start": start, "end": end, "labels": list(labels)}
    if text is not None:
        value["text"] = text
    return {
        "id": "x",
        "from_name": "label",
        "to_name": "text",
        "type": "labels",
        "value": value,
        **others,
    }


def task(*regions, text=TEXT, **others):
    return {
        "id": 1,
        "data": {"text": text},
        "annotations": [{"id": 7, "result": regions}],
        **others,
    }


def test_json(tmp_path):
    mood = {"from_name": "mood", "to_name": "text", "type": "choices", "value": {"choices": ["x"]}}
    sure = {**mood, "value": {"start": 0, "end": 8, "choices": ["sure"]}}
    link = {"type": "relation", "from_id": "a", "to_id": "b", "direction": "right"}
    regions = [mood, region(0, 8, "PER", text="Ada Hale"), sure, link, region(18, 22, "LOC")]
    tasks = [task(*regions), task(text="Rain again.", predictions=[{"result": regions}])]
    for path in (write_list(tmp_path / "a.json", *tasks), write(tmp_path / "a.jsonl", *tasks)):
        _, docs = run(path)
        assert [doc.text for doc in docs] == [TEXT, "Rain again."]
        assert [ents(doc) for doc in docs] == [[("Ada Hale", "PER"), ("Bonn", "LOC")], []]


def test_json_min(tmp_path):
    labelled = [{"start": 0, "end": 8, "text": "Ada Hale", "labels": ["PER"]}]
    row = {"text": TEXT, "id": 1, "label": labelled, "annotator": 1, "annotation_id": 7}
    other = {**row, "label": [], "annotation_id": 8}
    free = {"text": "Rain again.", "id": 2, "annotator": 1, "annotation_id": 9}
    not_yet = {"text": "Bo met Ada.", "id": 3, "annotator": {}, "annotation_id": None}
    path = write_list(tmp_path / "a.json", row, other, free, not_yet)
    result, docs = run(path)
    assert [ents(doc) for doc in docs] == [[("Ada Hale", "PER")], []]
    assert "1 texts left out: nobody has annotated them" in result.stdout
    assert "1 annotations left out: the text was annotated before" in result.stdout
    _, (doc,) = run(write_list(path, {"text": TEXT, "ner": labelled}))
    assert ents(doc) == [("Ada Hale", "PER")]


def test_annotations(tmp_path):
    """The first one that isn't cancelled counts."""
    cancelled = {"result": [], "was_cancelled": True}
    first = {"result": [region(0, 8, "PER")], "was_cancelled": False}
    second = {"result": [region(18, 22, "LOC")]}
    data = {"text": TEXT}
    path = write_list(
        tmp_path / "a.json",
        {"data": data, "annotations": [cancelled, first, second]},
        {"data": data, "annotations": [cancelled]},
        {"data": data, "annotations": []},
        {"data": data},
    )
    result, (doc,) = run(path)
    assert ents(doc) == [("Ada Hale", "PER")]
    assert "1 annotations left out: another annotation of the same text is used" in result.stdout
    assert "1 texts left out: all annotators have skipped them" in result.stdout
    assert "2 texts left out: nobody has annotated them" in result.stdout


def test_several_labels_of_a_region(tmp_path):
    path = write_list(tmp_path / "a.json", task(region(0, 8, "PER", "AUTHOR")))
    _, (doc,) = run(path, "--nested")
    assert [(s.text, s.label_) for s in doc.spans["sc"]] == [
        ("Ada Hale", "PER"),
        ("Ada Hale", "AUTHOR"),
    ]
    fails(path, "item 1: 'Ada Hale' and 'Ada Hale' overlap (use --nested to allow it)")


def test_offsets(tmp_path):
    """Old versions of Label Studio count UTF-16 code units."""
    new = task(region(2, 5, "PER", text="Ada"), region(13, 15, "PER", text="Bo"), text=EMOJI)
    old = task(region(3, 6, "PER", text="Ada"), region(16, 18, "PER", text="Bo"), text=EMOJI)
    path = write_list(tmp_path / "a.json", new, old)
    result, docs = run(path)
    assert [ents(doc) for doc in docs] == [[("Ada", "PER"), ("Bo", "PER")]] * 2
    assert "1 texts with offsets in UTF-16 code units, which were converted" in result.stdout
    # Without the texts of the entities it can't be seen.
    path = write_list(path, task(region(2, 5, "PER"), text=EMOJI))
    assert ents(run(path)[1][0]) == [("Ada", "PER")]
    path = write_list(path, task(region(3, 6, "PER"), text=EMOJI))
    assert ents(run(path, "--offsets", "utf16")[1][0]) == [("Ada", "PER")]


@pytest.mark.parametrize("offsets", ["auto", "codepoints", "utf16"])
def test_text_elsewhere(tmp_path, offsets):
    wrong = [
        task(region(1, 8, "PER", text="Ada Hale")),
        task(region(90, 98, "PER", text="Ada Hale")),
    ]
    wrong.append(task(region(1, 4, "PER", text="Ada"), text=EMOJI))
    path = write_list(tmp_path / "a.json", *wrong, task(region(0, 8, "PER", text="Ada Hale")))
    result, (doc,) = run(path, "--offsets", offsets)
    assert ents(doc) == [("Ada Hale", "PER")]
    assert "3 texts left out: the text of an entity is not at its offsets" in result.stdout


def test_white_space_in_the_text_of_a_region(tmp_path):
    text = "Bank  of\nBonn fell."
    path = write_list(
        tmp_path / "a.json", task(region(0, 14, "ORG", text="Bank of\\nBonn"), text=text)
    )
    result, (doc,) = run(path)
    assert ents(doc) == [("Bank  of\nBonn", "ORG")]
    assert "1 spans trimmed: they began or ended with white space" in result.stdout


def test_text_field(tmp_path):
    annotations = [{"result": [region(0, 8, "PER")]}]
    path = write_list(
        tmp_path / "a.json", {"data": {"body": TEXT, "n": 3}, "annotations": annotations}
    )
    assert ents(run(path)[1][0]) == [("Ada Hale", "PER")]
    data = {"body": TEXT, "title": "Ada Hale at home"}
    path = write_list(path, {"data": data, "annotations": annotations})
    fails(path, "item 1: choose the text with --text-field: body, title")
    _, (doc,) = run(path, "--text-field", "title")
    assert doc.text == "Ada Hale at home"
    fails(path, 'item 1: the key "none" is missing', "--text-field", "none")


@pytest.mark.parametrize(
    "row,reason",
    [
        (task(region(0, 99, "PER")), "the span (0, 99, PER) is outside the text (0 to 23)"),
        (task(region(0, 0, "PER")), "is empty"),
        (task(region("0", 8, "PER")), 'the key "start" is not a whole number'),
        (task(region(0, 8, None)), "the label None is empty or not a string"),
        (task({"value": {"labels": ["PER"], "start": 0}}), 'the key "end" is missing'),
        (task({"value": {"start": "/p[1]", "hypertextlabels": ["PER"]}}), "a region of HTML"),
        (task(region(0, 8, "PER"), region(0, 8, "PER", to_name="title")), "several labelled texts"),
        ({"data": {}, "annotations": [{"result": []}]}, 'the key "text" is missing'),
        ({"data": {"text": TEXT}, "annotations": [{}]}, 'the key "result" is missing'),
        ({"data": {"text": TEXT}, "annotations": [3]}, "not in the format label-studio ("),
        ({"data": {"text": 3}, "annotations": [{"result": []}]}, 'the key "text" is not a string'),
    ],
)
def test_bad_task(tmp_path, row, reason):
    path = write_list(tmp_path / "a.json", task(), row)
    fails(path, f"[LLMNER113] {path}, item 2: ")
    fails(path, reason)
