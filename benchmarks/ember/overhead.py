"""Time of `ember_probe` around the LLM, by step, in two versions of this package.

    git worktree add ../old COMMIT
    python -m benchmarks.ember.overhead ../old

The LLM has one tiny layer with random weights, and the tokenizer of SmolLM2. The probe has the settings of
configs/ember_probe.cfg and is trained for a minute. Texts are made up: one or two sentences, with 25 words
on average. Both versions run in one process each and measure in turns. Times are CPU times of one thread.
"""

from pathlib import Path
from typing import Any, Callable, List

from benchmarks.lib.common import save
from benchmarks.lib.overhead import LLM, TOKENIZER, alternate, run, summary, train

BATCH_SIZE = 256  # as in the config
EMBER = "spacy_llmner.ember_probe"
STEPS = {
    TOKENIZER: ["spacy.language:Language.make_doc"],
    LLM: ["spacy_llmner.llm.hidden_states:run_decoder"],
    "tokens of the LLM, alignment": [
        "spacy_llmner.llm.tokenization:LLMTokenizer.encode",
        "spacy_llmner.llm.tokenization:LLMTokenizer.encode_batch",
        f"{EMBER}.features.words:word_bounds",
        f"{EMBER}.features.words:WordReader._needed_tokens",
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


def main(old: Path, rounds: int = 9, texts: int = 2000) -> None:
    """Run both versions and save the results.

    old (Path): Folder of the old version, such as a git worktree.
    rounds (int): How often each version reads all texts. One more round warms up.
    texts (int): Number of texts.
    """
    answers = alternate("benchmarks.ember.overhead", old, texts, rounds)
    sizes = {"texts": texts, "batch_size": BATCH_SIZE, "words": answers["after"][0]["size"]}
    save("ember_overhead", {"rounds": rounds, **sizes, **summary(answers, "probe")})


def pipeline(folder: Path) -> None:
    """Write the tiny LLM and a pipeline that was trained with it."""
    config = {"feature_cache": "off"}
    sgd = {"learn_rate": 0.003, "L2": 0.0}
    train(folder, "ember_probe", config, n_texts=400, n_steps=60, sgd=sgd, drop=0.3)


def count_words(nlp: Any, texts: List[str]) -> Callable[[], int]:
    n_words = sum(len(nlp.make_doc(text)) for text in texts)
    return lambda: n_words


if __name__ == "__main__":
    run(main, pipeline, STEPS, count_words, batch_size=BATCH_SIZE)
