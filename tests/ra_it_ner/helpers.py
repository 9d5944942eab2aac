"""What the tests of `ra_it_ner` share: pipelines on tiny LLMs, whose hidden states find the examples."""

import random

import spacy
import torch

from spacy_llmner.llm.chat import ChatEncoder
from spacy_llmner.llm.tokenization import LLMTokenizer
from spacy_llmner.ra_it_ner.conversation import CONVERSATIONS, ConversationEncoder
from spacy_llmner.retrieval.examples import LabelledText
from tests.helpers import TRAIN, make_examples, make_sgd

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
BO = LabelledText("Bo left Bonn.", ((0, 2, "PER"), (8, 12, "LOC")))
ADA = LabelledText('Ada said "no".', ((0, 3, "PER"),))


def make_nlp(llm, *, k=1, cfg=None, name="ra_it_ner", lang="en", retrieval=None, **model):
    """RETURNS (Language): With one untrained ra_it_ner on the CPU."""
    nlp = spacy.blank(lang)
    shared = {"@misc": "spacy_llmner.LLM.v1", "name": str(llm), "device": "cpu"}
    settings = {"rank": 8, "alpha": 16, "first_layer": 0, **model}
    config = {
        "llm": shared,
        "encoder": {"@misc": "spacy_llmner.LLMEncoder.v1", "llm": shared},
        "retrieval": {"@misc": "spacy_llmner.Retrieval.v1", "k": k, **(retrieval or {})},
        "model": {"@architectures": "spacy_llmner.RAIT.v1", **settings},
    }
    nlp.add_pipe("ra_it_ner", name=name, config={**config, **(cfg or {})})
    return nlp


def initialized(nlp, data=TRAIN, seed=0):
    random.seed(seed)
    nlp.initialize(lambda: make_examples(nlp, data))
    return nlp


def scrambled(nlp, seed=0):
    """Give an initialized adapter random weights, so that it changes something."""
    generator = torch.Generator().manual_seed(seed)
    for p in nlp.get_pipe("ra_it_ner").module.parameters():
        p.data.copy_(torch.randn(p.shape, generator=generator) * 0.3)
    return nlp


def train(nlp, steps=70, data=TRAIN, learn_rate=0.01):
    """Overfit. RETURNS (Language): The same pipeline."""
    initialized(nlp, data)
    examples = make_examples(nlp, data)
    sgd = make_sgd(learn_rate, grad_clip=1.0)
    for _ in range(steps):
        nlp.update(examples, sgd=sgd)
    return nlp


def make_wild(llm, folder=None):
    """RETURNS (Language): Random weights, which find all kinds of things under several labels."""
    return scrambled(initialized(make_nlp(llm, k=2, cfg={"list_threshold": 0.2})))


def make_free(llm, folder=None):
    """RETURNS (Language): Random weights that can write anything."""
    cfg = {"constrained": False, "max_answer_tokens": 12}
    return scrambled(initialized(make_nlp(llm, cfg=cfg, occurrences="all")))


# "trained" reads one example before each text; "vanilla" is plain instruction tuning (k = 0).
PIPELINES = {
    "trained": lambda llm, folder: train(make_nlp(llm, cfg={"negative_rate": 1.0}), steps=100),
    "vanilla": lambda llm, folder: train(make_nlp(llm, k=0, cfg={"negative_rate": 1.0}), steps=40),
    "wild": make_wild,
    "free": make_free,
}


def make_prompt_encoder(hf, conversation="published_en", *, system=None, notation="json", **words):
    """hf: A tokenizer of transformers."""
    tokenizer = LLMTokenizer(hf)
    return ConversationEncoder(
        ChatEncoder(tokenizer, "tiny"),
        len(hf),
        CONVERSATIONS[conversation],
        system,
        notation,
        words.get("label_words", {}),
        words.get("label_descriptions", {}),
    )
