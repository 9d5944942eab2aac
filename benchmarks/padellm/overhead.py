"""Time of `padellm_ner` around the LLM's forward passes, by step, in two versions of this package.

    git worktree add ../old COMMIT
    python -m benchmarks.padellm.overhead ../old

The LLM has one tiny layer with random weights, and the tokenizer of SmolLM2. The adapter has the default
settings and is trained for a minute. Texts are made up. Both versions run in one process each and measure
in turns. Times are CPU times of one thread, for each token that goes through the LLM.
"""

from pathlib import Path
from typing import Any, Callable, List

from benchmarks.lib.common import save
from benchmarks.lib.overhead import LLM, TOKENIZER, alternate, run, summary, train

PADELLM = "spacy_llmner.padellm_ner"
STEPS = {
    TOKENIZER: ["spacy.language:Language.make_doc"],
    LLM: [
        "spacy_llmner.decoding.forward:run_decoder",
        "spacy_llmner.llm.loading:LoadedLLM.logits",
    ],
    "tokens of words, constraints": [
        f"{PADELLM}.component:PaDeLLM._windows",
        f"{PADELLM}.decoding:substring_constraint",
    ],
    "inputs of passes": [
        "spacy_llmner.decoding.engine:DecodingEngine._forward",
        "spacy_llmner.decoding.forward:ForwardPasses.forward",
    ],
    "masks": ["spacy_llmner.decoding.engine:tree_mask", "spacy_llmner.decoding.forward:blocks_of"],
    "scores": ["spacy_llmner.decoding.engine:DecodingEngine._scores"],
    "requests": ["spacy_llmner.decoding.engine:DecodingEngine.run"],
    "mentions": [f"{PADELLM}.component:PaDeLLM._prediction"],
    "annotations": [f"{PADELLM}.component:PaDeLLM.set_annotations"],
}


def main(old: Path, rounds: int = 9, texts: int = 60) -> None:
    """Run both versions and save the results.

    old (Path): Folder of the old version, such as a git worktree.
    rounds (int): How often each version reads all texts. One more round warms up.
    texts (int): Number of texts.
    """
    answers = alternate("benchmarks.padellm.overhead", old, texts, rounds)
    sizes = {"texts": texts, "tokens": answers["after"][0]["size"]}
    save("padellm_overhead", {"rounds": rounds, **sizes, **summary(answers)})


def pipeline(folder: Path) -> None:
    """Write the tiny LLM and a pipeline that was trained with it."""
    config = {"model": {"@architectures": "spacy_llmner.PaDeLLM.v1", "first_layer": 0}}
    sgd = {"learn_rate": 0.01, "L2": 0.0, "grad_clip": 1.0}
    train(folder, "padellm_ner", config, n_texts=80, n_steps=40, sgd=sgd)


def count_tokens(nlp: Any, texts: List[str]) -> Callable[[], int]:
    """Count the tokens that go through the LLM."""
    from spacy_llmner.decoding.engine import DecodingEngine

    n_tokens: List[int] = []
    steps = DecodingEngine.steps

    def counted(engine: Any, requests: Any) -> Any:
        yield from steps(engine, requests)
        n_tokens.append(engine.tokens)

    def size() -> int:
        n = sum(n_tokens)
        n_tokens.clear()
        return n

    DecodingEngine.steps = counted
    return size


if __name__ == "__main__":
    run(main, pipeline, STEPS, count_tokens)
