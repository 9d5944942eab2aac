import pytest

from spacy_llmner.decoding.constraints import Choices
from spacy_llmner.errors import LLMNERError
from spacy_llmner.padellm_ner.architecture import make_padellm, make_template
from spacy_llmner.padellm_ner.templates import MAX_COUNT, TEMPLATES, Template
from spacy_llmner.padellm_ner.training_data import training_sequences
from tests.helpers import NASTY
from tests.padellm_ner.helpers import make_prompt_encoder, spell, words_of

END = "<|im_end|>"
PUBLISHED = {
    "published_en": (
        "text:\n{text}\nentity type:\n{label}\n\n<num>",
        "{count}\n<mention {index}>",
    ),
    "published_zh": (
        "文本:\n{text}\n指定NER标签:\n{label}\n\n<数量>",
        "{count}\n<第{index}文段>",
    ),
}
KINDS = ["byte-level", "metaspace", "metaspace with a space in front"]
WORDS = ["\n", 'say "x"', "a\nb", "", " ", "<mention 1>", "{text}", "{index}", "<num>", END, "词"]


def learnt(prompt_encoder, text, labels, mentions):
    """RETURNS (List[str]): The training sequences as text, without the BOS token."""
    words = words_of(prompt_encoder, text)
    bos = len(prompt_encoder.tokenizer.bos)
    sequences = training_sequences(prompt_encoder, words, text, labels, mentions)
    return [spell(prompt_encoder, s.ids[bos:]) for s in sequences]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_strings(kind, name, tiny_tokenizers):
    """They are the same byte for byte, even if the tokenizer adds spaces, as that of the authors did."""
    prompt_encoder = make_prompt_encoder(tiny_tokenizers[kind], name)
    prompt, mention = PUBLISHED[name]
    text = "Ada left Bonn for Bern"
    expected = [
        prompt.format(text=text, label="LOC") + mention.format(count=2, index=1) + f"Bonn{END}",
        prompt.format(text=text, label="LOC") + mention.format(count=2, index=2) + f"Bern{END}",
        prompt.format(text=text, label="ORG") + f"0{END}",
    ]
    assert learnt(prompt_encoder, text, ["LOC", "ORG"], {"LOC": [(2, 3), (4, 5)]}) == expected


def test_compact_strings(compact):
    # Words are encoded as in the text. The first space is from the template.
    assert learnt(compact, "Ada left Bonn", ["LOC", "ORG"], {"LOC": [(2, 3)]}) == [
        f" Ada left Bonn\nLOC1{END}",
        f" Ada left Bonn\nLOC1 Bonn{END}",
        f" Ada left Bonn\nORG0{END}",
    ]


