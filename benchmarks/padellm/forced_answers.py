"""Force components to write given answers, to compare ways of decoding without the mistakes of a model."""

from typing import Any, Dict, List, Set, Tuple

import numpy as np
from spacy.tokens import Doc
from spacy.training import Example

from benchmarks.padellm.equivalence import decode_mentions
from spacy_llmner.decoding.engine import DecodingEngine
from spacy_llmner.decoding.tree import Scores
from spacy_llmner.llm.word_tokens import WordTokens
from spacy_llmner.padellm_ner.component import PaDeLLM
from spacy_llmner.padellm_ner.decoding import DecodedMention
from spacy_llmner.padellm_ner.templates import TemplateEncoder
from spacy_llmner.padellm_ner.training_data import mention_tokens
from spacy_llmner.pipeline.gold import gold_mentions
from spacy_llmner.pipeline.training import known_windows

# Tokens before an answer's token -> tokens that can follow.
Answers = Dict[Tuple[int, ...], Set[int]]


def force_gold_answers(pipe: PaDeLLM, examples: List[Example]) -> None:
    """Make a component write the gold answers for some examples.

    pipe (PaDeLLM): The component. Its engine is replaced.
    examples (List[Example]): The examples.
    """
    llm, view, prompt_encoder = pipe.adapted_llm()
    # The count and the question about a mention can begin with the same tokens. Then there are two answers.
    answers: Answers = {}
    for eg in examples:
        windows = pipe._windows(eg.predicted, prompt_encoder)
        gold = gold_mentions(eg, pipe.cfg["train_spans"])
        for words, inside in known_windows(eg.predicted, windows, gold):
            for sequence in pipe.sequences(prompt_encoder, words, eg.predicted.text, inside):
                for k, learnt in enumerate(sequence.loss):
                    if learnt:
                        answers.setdefault(tuple(sequence.ids[:k]), set()).add(sequence.ids[k])

    def engine() -> Any:
        forced = ForcedEngine(llm, view, max_slots=pipe.max_batch_tokens)
        forced.forced_answers = answers
        return forced, prompt_encoder

    pipe._engine = engine  # type: ignore[method-assign]


class OwnAnswers:
    """The answers of a component in the tokens of another prompt template. They are computed once per Doc,
    so that they take no time later.

    pipe (PaDeLLM): The component.
    prompt_encoder (TemplateEncoder): Encodes the other template.
    """

    def __init__(self, pipe: PaDeLLM, prompt_encoder: TemplateEncoder) -> None:
        self.pipe = pipe
        self.prompt_encoder = prompt_encoder
        self.known: Dict[int, Dict[str, List[List[int]]]] = {}

    def __call__(self, doc: Doc) -> Dict[str, List[List[int]]]:
        """RETURNS (Dict[str, List[List[int]]]): The tokens of each mention, by label, with the end
        token."""
        if id(doc) not in self.known:
            (window,) = self.pipe._windows(doc, self.pipe.adapted_llm()[2])
            decoded = decode_mentions(self.pipe, doc, self.pipe.decoding_settings)[0]
            self.known[id(doc)] = {
                label: [self._answer(window.words, doc.text, m) for m in of_label if m.occurrences]
                for label, of_label in decoded.items()
            }
        return self.known[id(doc)]

    def _answer(self, words: WordTokens, text: str, mention: DecodedMention) -> List[int]:
        start, end = mention.occurrences[0]
        first = int(np.searchsorted(words.bounds[:, 0], start))
        last = int(np.searchsorted(words.bounds[:, 1], end)) + 1
        return [
            *mention_tokens(self.prompt_encoder, words, text, (first, last)),
            self.prompt_encoder.end,
        ]


class ForcedEngine(DecodingEngine):
    """Raises the scores of the forced answers, so that they are the most likely ones. All other scores,
    which the drafts use, remain those of the LLM.

    forced_answers (Answers): The answers.
    """

    forced_answers: Answers = {}

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # The token in each KV slot.
        self._token_in_slot: Dict[int, int] = {}

    def _pass(self, tokens: Any, passes: Any) -> None:
        super()._pass(tokens, passes)
        scored = [(node, k) for node, k in tokens if k in node.ask]
        self._token_in_slot.update(
            (int(node.path[node.first + k]), node.ids[k]) for node, k in tokens
        )
        for node, k in scored:
            slots = node.path[: node.first + k + 1]
            before = tuple(self._token_in_slot[int(slot)] for slot in slots)
            scores = node.answers[k]
            log_probs = scores.log_probs + 50.0 * np.isin(
                scores.ids, list(self.forced_answers.get(before, ()))
            )
            log_probs -= np.logaddexp.reduce(log_probs)
            node.answers[k] = Scores(scores.ids, log_probs, scores.total)
