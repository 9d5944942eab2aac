"""Time of `ember_probe` around the LLM, by step, in two versions of this package.

    git worktree add ../old COMMIT
    python -m benchmarks.ember.overhead ../old

The LLM has one tiny layer with random weights, and the tokenizer of SmolLM2. The probe has the settings of
configs/ember_probe.cfg and is trained for a minute. Texts are made up: one or two sentences, with 25 words
on average. Both versions run in one process each and measure in turns. Times are CPU times of one thread.
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

EMBER = "spacy_llmner.ember_probe"
STEPS = {
    TOKENIZER: ["spacy.language:Language.make_doc"],
    LLM: ["spacy_llmner.llm.hidden_states:run_decoder"],
    "tokens of the LLM, alignment": [
        "spacy_llmner.llm.tokenization:LLMTokenizer.encode",
        "spacy_llmner.llm.tokenization:LLMTokenizer.encode_batch",
        f"{EMBER}.features.words:word_bounds",
    ],
    "batches for the LLM": [
        f"{EMBER}.features.words:WordReader.read",
        f"{EMBER}.features.words:read_texts",
    ],
    "features of words": [
        "spacy_llmner.llm.hidden_states:_recorded",
        "spacy_llmner.llm.hidden_states:_rows_of_texts",
        f"{EMBER}.features.words:WordReader.gather",
        f"{EMBER}.predictor:Predictor.batch",
    ],
    "probe": [f"{EMBER}.probes.structured:StructuredProbe.forward"],
    "posterior, best segmentation": [
        f"{EMBER}.predictor:Predictor.decode",
        f"{EMBER}.predictor:Predictor.decode_batch",
        f"{EMBER}.probes.structured:StructuredProbe.rows",
    ],
    "annotations": [f"{EMBER}.component:EmberProbe.set_annotations"],
}


def main(old: Path, rounds: int = 9, texts: int = 2000, batch_size: int = 64) -> None:
    """Run both versions and save the results.

    old (Path): Folder of the old version, such as a git worktree.
    rounds (int): How often each version reads all texts. One more round warms up.
    texts (int): Number of texts.
    batch_size (int): Texts per batch of `nlp.pipe`, as in the config.
    """
    with TemporaryDirectory() as folder:
        train(Path(folder))
        answers = alternate(
            "benchmarks.ember.overhead", old, [folder, str(texts), str(batch_size)], rounds
        )
    sizes = {"texts": texts, "batch_size": batch_size, "words": answers["after"][0]["size"]}
    save("ember_overhead", {"rounds": rounds, **sizes, **summary(answers, "probe")})


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
    nlp.add_pipe("ember_probe", config={"llm": llm, "feature_cache": "off"})
    examples = [
        Example.from_dict(nlp.make_doc(text), {"entities": ents})
        for text, ents in made_up_texts(400, seed=1)
    ]
    nlp.initialize(lambda: examples)
    sgd = Adam(0.003, L2=0.0)
    for step in range(60):
        nlp.update(examples[40 * (step % 10) :][:40], sgd=sgd, drop=0.3)
    nlp.to_disk(folder / "pipeline")


def work(version: str, folder: str, texts: str, batch_size: str) -> None:
    """Measure in one version of the package."""
    use_version(version)
    import spacy
    import torch

    torch.set_num_threads(1)
    nlp = spacy.load(Path(folder) / "pipeline")
    inputs = [text for text, _ in made_up_texts(int(texts))]
    n_words = sum(len(nlp.make_doc(text)) for text in inputs)
    stopwatch = Stopwatch()
    stopwatch.watch(STEPS)

    def measure() -> Dict[str, Any]:
        stopwatch.reset()
        docs = list(nlp.pipe(inputs, batch_size=int(batch_size)))
        seconds = stopwatch.stop()
        steps = {step: 1e6 * spent / n_words for step, spent in seconds.items()}
        return {"steps": steps, "size": n_words, "found": [found(doc) for doc in docs]}

    answer(measure)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        work(*sys.argv[2:])
    else:
        import typer

        typer.run(main)
