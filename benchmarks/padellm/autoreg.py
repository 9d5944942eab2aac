"""The autoregressive baseline: one sequence per text lists all mentions in order, with their labels.

It is AutoReg_Struct of the PaDeLLM-NER paper, with a prompt as short as `padellm_ner`'s `compact` template:

    TEXT
    LABEL MENTION
    LABEL MENTION<end>

Training, adapter, windows, character offsets, deduplication, scores and the decoding engine are those of
`padellm_ner`. Only the training sequences and the request differ. To train it with the same config:

    python -m spacy train configs/padellm_ner.cfg --code benchmarks/padellm/autoreg.py \
        --components.padellm_ner.factory autoreg_ner --paths.train ... --paths.dev ...
"""

import inspect
from dataclasses import dataclass
from typing import Any, Dict, Generator, List, Optional, Sequence, Tuple

import numpy as np
from spacy.language import Language

from spacy_llmner.decoding.constraints import (
    NO_TOKENS,
    Choices,
    Substrings,
    SubstringState,
    allowed_along,
)
from spacy_llmner.decoding.generate import Answer, decode
from spacy_llmner.decoding.substrings import substring_constraint
from spacy_llmner.decoding.tree import Request, Tree
from spacy_llmner.llm.packing import TrainingSequence
from spacy_llmner.llm.word_tokens import WordTokens
from spacy_llmner.padellm_ner.component import DEFAULT_CONFIG, PaDeLLM, make_padellm_ner_pipe
from spacy_llmner.padellm_ner.decoding import DecodedMention, OnLabel
from spacy_llmner.padellm_ner.templates import TemplateEncoder
from spacy_llmner.padellm_ner.training_data import mention_tokens
from spacy_llmner.pipeline.training import MentionsByLabel

# Is not the id of any token.
NO_GUESS = -1


class AutoReg(PaDeLLM):
    """The component `autoreg_ner`. It writes all mentions of a text one after another.

    draft (int): Maximum number of tokens to draft per forward pass, looked up in the text; 0 decodes token
        by token.
    max_tokens (int): Maximum number of tokens of an answer.
    constrained (bool): Allow only lines of a label and a substring of the text. False allows the whole
        vocabulary, as published, and drops other lines afterwards.
    """

    draft = 4
    max_tokens = 256
    constrained = True

    def sequences(
        self,
        prompt_encoder: TemplateEncoder,
        words: WordTokens,
        text: str,
        mentions: MentionsByLabel,
    ) -> List[TrainingSequence]:
        prompt = question(prompt_encoder, words)
        answer: List[int] = []
        found = [(m, label) for label, of_label in mentions.items() for m in of_label]
        for mention, label in sorted(found, key=lambda f: (f[0][0], -f[0][1], f[1])):
            answer += line_break(prompt_encoder) if answer else []
            answer += label_tokens(prompt_encoder, label)
            answer += mention_tokens(prompt_encoder, words, text, mention)
        answer.append(prompt_encoder.end)
        learnt = [False] * len(prompt) + [True] * len(answer)
        allowed = None
        if self.settings.loss == "allowed":
            lines = self.lines(prompt_encoder, words, text)
            allowed = [NO_TOKENS] * len(prompt) + allowed_along(lines, answer)
        return [TrainingSequence([*prompt, *answer], learnt, allowed=allowed)]

    def request(
        self,
        prompt_encoder: TemplateEncoder,
        words: WordTokens,
        text: str,
        on_label: Optional[OnLabel] = None,
    ) -> Request:
        def write(tree: Tree) -> Generator[None, None, Dict[str, List[DecodedMention]]]:
            lines = self.lines(prompt_encoder, words, text)
            prompt = question(prompt_encoder, words)
            rule: Any = lines if self.constrained else self._unconstrained(prompt_encoder, prompt)
            node = tree.add(None, prompt, {-1: rule.allowed(rule.start)})
            yield
            answer = yield from decode(
                tree, node, [], rule, draft=self.draft, max_tokens=self.max_tokens
            )
            answer.state = answer.state if self.constrained else read_lines(lines, answer.ids)
            found = self._mentions_by_label(lines, answer)
            for label in self.labels if on_label is not None else ():
                on_label(label, found[label])  # type: ignore[misc]
            return found

        return write

    def lines(self, prompt_encoder: TemplateEncoder, words: WordTokens, text: str) -> "Lines":
        """RETURNS (Lines): The constraint on the answer about a text."""
        labels = [label_tokens(prompt_encoder, label) for label in self.labels]
        tokenizer = prompt_encoder.tokenizer if prompt_encoder.template.bare else None
        mentions = substring_constraint(words, prompt_encoder.end, tokenizer, text)
        nested = self.cfg["train_spans"] is not None
        return Lines(labels, mentions, line_break(prompt_encoder)[0], nested)

    def _unconstrained(self, prompt_encoder: TemplateEncoder, prompt: List[int]) -> "PromptLookup":
        vocabulary = self.shared_llm().model.get_output_embeddings().weight.shape[0]
        return PromptLookup(vocabulary, prompt_encoder.end, prompt)

    def _mentions_by_label(self, lines: "Lines", answer: Answer) -> Dict[str, List[DecodedMention]]:
        found: Dict[str, List[DecodedMention]] = {label: [] for label in self.labels}
        for line in answer.state.done:
            label = self.labels[line.label]
            occurrences = lines.mentions.spans(line.mention)
            log_probs = answer.log_probs[line.first : line.last]
            raw = answer.raw_log_probs[line.first : line.last]
            k = len(found[label]) + 1
            found[label].append(DecodedMention(label, k, occurrences, log_probs, raw))
        return found


