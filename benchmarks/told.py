"""Let components write answers that they are told: ways to write, compared without a model's mistakes."""

from typing import Any, Dict, List, Set, Tuple

import numpy as np
from same_outcome import run
from spacy.tokens import Doc
from spacy.training import Example

from spacy_llmner.decoding.engine import DecodingEngine, Scores
from spacy_llmner.llm.word_tokens import WordTokens
from spacy_llmner.padellm_ner.component import PaDeLLM
from spacy_llmner.padellm_ner.decoding import DecodedMention
from spacy_llmner.padellm_ner.templates import TemplateEncoder
from spacy_llmner.padellm_ner.training_data import mention_tokens
from spacy_llmner.pipeline.gold import gold_mentions
from spacy_llmner.pipeline.training import known_windows


def tell(pipe: PaDeLLM, examples: List[Example]) -> None:
    """Let a component write the gold answers of some examples."""
    llm, view, prompt_encoder = pipe.adapted_llm()
    # A count may begin as the question for a mention does: then either goes on from there.
    answers: Dict[Tuple[int, ...], Set[int]] = {}
    for eg in examples:
        windows = pipe._windows(eg.predicted, prompt_encoder)
        gold = gold_mentions(eg, pipe.cfg["train_spans"])
        for words, inside in known_windows(eg.predicted, windows, gold):
            for sequence in pipe.sequences(prompt_encoder, words, eg.predicted.text, inside):
                for k, learnt in enumerate(sequence.loss):
                    if learnt:
                        answers.setdefault(tuple(sequence.ids[:k]), set()).add(sequence.ids[k])

    def decoder() -> Any:
        told = Told(llm, view, max_slots=pipe.max_batch_tokens)
        told.answers = answers
        return told, prompt_encoder

    pipe._decoder = decoder  # type: ignore[method-assign]


class Answers:
    """The answers of our own run in another wording, found before the clock runs."""

    def __init__(self, pipe: PaDeLLM, prompt_encoder: TemplateEncoder) -> None:
        self.pipe = pipe
        self.prompt_encoder = prompt_encoder
        self.known: Dict[int, Dict[str, List[List[int]]]] = {}

    def __call__(self, doc: Doc) -> Dict[str, List[List[int]]]:
        if id(doc) not in self.known:
            (window,) = self.pipe._windows(doc, self.pipe.adapted_llm()[2])
            written = run(self.pipe, doc, self.pipe.decoding_settings)[0]
            self.known[id(doc)] = {
                label: [self._answer(window.words, doc.text, w) for w in of_label if w.places]
                for label, of_label in written.items()
            }
        return self.known[id(doc)]

    def _answer(self, words: WordTokens, text: str, written: DecodedMention) -> List[int]:
        start, end = written.places[0]
        first = int(np.searchsorted(words.bounds[:, 0], start))
        last = int(np.searchsorted(words.bounds[:, 1], end)) + 1
        return [
            *mention_tokens(self.prompt_encoder, words, text, (first, last)),
            self.prompt_encoder.end,
        ]


class Told(DecodingEngine):
    """Adds to the LLM's scores, so that the likeliest answers are those it is told. What is left of the
    scores, by which guesses are made, stays the LLM's."""

    answers: Dict[Tuple[int, ...], Set[int]] = {}

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._read: Dict[int, int] = {}

    def _pass(self, tokens: Any, passes: Any) -> None:
        super()._pass(tokens, passes)
        asked = [(node, k) for node, k in tokens if k in node.ask]
        self._read.update((int(node.path[node.first + k]), node.ids[k]) for node, k in tokens)
        for node, k in asked:
            before = tuple(self._read[int(slot)] for slot in node.path[: node.first + k + 1])
            scores = node.answers[k]
            log_probs = scores.log_probs + 50.0 * np.isin(
                scores.ids, list(self.answers.get(before, ()))
            )
            log_probs -= np.logaddexp.reduce(log_probs)
            node.answers[k] = Scores(scores.ids, log_probs, scores.total)
