"""What the benchmark of quality trains on, if it keeps what is learnt from epoch to epoch."""

import sys
from pathlib import Path

import numpy as np
import spacy

from tests.helpers import make_examples, make_sgd

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from padellm_quality import Kept  # noqa: E402


def test_each_text_teaches_what_it_says(tiny_llm):
    """`nlp.update` copies examples, and the copies of one batch may lie where those of another lay."""
    nlp = spacy.blank("en")
    settings = {"rank": 2, "alpha": 4, "@architectures": "spacy_llmner.PaDeLLM.v1"}
    pipe = nlp.add_pipe("padellm_ner", config={"llm": {"name": tiny_llm}, "model": settings})
    examples = make_examples(nlp)
    nlp.initialize(lambda: examples)
    expected = [pipe.make_training_batch([eg])[0].ids for eg in examples]
    taught, made = [], []

    def packed(batch, make=pipe.make_training_batch):
        made.append(len(batch))
        return make(batch)

    kept = Kept(packed)

    def noted(batch):
        taught.append(kept(batch))
        return taught[-1]

    pipe.make_training_batch = noted
    for _ in range(3):
        for eg in examples:
            nlp.update([eg], sgd=make_sgd())
    assert len(taught) == 3 * len(examples)
    for (one,), ids in zip(taught, expected * 3):
        assert np.array_equal(one.ids, ids)
    assert made == [1] * len(examples)
