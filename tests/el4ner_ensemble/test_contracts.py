"""What users rely on: few passes, Chinese, other pipelines, failures, and more than two LLMs."""

import numpy as np
import pytest
import spacy
import torch

from spacy_llmner.el4ner_ensemble.voter import session
from spacy_llmner.el4ner_ensemble.voter.session import LLMSession
from spacy_llmner.errors import LLMNERError
from spacy_llmner.llm import registry as pool
from tests.el4ner_ensemble.helpers import MockVoter, initialized, make_mock_nlp, make_nlp
from tests.helpers import TEXTS, assert_same, assert_valid, entities, make_examples, scores

UNSEEN = "Yesterday Mira Stone left Port Ellam ; nobody saw Oskar Blum. Then tea in Varnholm."
CHINESE = [
    ("王小明住在上海。", [(0, 3, "PER"), (5, 7, "LOC")]),
    ("李雷在北京喝茶。", [(0, 2, "PER"), (3, 5, "LOC")]),
    ("今天没有人来。", []),
]
WORDS = {"PER": "人名", "LOC": "地名"}
NEW_CHINESE = "昨天李雷🚀从上海去了北京，王小明没去。"


@pytest.fixture
def asked(monkeypatch):
    """Record the questions of each stage: stage, passes, number of questions about each text."""
    noted, extract = [], LLMSession.extract
    for stage in ("classify", "verify"):
        monkeypatch.setattr(LLMSession, stage, _noting(getattr(LLMSession, stage), stage, noted))
    monkeypatch.setattr(
        LLMSession,
        "extract",
        lambda self: (
            extract(self) and [task_session.task.words[::3] for task_session in self.task_sessions]
        ),
    )
    return noted


def _noting(method, stage, noted):
    def ask(self, spans, *claims):
        before = self.passes
        answers = method(self, spans, *claims)
        noted.append((stage, self.passes - before, [len(a) for a in answers]))
        return answers

    return ask


def assert_one_pass_each(asked, n_texts=1):
    """Check that two voters classified several spans, and one verified several claims, in one pass each."""
    assert [stage for stage, _, _ in asked] == ["classify", "classify", "verify"]
    for _, _, questions in asked:
        assert len(questions) == n_texts and min(questions) > 1
    assert [passes for _, passes, _ in asked] == [1, 1, 1]


@pytest.fixture
def prompts(monkeypatch):
    """Record the prompts before the questions."""
    noted = []

    class Noting(session.TaskSession):
        def __init__(self, prompt_encoder, *args):
            super().__init__(prompt_encoder, *args)
            noted.append(prompt_encoder.tokenizer.hf.decode(self.ids, skip_special_tokens=False))

    monkeypatch.setattr(session, "TaskSession", Noting)
    return noted


def test_questions_about_a_text_take_one_pass(two, asked):
    """The questions for all types take one pass, and so do those about all claims."""
    two(UNSEEN)
    assert_one_pass_each(asked)


def test_questions_about_many_texts_take_one_pass(two, asked):
    list(two.pipe([UNSEEN, *TEXTS[:2]]))
    assert_one_pass_each(asked, 3)


def test_questions_take_one_pass_where_llms_take_turns(roomy, asked):
    """The prompt is read again in the same pass as the questions."""
    nlp = make_nlp({"a": roomy[0], "b": roomy[1]}, resident=1, labels=["PER", "LOC"], k=0)
    nlp(UNSEEN)
    assert_one_pass_each(asked)


@pytest.fixture(scope="module")
def chinese(roomy):
    """A base and a chat LLM, with a pool."""
    nlp = make_nlp({"a": roomy[0], "b": roomy[1]}, lang="zh", label_words=WORDS)
    return initialized(nlp, CHINESE)


def test_chinese_prompts(chinese, prompts):
    doc = chinese(NEW_CHINESE)
    assert_valid(doc, NEW_CHINESE)
    assert doc.spans["llmner"]
    # Each LLM reads the text with demonstrations and, before that, without.
    bare, shown = prompts[:2], prompts[2:]
    assert len(shown) == 2 and "<|im_start|>user" in shown[1] and "“上海”的类型：地名" in shown[0]
    for prompt in prompts:
        assert NEW_CHINESE in prompt and "人名" in prompt and "实体" in prompt
        assert "PER" not in prompt and "Text" not in prompt and "Names" not in prompt
        assert any(text in prompt for text, _ in CHINESE) == (prompt not in bare)


def test_chinese_offsets():
    voters = {"a": MockVoter({"李雷": {"PER": 0.9}, "上海": {"LOC": 0.9}, "王小明": {"PER": 0.8}})}
    nlp, pipe = make_mock_nlp(voters, lang="zh", initialize=False, k=1)
    pipe.initialize(lambda: make_examples(nlp, CHINESE))
    doc = pipe(nlp.make_doc(NEW_CHINESE))
    assert [(ent.text, ent.label_) for ent in doc.ents] == [
        ("李雷", "PER"),
        ("上海", "LOC"),
        ("王小明", "PER"),
    ]
    for start, end, _ in entities(doc):
        assert NEW_CHINESE[start:end] in voters["a"].knows
    (demonstration,) = voters["a"].asked[-1][2][0]
    assert demonstration.text in {text for text, _ in CHINESE[:2]}