def question(prompt_encoder: TemplateEncoder, words: WordTokens) -> List[int]:
    """RETURNS (List[int]): The prompt that the answer follows: the text and a line break."""
    return [*prompt_encoder.before, *words.ids.tolist(), *line_break(prompt_encoder)]


def line_break(prompt_encoder: TemplateEncoder) -> List[int]:
    tokens = prompt_encoder.encode("\n")
    if len(tokens) != 1:
        raise ValueError("autoreg_ner needs a tokenizer with a token for a line break")
    return tokens


def label_tokens(prompt_encoder: TemplateEncoder, label: str) -> List[int]:
    return prompt_encoder.encode(prompt_encoder.label_words.get(label, label))


@dataclass(frozen=True)
class Line:
    """A complete line.

    label (int): Index of its label.
    mention (SubstringState): Its mention.
    first, last (int): Its first token in the answer, and one past its last, without the line break.
    """

    label: int
    mention: SubstringState
    first: int
    last: int


@dataclass(frozen=True)
class LinesState:
    """The state of an answer.

    label (Tuple[int, ...]): The tokens of the label of the present line so far.
    mention (Optional[SubstringState]): The state of its mention; None before the mention.
    n (int): Number of tokens in the answer.
    first (int): Index of the first token of the present line.
    reached (int): Character at which the last mention begins; the first one, if there are several.
    done (Tuple[Line, ...]): The complete lines.
    ended (bool): Whether the answer has ended.
    """

    label: Tuple[int, ...] = ()
    mention: Optional[SubstringState] = None
    n: int = 0
    first: int = 0
    reached: int = -1
    done: Tuple[Line, ...] = ()
    ended: bool = False


