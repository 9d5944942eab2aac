"""What the tests of `el4ner_ensemble` share: an encoder without a model, voters that know their answers."""

from hashlib import blake2b

import numpy as np
import spacy

from spacy_llmner.el4ner_ensemble.interfaces import NONE, LabelSet, Task
from spacy_llmner.el4ner_ensemble.stages import Ensemble, EnsembleSettings
from spacy_llmner.el4ner_ensemble.voter.llm_voter import ModelResidency
from tests.helpers import TRAIN, make_examples

WIDTH = 24
LABELS = ["LOC", "PER"]


class FakeEncoder:
    """Texts that share letters are similar. Counts the texts and spans that it encodes."""

    name = "fake"
    options = "--encoder fake"
    width = WIDTH

    def __init__(self, fingerprint="fake-1"):
        self.fingerprint = fingerprint
        self.texts = 0
        self.spans = 0

    def encode(self, texts, *, progress=False):
        self.texts += len(texts)
        return np.stack([vector(t) for t in texts]) if len(texts) else np.zeros((0, WIDTH))

    def encode_spans(self, texts, spans):
        self.spans += sum(len(inside) for inside in spans)
        return [
            np.stack([vector(text[a:b]) for a, b in inside])
            if len(inside)
            else np.zeros((0, WIDTH), dtype=np.float32)
            for text, inside in zip(texts, spans)
        ]


def make_fake_encoder(fingerprint="fake-1"):
    return FakeEncoder(fingerprint)


spacy.registry.misc("el4ner_tests.Encoder.v1", func=make_fake_encoder)


def vector(text):
    """RETURNS (ndarray): Of length 1: which letters a text has, and a little of what it is."""
    out = np.zeros(WIDTH, dtype=np.float32)
    for character in text.casefold():
        if character.isalnum():
            out[ord(character) % (WIDTH - 1)] += 1.0
    out[-1] = blake2b(text.encode("utf8", "replace"), digest_size=1).digest()[0] / 256
    return out / np.maximum(np.linalg.norm(out), 1e-9)


class MockVoter:
    """A voter without an LLM.

    knows (Dict[str, Dict[str, float]]): The strings that it finds, each with the probability of each type.
    true (Dict[Tuple[str, str], float]): The probability that (string, type) is true. Default 0.9.
    fails (Dict[str, Set[str]]): By stage, the texts on which it fails.
    """

    def __init__(self, knows=None, true=None, fails=None, weight=1.0, llm_key=None):
        self.knows = knows or {}
        self.true = true or {}
        self.fails = fails or {}
        self.weight = weight
        self.llm_key = llm_key
        self.name = ""
        self.asked = []
        self.kept = []
        self.unloaded = 0
        self.saved = {}

    @property
    def identity(self):
        return id(self)

    def register(self, name, max_batch_tokens, component):
        self.name = name

    def prepare(self, asked):
        return {"kind": "mock"}

    def restore(self, saved):
        self.saved = dict(saved)

    def word_lengths(self, text, words):
        return [1] * len(words)

    def capacity(self, asked):
        return 1000

    def count_tokens(self, task, asked):
        return len(task.words)

    def session(self, tasks, asked, *, keep):
        self.kept.append(keep)
        return MockSession(self, tasks)

    def unload(self):
        self.unloaded += 1


class MockSession:
    def __init__(self, voter, tasks):
        self.voter = voter
        self.tasks = tasks
        self.passes = self.tokens = 0

    def extract(self):
        stage = "extraction" if any(t.demonstrations for t in self.tasks) else "any extraction"
        self._note(stage)
        return [
            [
                (at, at + len(string))
                for string in self.voter.knows
                for at in [task.window_text.find(string) + task.start]
                if string in task.window_text
            ]
            for task in self.tasks
        ]

    def classify(self, spans):
        self._note("classification", spans)
        return [
            [self.voter.knows.get(task.text[a:b], {NONE: 1.0}) for a, b in of_task]
            for task, of_task in zip(self.tasks, spans)
        ]

    def verify(self, spans, claims):
        self._note("verification", claims)
        return [
            [self.voter.true.get((task.text[a:b], label), 0.9) for a, b, label in of_task]
            for task, of_task in zip(self.tasks, claims)
        ]

    def close(self):
        pass

    def _note(self, stage, what=None):
        self.voter.asked.append((stage, what, [task.demonstrations for task in self.tasks]))
        for failing, texts in self.voter.fails.items():
            if failing in stage and any(task.text in texts for task in self.tasks):
                raise MemoryError("no room")
        self.tokens += 10 * len(self.tasks)


def words_of(text):
    doc = spacy.blank("en").make_doc(text)
    return [(token.idx, token.idx + len(token)) for token in doc if not token.is_space]


def make_ensemble(voters, labels=("LOC", "ORG", "PER"), resident=None, **settings):
    """RETURNS (Ensemble): An ensemble of mock voters."""
    for name, voter in voters.items():
        voter.register(name, 100, "el4ner_ensemble")
    members = [voters[name] for name in sorted(voters)]
    defaults = {
        "vote": "majority",
        "verifier": sorted(voters)[0],
        "verify_threshold": 0.5,
        "skip_unanimous": False,
    }
    return Ensemble(
        members,
        ModelResidency(members, resident),
        LabelSet({label: label.lower() for label in labels}),
        EnsembleSettings(**{**defaults, **settings}),
        100,
    )


def decide(ensemble, *texts):
    """RETURNS (List[Dict[str, Decision]]): For each text what was kept, by string."""
    tasks = [Task(text, words_of(text)) for text in texts]
    return [
        {task.text[d.start : d.end]: d for d in decisions if d.kept}
        for task, decisions in zip(tasks, ensemble.decide(tasks))
    ]


def make_nlp(llms, *, lang="en", name="el4ner_ensemble", **cfg):
    """llms (Dict[str, Any]): By name, the folder of an LLM or the settings of a voter.
    RETURNS (Language): With one ensemble that was not initialized."""
    nlp = spacy.blank(lang)
    nlp.add_pipe("el4ner_ensemble", name=name, config=config_of(llms, **cfg))
    return nlp


def config_of(llms, **cfg):
    voters = {}
    for key, voter in llms.items():
        settings = voter if isinstance(voter, dict) else {"folder": voter}
        folder = settings.get("folder")
        rest = {k: v for k, v in settings.items() if k != "folder"}
        block = {"@misc": "spacy_llmner.LLM.v1", "name": str(folder), "device": "cpu"}
        voters[key] = {"@misc": "spacy_llmner.Voter.v1", "llm": block, **rest}
    encoder = {"@misc": "el4ner_tests.Encoder.v1"}
    return {"llms": voters, "encoder": encoder, "k": 2, "verify_threshold": 0.0, **cfg}


def make_mock_nlp(voters, lang="en", initialize=True, **cfg):
    """RETURNS (Language): With an ensemble of mocks."""
    from spacy_llmner.el4ner_ensemble.component import EL4NER

    nlp = spacy.blank(lang)
    pipe = EL4NER(nlp, voters, FakeEncoder(), **{"k": 2, **cfg})
    if initialize:
        pipe.initialize(lambda: make_examples(nlp))
    return nlp, pipe


def initialized(nlp, data=TRAIN):
    nlp.initialize(lambda: make_examples(nlp, data))
    return nlp


PIPELINES = {
    "trained": lambda llms, folder: initialized(make_nlp({"a": llms[0], "b": llms[1]})),
}