def test_a_pipeline_of_another_language_takes_it(chinese, prompts, tmp_path):
    """Its prompts stay in the language that it was created for, even after saving."""
    nlp = spacy.blank("en")
    nlp.add_pipe("el4ner_ensemble", name="zh", source=chinese)
    text = "李雷 去 北京 ."
    doc = nlp(text)
    assert_valid(doc, text)
    nlp.to_disk(tmp_path)
    loaded = spacy.load(tmp_path)
    before = set(prompts)
    prompts.clear()
    assert_same(doc, loaded(text))
    assert set(prompts) == before
    assert all("实体" in prompt and "Text" not in prompt for prompt in before)


def test_zero_shot_in_a_pipeline_of_another_language(prompts, roomy, tmp_path):
    chinese = make_nlp({"a": roomy[0]}, lang="zh", labels=["PER"], k=0)
    nlp = spacy.blank("en")
    nlp.add_pipe("el4ner_ensemble", name="zh", source=chinese)
    nlp.to_disk(tmp_path)
    spacy.load(tmp_path)("李雷 去 北京 .")
    assert prompts and all("实体" in prompt and "Text" not in prompt for prompt in prompts)


@pytest.fixture(scope="module")
def beside(roomy, tmp_path_factory):
    """`padellm_ner`, and an ensemble that uses the same LLM with its adapter and without."""
    nlp = spacy.blank("en")
    llm = {"@misc": "spacy_llmner.LLM.v1", "name": roomy[0], "device": "cpu"}
    model = {"@architectures": "spacy_llmner.PaDeLLM.v1", "rank": 4, "alpha": 8}
    config = {"llm": llm, "model": model, "spans_key": "llmner", "threshold": 0.0}
    nlp.add_pipe("padellm_ner", config=config)
    nlp.initialize(lambda: make_examples(nlp))
    generator = torch.Generator().manual_seed(1)
    for p in nlp.get_pipe("padellm_ner").module.parameters():
        p.data.normal_(0.0, 0.2, generator=generator)
    folder = tmp_path_factory.mktemp("beside")
    nlp.to_disk(folder)
    tuned = {"folder": roomy[0], "adapter": str(folder / "padellm_ner")}
    other = initialized(make_nlp({"plain": roomy[0], "tuned": tuned}, pre_extract="gold"))
    return nlp, other


class Breaks:
    """Lets the LLM fail in the middle of its forward pass number `at`, in one view of it."""

    def __init__(self, module, at=0):
        self.module, self.left = module, at
        self.forward = module.forward
        module.forward = self

    def __call__(self, *args):
        self.left -= 1
        if self.left == 0:
            raise RuntimeError("broken")
        return self.forward(*args)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        del self.module.forward


def layer_of(ensemble, name):
    """RETURNS (nn.Module): A part of the LLM as a voter sees it."""
    voter = ensemble.get_pipe("el4ner_ensemble").voters[name]
    return voter._attached(voter.llm.load())[0].get_submodule("layers.3.mlp")


def said(nlp):
    return [scores(doc) for doc in map(nlp, [UNSEEN, *TEXTS[:2]])]


@pytest.mark.parametrize("who", ["plain", "tuned"])
@pytest.mark.parametrize("at", [1, 4, "last"])
def test_a_pass_that_fails_leaves_nothing_behind(beside, who, at):
    """The answers of others with the same LLM or the same adapter stay exactly the same."""
    padellm, ensemble = beside
    before, expected = said(padellm), said(ensemble)
    assert any(before) and any(expected)
    layer = layer_of(ensemble, who)
    if at == "last":
        with Breaks(layer) as counted:
            ensemble(UNSEEN)
        at = -counted.left
    with Breaks(layer, at):
        doc = ensemble(UNSEEN)
    assert list(doc._.el4ner_failed) == [who] and "broken" in doc._.el4ner_failed[who]
    assert said(padellm) == before
    assert said(ensemble) == expected


def test_all_voters_fail(beside):
    padellm, ensemble = beside
    before, expected = said(padellm), said(ensemble)
    with (
        Breaks(layer_of(ensemble, "plain"), 3),
        Breaks(layer_of(ensemble, "tuned"), 3),
        pytest.raises(LLMNERError, match="All voters of 'el4ner_ensemble' failed .*broken"),
    ):
        ensemble(UNSEEN)
    assert said(padellm) == before and said(ensemble) == expected


@pytest.fixture(scope="module")
def three(roomy):
    voters = dict(zip("abc", roomy))
    return initialized(make_nlp(voters, pre_extract="gold", provenance=True))


def test_three_llms_vote(three):
    pipe = three.get_pipe("el4ner_ensemble")
    before = (
        pipe.call_counts.pre_extraction,
        pipe.call_counts.extraction,
        pipe.call_counts.classification,
    )
    doc = three(UNSEEN)
    assert_valid(doc, UNSEEN)
    after = (
        pipe.call_counts.pre_extraction,
        pipe.call_counts.extraction,
        pipe.call_counts.classification,
    )
    assert np.subtract(after, before).tolist() == [3, 3, 3]
    assert doc.spans["llmner"]
    for span in doc.spans["llmner"]:
        votes = span._.el4ner["votes"]
        assert set(votes) == set("abc")
        chosen = [label for label, _ in votes.values()]
        most = max(map(chosen.count, chosen))
        assert chosen.count(span.label_) == most


@pytest.mark.parametrize("resident", [1, 2])
def test_three_llms_take_turns(three, resident, tmp_path):
    expected = [three(text) for text in (UNSEEN, *TEXTS[:2])]
    three.to_disk(tmp_path)
    nlp = spacy.load(tmp_path, config={"components.el4ner_ensemble.resident": resident})
    pool.clear()
    for one, other in zip(expected, nlp.pipe([UNSEEN, *TEXTS[:2]])):
        assert_same(one, other)
        assert len(pool.loaded()) <= resident
