"""What the tests of `padellm_ner` share: pipelines, wordings, and an LLM that knows the answers."""

import random
from types import SimpleNamespace

import numpy as np
import spacy
import torch

from spacy_llmner.decoding.engine import DecodingEngine
from spacy_llmner.decoding.tree import Scores
from spacy_llmner.llm.tokenization import LLMTokenizer
from spacy_llmner.llm.word_tokens import word_tokens
from spacy_llmner.padellm_ner.templates import TEMPLATES, TemplateEncoder
from tests.helpers import TRAIN, make_examples, make_sgd

# One string twice, under its label.
TWICE = ("From Varnholm to Varnholm .", [(5, 13, "LOC"), (17, 25, "LOC")])
DATA = [*TRAIN, TWICE]


def make_nlp(llm, *, lang="en", cfg=None, name="padellm_ner", **model):
    """RETURNS (Language): With one untrained padellm_ner on the CPU."""
    nlp = spacy.blank(lang)
    settings = {"rank": 8, "alpha": 16, "first_layer": 0, **model}
    config = {
        "llm": {"@misc": "spacy_llmner.LLM.v1", "name": str(llm), "device": "cpu"},
        "model": {"@architectures": "spacy_llmner.PaDeLLM.v1", **settings},
    }
    nlp.add_pipe("padellm_ner", name=name, config={**config, **(cfg or {})})
    return nlp


def initialized(nlp, data=DATA, seed=0):
    random.seed(seed)
    nlp.initialize(lambda: make_examples(nlp, data))
    return nlp


def scrambled(nlp, seed=0):
    """Give an initialized adapter random weights, so that it changes something."""
    torch_random = torch.Generator().manual_seed(seed)
    for pipe in (nlp.get_pipe(name) for name in nlp.pipe_names):
        for p in pipe.module.parameters():
            p.data.copy_(torch.randn(p.shape, generator=torch_random) * 0.3)
    return nlp


def train(nlp, steps=30, data=DATA, learn_rate=0.01, examples=None):
    """Overfit. RETURNS (Language): The same pipeline."""
    initialized(nlp, data)
    examples = examples or make_examples(nlp, data)
    sgd = make_sgd(learn_rate, grad_clip=1.0)
    for _ in range(steps):
        nlp.update(examples, sgd=sgd)
    return nlp


def train_published(llm, folder=None):
    """RETURNS (Language): As published: wording, loss, counts, probabilities."""
    cfg = {"count": "argmax", "probability": "raw"}
    nlp = make_nlp(llm, template="published_en", loss="raw", cfg=cfg)
    return train(nlp, steps=60, learn_rate=0.01)


def make_wild(llm, folder=None):
    """RETURNS (Language): Random weights, which find all kinds of things under several labels."""
    cfg = {"count_threshold": 0.1, "deduplicate": "none"}
    return scrambled(initialized(make_nlp(llm, cfg=cfg)))


def make_wild_published(llm, folder=None):
    cfg = {"count": "argmax", "probability": "raw"}
    return scrambled(initialized(make_nlp(llm, template="published_en", cfg=cfg)))


PIPELINES = {
    "trained": lambda llm, folder: train(make_nlp(llm)),
    "published": train_published,
    "wild": make_wild,
    "wild_published": make_wild_published,
}


def make_prompt_encoder(tokenizer, template="compact", label_words=None):
    """tokenizer: One of transformers, or an LLMTokenizer."""
    if not isinstance(tokenizer, LLMTokenizer):
        tokenizer = LLMTokenizer(tokenizer)
    template = TEMPLATES.get(template, template)
    return TemplateEncoder(template, tokenizer, label_words or {})


def split(text):
    """RETURNS (List[Tuple[int, int]]): The words between white space, by characters."""
    out, reached = [], 0
    for word in text.split():
        start = text.index(word, reached)
        reached = start + len(word)
        out.append((start, reached))
    return out


def words_of(prompt_encoder, text, bounds=None):
    """RETURNS (WordTokens): Of the words between white space, or those given."""
    bounds = split(text) if bounds is None else bounds
    return word_tokens(prompt_encoder.tokenizer, text, bounds, inside=True)


def spell(prompt_encoder, ids):
    """RETURNS (str): Tokens as text, special ones included."""
    return prompt_encoder.tokenizer.hf.decode(
        ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
    )


class KnowingDecoder(DecodingEngine):
    """Runs requests without an LLM. Among the allowed tokens, it prefers those of some training sequences,
    with probability SURE.

    asked (List[List[List[int]]]): For each pass, the tokens from the root to each scored position.
    """

    SURE = 0.99

    def __init__(self, sequences, **settings):
        device = torch.device("cpu")
        llm = SimpleNamespace(
            decoder=None, device=device, is_spread=False, require=lambda use: None
        )
        super().__init__(llm, **settings)
        self.known = {}
        for s in sequences:
            for k, (token, loss) in enumerate(zip(s.ids, s.loss)):
                if loss:
                    self.known.setdefault(tuple(s.ids[:k]), set()).add(token)
        self.at = {}
        self.asked = []
        self.read = []

    def _pass(self, tokens, passes):
        self.passes += 1
        self.tokens += len(tokens)
        self.asked.append([])
        for node, k in tokens:
            self.at[int(node.path[node.first + k])] = node.ids[k]
            self.read.append(node.ids[k])
        for node, k in tokens:
            if k in node.ask:
                path = [self.at[int(slot)] for slot in node.path[: node.first + k + 1]]
                self.asked[-1].append(path)
                node.answers[k] = self._knows(path, node.ask[k])

    def _knows(self, path, allowed):
        right = [k for k, token in enumerate(allowed) if token in self.known.get(tuple(path), ())]
        p = np.full(len(allowed), 1.0 / max(len(allowed), 1))
        if right and len(right) < len(allowed):
            p[:] = (1 - self.SURE) / (len(allowed) - len(right))
            p[right] = self.SURE / len(right)
        return Scores(allowed, np.log(p), np.log(0.5) if self.raw else None)
