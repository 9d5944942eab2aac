"""The cache of training batches."""

import numpy as np
import spacy

from benchmarks.padellm.recipe import TrainingBatchCache
from tests.helpers import make_examples, make_sgd


def test_each_example_has_its_own_training_batch(tiny_llm):
    """`nlp.update` copies examples, and copies can have the memory address of earlier ones."""
    nlp = spacy.blank("en")
    settings = {"rank": 2, "alpha": 4, "@architectures": "spacy_llmner.PaDeLLM.v1"}
    pipe = nlp.add_pipe("padellm_ner", config={"llm": {"name": tiny_llm}, "model": settings})
    examples = make_examples(nlp)
    nlp.initialize(lambda: examples)
    expected = [pipe.make_training_batch([eg])[0].ids for eg in examples]
    batches, sizes = [], []

    def make_batch(batch, make=pipe.make_training_batch):
        sizes.append(len(batch))
        return make(batch)

    cache = TrainingBatchCache(make_batch)

    def recorded(batch):
        batches.append(cache(batch))
        return batches[-1]

    pipe.make_training_batch = recorded
    for _ in range(3):
        for eg in examples:
            nlp.update([eg], sgd=make_sgd())
    assert len(batches) == 3 * len(examples)
    for (one,), ids in zip(batches, expected * 3):
        assert np.array_equal(one.ids, ids)
    assert sizes == [1] * len(examples)