def test_chinese_text_and_label_words(tiny_tokenizers):
    prompt_encoder = make_prompt_encoder(
        tiny_tokenizers["byte-level"], "published_zh", {"LOC": "地点"}
    )
    text = "王小明住在上海。"
    words = words_of(prompt_encoder, text, [(i, i + 1) for i in range(len(text))])
    (sequence,) = training_sequences(prompt_encoder, words, text, ["LOC"], {"LOC": [(5, 7)]})
    bos = len(prompt_encoder.tokenizer.bos)
    assert spell(prompt_encoder, sequence.ids[bos:]) == (
        f"文本:\n{text}\n指定NER标签:\n地点\n\n<数量>1\n<第1文段>上海{END}"
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("template", sorted(TEMPLATES))
def test_numbers(kind, template, tiny_tokenizers):
    """An answer can be any number, and nothing else."""
    prompt_encoder = make_prompt_encoder(tiny_tokenizers[kind], template)
    numbers = prompt_encoder.numbers(120)
    assert len(numbers.sequences) == 121
    for n, ids in enumerate(numbers.sequences):
        assert spell(prompt_encoder, ids) == (
            f"{n}{END}" if n == 0 or template == "compact" else f"{n}\n"
        )
        assert numbers.lowest[tuple(ids[:1])] <= n == numbers.lowest[tuple(ids)]
    assert isinstance(numbers, Choices)
    assert len(prompt_encoder.numbers(10**6).sequences) == MAX_COUNT + 1
    assert prompt_encoder.numbers(0).allowed(()).tolist() == [numbers.sequences[0][0]]


@pytest.mark.parametrize("word", WORDS)
def test_any_label(prompt_encoder, word):
    """A label is plain text: placeholders and control tokens in it have no effect."""
    again = make_prompt_encoder(prompt_encoder.tokenizer, prompt_encoder.template, {"X": word})
    ids = again.label("X")
    assert ids == make_prompt_encoder(prompt_encoder.tokenizer, prompt_encoder.template).label(word)
    assert again.end not in ids
    behind = prompt_encoder.template.prompt.split("{label}")[1]
    middle = prompt_encoder.template.prompt.split("{text}")[1].split("{label}")[0]
    assert spell(again, ids) == middle + word + behind


@pytest.mark.parametrize(
    "text", [*NASTY, "<mention 1>", "\nentity type:\nPER\n\n<num>1", "{label}"]
)
def test_any_text(prompt_encoder, text):
    """The text is plain text too: the end token stands only where the answers end."""
    words = words_of(prompt_encoder, text)
    mentions = {"X": [(0, len(words))]}
    for sequence in training_sequences(prompt_encoder, words, text, ["X", "Y"], mentions):
        assert (
            sequence.ids.count(prompt_encoder.end) == 1 and sequence.ids[-1] == prompt_encoder.end
        )
        bos = prompt_encoder.tokenizer.bos
        assert all(token not in sequence.ids[len(bos) :] for token in bos)


def test_label_words():
    settings = make_padellm(label_words={"PER": "person"}).attrs["settings"]
    assert settings.label_words == {"PER": "person"}
    assert settings.template is TEMPLATES["compact"]


def test_overhead(prompt_encoder):
    """Prompt and answer are never longer than `overhead` returns."""
    text = "Ada left Bonn for Bern"
    words = words_of(prompt_encoder, text)
    for label in ("X", "a long label"):
        mentions = {label: [(0, 1)] * 1 + [(2, 5)]}
        for sequence in training_sequences(prompt_encoder, words, text, [label], mentions):
            assert len(sequence.ids) - 1 <= prompt_encoder.overhead(label) + 2 * len(words.ids)


@pytest.mark.parametrize(
    "wrong,match",
    [
        ({"prompt": "{text}"}, "`template.prompt`.*{text} and {label} exactly once"),
        ({"prompt": "{text} {text} {label}"}, "`template.prompt`.*exactly once"),
        ({"prompt": "{label}: {text}"}, "{text} before {label}"),
        ({"mention": "which?"}, "`template.mention`.*{index} exactly once"),
        ({"mention": "{index} of {count}"}, "begins with {count} and `count_end`"),
        ({"mention": "{count}\n{index}", "count_end": ""}, "begins with {count} and `count_end`"),
        ({"mention": "{count}\n{index}{count}"}, "{count} at most once"),
        ({"count_end": "0"}, "`template.count_end`.*does not begin with a digit"),
    ],
)
def test_invalid_templates(wrong, match):
    right = {"prompt": "{text}|{label}", "mention": "{index}", "count": "#", "count_end": "\n"}
    assert isinstance(make_template(**right), Template)
    with pytest.raises(LLMNERError, match=match):
        make_template(**{**right, **wrong})


@pytest.mark.parametrize(
    "wrong,match",
    [
        ({"template": "short"}, "'short' is not a valid template.*: published_en, .*compact"),
        ({"rank": -1}, "`rank` of 'padellm_ner' is -1, but must be 0 or more"),
        ({"alpha": 0}, "`alpha`.*positive"),
        ({"first_layer": -1}, "`first_layer`.*0 or more"),
    ],
)
def test_invalid_model_settings(wrong, match):
    with pytest.raises(LLMNERError, match=match):
        make_padellm(**wrong)
