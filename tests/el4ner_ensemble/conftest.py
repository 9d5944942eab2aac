"""Tiny random LLMs that read long prompts, and pipelines with them."""

import json
from pathlib import Path

import pytest

from spacy_llmner.el4ner_ensemble.voter import session
from tests.el4ner_ensemble.helpers import initialized, make_nlp

CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="session", autouse=True)
def short_lists():
    """Random LLMs list all that they may."""
    usual, session.MAX_LIST_TOKENS = session.MAX_LIST_TOKENS, 16
    yield
    session.MAX_LIST_TOKENS = usual


@pytest.fixture(scope="session")
def roomy(make_tiny, tmp_path_factory):
    """Folders of three tiny LLMs with 4096 positions; the second one has a chat template."""
    root = tmp_path_factory.mktemp("voters")
    return [
        _save(make_tiny, root / name, shape, seed, chat)
        for name, shape, seed, chat in (
            ("one", "llama", 7, False),
            ("two", "qwen2", 8, True),
            ("three", "llama", 3, False),
        )
    ]


def _save(make_tiny, folder, shape, seed, chat):
    make_tiny(folder, shape, seed)
    _change(folder / "config.json", max_position_embeddings=4096)
    if chat:
        _change(folder / "tokenizer_config.json", chat_template=CHAT)
    return str(folder)


def _change(path: Path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.fixture(scope="session")
def two(roomy):
    """An ensemble of two LLMs with the default settings. Tests leave it as it is."""
    return initialized(make_nlp({"a": roomy[0], "b": roomy[1]}))
