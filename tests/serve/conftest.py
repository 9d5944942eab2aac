"""Servers that the tests share."""

import shutil

import pytest

from tests.conftest import CHAT, change_json
from tests.ember_probe.helpers import make_nlp, train
from tests.serve.helpers import process, serving
from tests.serve.scripted import Scripted


@pytest.fixture(scope="session")
def chat_llm(tiny_llm, tmp_path_factory):
    """The tiny Llama with a chat template and 1024 positions."""
    folder = tmp_path_factory.mktemp("llm") / "chat"
    shutil.copytree(tiny_llm, folder)
    change_json(folder / "config.json", max_position_embeddings=1024)
    change_json(folder / "tokenizer_config.json", chat_template=CHAT)
    return str(folder)


@pytest.fixture(scope="session")
def nlp(chat_llm):
    return train(make_nlp(chat_llm, width=32))


@pytest.fixture(scope="session")
def server(nlp):
    with serving(nlp) as running:
        yield running


@pytest.fixture(scope="session")
def folder(nlp, tmp_path_factory):
    """The pipeline on disk."""
    path = tmp_path_factory.mktemp("saved") / "ember_probe" / "model-best"
    path.mkdir(parents=True)
    nlp.to_disk(path)
    return path


@pytest.fixture(scope="session")
def other_process(folder):
    """URL of a server in another process."""
    with process(folder) as (url, _):
        yield url


@pytest.fixture
def client(server):
    return server.client()


@pytest.fixture(scope="session")
def scripted():
    """A server that answers what it is told to."""
    running = Scripted()
    yield running
    running.stop()


@pytest.fixture(scope="session")
def front(nlp, scripted):
    """A server in front of the scripted one."""
    with serving(nlp, upstream=scripted.url) as running:
        yield running
