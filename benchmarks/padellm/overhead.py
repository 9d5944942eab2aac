"""Time of `padellm_ner` around the LLM's forward passes, by step, in two versions of this package.

    git worktree add ../old COMMIT
    python -m benchmarks.padellm.overhead ../old

The LLM has one tiny layer with random weights, and the tokenizer of SmolLM2. The adapter has the default
settings and is trained for a minute. Texts are made up. Both versions run in one process each and measure
in turns. Times are CPU times of one thread, for each token that goes through the LLM.
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Dict

from benchmarks.lib.common import save
from benchmarks.lib.overhead import (
    LLM,
    TOKENIZER,
    Stopwatch,
    alternate,
    answer,
    found,
    made_up_texts,
    summary,
    tiny_llm,
    use_version,
)

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
    with TemporaryDirectory() as folder:
        train(Path(folder))
        answers = alternate("benchmarks.padellm.overhead", old, [folder, str(texts)], rounds)
    sizes = {"texts": texts, "tokens": answers["after"][0]["size"]}
    save("padellm_overhead", {"rounds": rounds, **sizes, **summary(answers)})


def train(folder: Path) -> None:
    """Write the tiny LLM and a pipeline that was trained with it."""
    import spacy
    import torch
    from spacy.training import Example
    from thinc.api import Adam

    torch.set_num_threads(1)
    spacy.util.fix_random_seed(0)
    tiny_llm(folder / "llm", "smollm2-135m-instruct")
    nlp = spacy.blank("en")
    llm = {"@misc": "spacy_llmner.LLM.v1", "name": str(folder / "llm"), "device": "cpu"}
    model = {"@architectures": "spacy_llmner.PaDeLLM.v1", "first_layer": 0}
    nlp.add_pipe("padellm_ner", config={"llm": llm, "model": model})
    examples = [
        Example.from_dict(nlp.make_doc(text), {"entities": ents})
        for text, ents in made_up_texts(80, seed=1)
    ]
    nlp.initialize(lambda: examples)
    sgd = Adam(0.01, L2=0.0, grad_clip=1.0)
    for step in range(40):
        nlp.update(examples[8 * (step % 10) :][:8], sgd=sgd)
    nlp.to_disk(folder / "pipeline")


def work(version: str, folder: str, texts: str) -> None:
    """Measure in one version of the package."""
    use_version(version)
    import spacy
    import torch

    from spacy_llmner.decoding.engine import DecodingEngine

    torch.set_num_threads(1)
    nlp = spacy.load(Path(folder) / "pipeline")
    inputs = [text for text, _ in made_up_texts(int(texts))]
    n_tokens = []
    steps = DecodingEngine.steps

    def counted(engine: Any, requests: Any) -> Any:
        yield from steps(engine, requests)
        n_tokens.append(engine.tokens)

    DecodingEngine.steps = counted
    stopwatch = Stopwatch()
    stopwatch.watch(STEPS)

    def measure() -> Dict[str, Any]:
        n_tokens.clear()
        stopwatch.reset()
        docs = list(nlp.pipe(inputs))
        seconds, size = stopwatch.stop(), sum(n_tokens)
        us = {step: 1e6 * spent / size for step, spent in seconds.items()}
        return {"steps": us, "size": size, "found": [found(doc) for doc in docs]}

    answer(measure)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        work(*sys.argv[2:])
    else:
        import typer

        typer.run(main)
