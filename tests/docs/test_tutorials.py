"""The tutorials run: all Python blocks, and all commands in bash blocks but `pip` and downloads."""

from doctest import ELLIPSIS, OutputChecker

import pytest

import spacy_llmner.cli  # noqa: F401  (adds the command group to spaCy's command line)
from tests.docs.helpers import FENCE, ROOT, command_lines, expected

TUTORIALS = sorted(ROOT.glob("docs/tutorials/*.md"))
# The tests have the LLM already, and don't install anything.
NOT_RUN = (["llmner", "download"],)


@pytest.mark.llm
@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_tutorial(page, smollm2, run, tmp_path, monkeypatch, capsys):
    text = page.read_text()
    assert len(text.splitlines()) <= 120
    monkeypatch.chdir(tmp_path)
    namespace = {}
    for _, language, block in FENCE.findall(text):
        if language == "bash":
            for args in command_lines(block):
                if args[:2] not in NOT_RUN:
                    run(*args)
        elif language == "python":
            capsys.readouterr()
            exec(block, namespace)
            printed = capsys.readouterr().out
            assert OutputChecker().check_output(expected(block), printed, ELLIPSIS), printed
        else:
            # Commands that need more than this machine has. The page says why they are not run.
            assert language == "console" and "not run here" in text
