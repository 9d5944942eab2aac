"""Conversations are byte for byte as published."""

import pytest

from spacy_llmner.errors import LLMNERError
from spacy_llmner.ra_it_ner.architecture import make_conversation
from spacy_llmner.retrieval.examples import LabelledText
from tests.ra_it_ner.helpers import ADA, BO, CHATML, make_prompt_encoder


@pytest.fixture
def hf(tiny_tokenizers):
    tokenizer = tiny_tokenizers["byte-level"]
    tokenizer.chat_template = CHATML
    yield tokenizer
    tokenizer.chat_template = None


def said(prompt_encoder, text, examples, label):
    return prompt_encoder.chat.text(prompt_encoder.turns(text, examples, label))


def test_english_without_examples(hf):
    assert said(make_prompt_encoder(hf), "Ada left.", [], "person") == (
        "<|im_start|>user\nText: Ada left.<|im_end|>\n"
        "<|im_start|>assistant\nI've read this text.<|im_end|>\n"
        "<|im_start|>user\nWhat describes person in the text?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


@pytest.mark.parametrize(
    ("notation", "bo", "ada"),
    [
        ("python", "[{'Bo': 'PER'}, {'Bonn': 'LOC'}]", "[{'Ada': 'PER'}]"),
        ("json", '[{"Bo": "PER"}, {"Bonn": "LOC"}]', '[{"Ada": "PER"}]'),
    ],
)
def test_english_behind_two_examples(hf, notation, bo, ada):
    prompt_encoder = make_prompt_encoder(hf, notation=notation)
    assert said(prompt_encoder, "Ada left.", [BO, ADA], "person") == (
        "<|im_start|>user\nHere are some examples of named entity recognition:\n"
        f"Text: Bo left Bonn.\nEntity: {bo}\n"
        f'Text: Ada said "no".\nEntity: {ada}<|im_end|>\n'
        "<|im_start|>assistant\nI've read these examples.<|im_end|>\n"
        "<|im_start|>user\nText: Ada left.<|im_end|>\n"
        "<|im_start|>assistant\nI've read this text.<|im_end|>\n"
        "<|im_start|>user\nWhat describes person in the text?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


@pytest.mark.parametrize(
    ("notation", "entities"), [("python", "[{'王小明': '人名'}]"), ("json", '[{"王小明": "人名"}]')]
)
def test_chinese(hf, notation, entities):
    prompt_encoder = make_prompt_encoder(hf, "published_zh", notation=notation)
    wang = LabelledText("王小明来了。", ((0, 3, "人名"),))
    plain = (
        "<|im_start|>user\n文本： 他走了。<|im_end|>\n"
        "<|im_start|>assistant\n我已读完这段文本。<|im_end|>\n"
        '<|im_start|>user\n文本中属于"人名"的实体有哪些？<|im_end|>\n'
        "<|im_start|>assistant\n"
    )
    assert said(prompt_encoder, "他走了。", [], "人名") == plain
    example = f"文本：王小明来了。\n实体：{entities}"
    assert said(prompt_encoder, "他走了。", [wang, wang], "人名") == (
        f"<|im_start|>user\n以下是一些命名实体识别的例子：\n{example}\n{example}<|im_end|>\n"
        "<|im_start|>assistant\n我已读完这些例子。<|im_end|>\n" + plain
    )


def test_tokens_spell_the_conversation(hf):
    prompt_encoder = make_prompt_encoder(hf)
    ids = prompt_encoder.encode("Ada left.", [BO, ADA], "person")
    assert hf.decode(ids, clean_up_tokenization_spaces=False) == said(
        prompt_encoder, "Ada left.", [BO, ADA], "person"
    )


@pytest.mark.parametrize("system", ["", "Be brief."])
def test_system(hf, system):
    out = said(make_prompt_encoder(hf, system=system), "Ada left.", [], "person")
    assert out.startswith(f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\nText: ")


def test_label_words_and_descriptions(hf):
    prompt_encoder = make_prompt_encoder(
        hf, label_words={"PER": "person"}, label_descriptions={"PER": "by name"}
    )
    assert prompt_encoder.question("PER") == "What describes person (by name) in the text?"
    assert prompt_encoder.question("research field") == "What describes research field in the text?"
    assert '[{"Bo": "person"}, {"Bonn": "LOC"}]' in prompt_encoder.example(BO)


def test_text_with_slots_is_text(hf):
    odd = LabelledText("Use {entities} or {text}.", ((4, 14, "X"),))
    assert make_prompt_encoder(hf).example(odd) == (
        'Text: Use {entities} or {text}.\nEntity: [{"{entities}": "X"}]'
    )
    turns = make_prompt_encoder(hf).turns("{label} {text}", [], "{text}")
    assert turns[0][1] == "Text: {label} {text}"
    assert turns[-1][1] == "What describes {text} in the text?"


def test_own_conversation():
    own = make_conversation(passage="T: {text}", question="{label}?")
    assert own.example == "Text: {text}\nEntity: {entities}"
    with pytest.raises(LLMNERError, match=r"`conversation.question` of 'ra_it_ner'.*\{label\}"):
        make_conversation(passage="T: {text}", question="?")
    with pytest.raises(LLMNERError, match=r"`conversation.example`.*\{text\} and \{entities\}"):
        make_conversation(passage="T: {text}", question="{label}?", example="{text}")


def test_acknowledgements(hf):
    prompt_encoder = make_prompt_encoder(hf)
    ids = prompt_encoder.encode("Ada left.", [BO], "person")
    learnt = prompt_encoder.acknowledgements("Ada left.", [BO], "person")
    assert len(learnt) == len(ids)
    inside = hf.decode([t for t, x in zip(ids, learnt) if x])
    assert inside == "I've read these examples.I've read this text."