class Lines:
    """A constraint: each line is a label and a substring of the text, in the order of the text.

    labels (Sequence[Sequence[int]]): Tokens of each label. No label can begin with another one.
    mentions (Substrings): The constraint on what follows a label. Its end token ends the whole answer.
    line_break (int): The token between two lines. It also ends the line inside a mention.
    nested (bool): Whether several mentions can begin with the same word. If not, there can't be more lines
        than words.
    """

    def __init__(
        self, labels: Sequence[Sequence[int]], mentions: Substrings, line_break: int, nested: bool
    ) -> None:
        self.labels = [tuple(label) for label in labels]
        self.mentions = mentions
        self.line_break = line_break
        self.nested = nested
        self._labels = Choices(self.labels)
        self.start = LinesState()

    def allowed(self, state: LinesState) -> np.ndarray:
        if state.ended:
            return NO_TOKENS
        if state.mention is None:
            labels = self._labels.allowed(state.label)
            if state.n:
                return labels
            labels = labels if len(self.mentions.first) else NO_TOKENS
            return np.unique(np.append(labels, self.mentions.end))
        inside = self.mentions.allowed(state.mention)
        if self.mentions.end in inside and len(self._remaining(self._finish(state).reached).last):
            inside = np.unique(np.append(inside, self.line_break))
        return inside

    def advance(self, state: LinesState, token: int) -> LinesState:
        n = state.n + 1
        if state.mention is None:
            if token == self.mentions.end:
                return LinesState(n=n, ended=True)
            label = (*state.label, token)
            mention = None if len(self._labels.allowed(label)) else self._remaining(state.reached)
            return LinesState(label, mention, n, state.first, state.reached, state.done)
        may_end = self.mentions.end in self.mentions.allowed(state.mention)
        if may_end and token in (self.line_break, self.mentions.end):
            return self._finish(state, ended=token == self.mentions.end)
        mention = self.mentions.advance(state.mention, token)
        return LinesState(state.label, mention, n, state.first, state.reached, state.done)

    def guess(self, state: LinesState) -> int:
        if state.mention is None:
            last = self.labels[state.done[-1].label] if state.done else ()
            k = len(state.label)
            return last[k] if last[:k] == state.label and k < len(last) else NO_GUESS
        if (state.mention.last < 0).any():
            return NO_GUESS
        return self.mentions.guess(state.mention)

    def _finish(self, state: LinesState, ended: bool = False) -> LinesState:
        assert state.mention is not None
        mention = self.mentions.advance(state.mention, self.mentions.end)
        line = Line(self.labels.index(state.label), mention, state.first, state.n)
        n = state.n + 1
        done = (*state.done, line)
        return LinesState((), None, n, n, int(mention.starts.min()), done, ended)

    def _remaining(self, reached: int) -> SubstringState:
        """RETURNS (SubstringState): The state in which the next mention begins."""
        start = self.mentions.start
        keep = start.starts >= reached if self.nested else start.starts > reached
        return SubstringState(start.starts[keep], start.last[keep])


class PromptLookup:
    """Allow all tokens until the end token. Tokens are drafted by prompt look-up: the token that followed
    an earlier occurrence of the last two tokens, or of the last one.

    vocabulary (int): Number of tokens of the LLM.
    end (int): The end token.
    prompt (Sequence[int]): The tokens before the answer.
    """

    start: Tuple[int, ...] = ()

    def __init__(self, vocabulary: int, end: int, prompt: Sequence[int]) -> None:
        self.end = end
        self.prompt = tuple(prompt)
        self._all = np.arange(vocabulary)

    def allowed(self, state: Tuple[int, ...]) -> np.ndarray:
        return NO_TOKENS if state[-1:] == (self.end,) else self._all

    def advance(self, state: Tuple[int, ...], token: int) -> Tuple[int, ...]:
        return (*state, token)

    def guess(self, state: Tuple[int, ...]) -> int:
        before = self.prompt + state
        for n in (2, 1):
            for k in range(len(before) - n - 1, -1, -1):
                if before[k : k + n] == before[-n:]:
                    return before[k + n]
        return NO_GUESS


def read_lines(lines: Lines, ids: Sequence[int]) -> LinesState:
    """Parse an answer that was written without constraint. Lines that `lines` does not allow are dropped.

    lines (Lines): The constraint.
    ids (Sequence[int]): The tokens of the answer.
    RETURNS (LinesState): The state with the other lines.
    """
    done: Tuple[Line, ...] = ()
    first, reached = 0, -1
    for k in [*(k for k, token in enumerate(ids) if token == lines.line_break), len(ids)]:
        state = LinesState(n=first, first=first, reached=reached, done=done)
        line = [token for token in ids[first:k] if token != lines.mentions.end]
        for token in [*line, lines.mentions.end]:
            if not line or token not in lines.allowed(state):
                break
            state = lines.advance(state, token)
        if state.ended and len(state.done) > len(done):
            done, reached = state.done, state.reached
        first = k + 1
    return LinesState(done=done, ended=True)


def make_autoreg_ner_pipe(**settings: Any) -> AutoReg:
    return AutoReg(**settings)


# The settings of padellm_ner, so that the same config works for both.
make_autoreg_ner_pipe.__signature__ = inspect.signature(make_padellm_ner_pipe)  # type: ignore[attr-defined]
Language.factory("autoreg_ner", default_config=DEFAULT_CONFIG, func=make_autoreg_ner_pipe)
