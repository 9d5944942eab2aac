"""Encode a voter's prompts: the part that all questions about a text share, and the questions."""

import json
from functools import cached_property, lru_cache
from typing import Dict, List, Sequence

import numpy as np

from ...decoding.constraints import Choices
from ...decoding.engine import Prefix
from ...errors import Errors, LLMNERError
from ...llm.chat import ChatEncoder
from ...llm.tokenization import LLMTokenizer
from ..interfaces import NONE, Demonstration, LabelSet
from .prompt_files import Prompts, fill


class VoterPromptEncoder:
    """Encodes the prompts of a voter for a label set.

    All questions about a text are branches of one prompt, so that they share its beginning:

        instruction, demonstrations, text | list? [...] | type of a span? ...
                                                        | true or false? ...

    Texts, spans and types are encoded separately, as plain characters. So control tokens in them have no
    effect, and their tokens don't depend on the text before them.

    prompts (Prompts): The wording.
    tokenizer (LLMTokenizer): The LLM's tokenizer.
    label_set (LabelSet): The requested labels.
    chat (bool): Use the LLM's chat template. If False, each question is a line of text.
    name (str): The name of the voter, for messages.

    instruction (Prefix): The instruction, which is the same for all texts.
    labels (List[str]): The labels, and NONE as the last one.
    choices (Choices): The possible answers to a type question, in the order of `labels`.
    truth (ndarray): The first tokens of the answers "true" and "false". int64, shape (2,).
    end (int): The token that ends an answer.
    """

    def __init__(
        self, prompts: Prompts, tokenizer: LLMTokenizer, label_set: LabelSet, chat: bool, name: str
    ) -> None:
        if not tokenizer.end:
            raise LLMNERError(Errors.E035.format(name=name))
        self.prompts = prompts
        self.tokenizer = tokenizer
        self.chat = chat
        self.types = dict(label_set.types)
        self.end: int = tokenizer.end[0]
        self._encode = lru_cache(maxsize=4096)(self._plain)
        if chat:
            pieces = ChatEncoder(tokenizer, name).pieces(
                [("user", "a"), ("assistant", "b"), ("user", "c")]
            )
            self._begin, _, to_answer, _, to_question, _, _ = pieces
            self._to_list = self._to_word = to_answer
            self._to_question = self._to_text = to_question
            space = ""
        else:
            self._begin = list(tokenizer.bos)
            self._to_list = self._encode("\n")
            self._to_word = []
            self._to_question, self._to_text = self._encode("\n"), self._encode("\n\n")
            # "Type: person", but "类型：人名".
            space = " " if prompts.type[-1].isascii() else ""
        self._between = space
        words = {**self.types, NONE: prompts.none}
        self._check_words(words, name)
        self.labels = list(words)
        answers = [[*self._encode(space + words[label]), self.end] for label in self.labels]
        self.choices = Choices(answers)
        self.truth = self._truth(space, name)
        listed = fill(prompts.instruction, {"{types}": ", ".join(self.types.values())})
        instruction = [*self._begin, *self._encode(listed), *self._encode("\n\n")]
        self.instruction = Prefix(instruction)
        self._cached_demonstration = lru_cache(maxsize=2048)(self._demonstration)

    def _plain(self, text: str) -> List[int]:
        return list(self.tokenizer.encode_inside(text).ids)

    def _check_words(self, words: Dict[str, str], name: str) -> None:
        if len(set(words.values())) < len(words):
            raise LLMNERError(Errors.E064.format(name=name, words=", ".join(words.values())))

    def _truth(self, space: str, name: str) -> np.ndarray:
        true, false = (self._encode(space + w)[:1] for w in (self.prompts.true, self.prompts.false))
        if true == false:
            words = f"{self.prompts.true}, {self.prompts.false}"
            raise LLMNERError(Errors.E065.format(name=name, words=words))
        return np.array([*true, *false], dtype=np.int64)

    def shared_prompt(self, text: str, demonstrations: Sequence[Demonstration]) -> List[int]:
        """Encode the part of the prompt that all questions about a text share: the instruction, the
        demonstrations and the text.

        text (str): The text of a window.
        demonstrations (Sequence[Demonstration]): The demonstrations, in the order of the prompt.
        RETURNS (List[int]): Token ids.
        """
        out = list(self.instruction.ids)
        for demonstration in demonstrations:
            out.extend([*self._cached_demonstration(demonstration), *self._to_text])
        return out + self._text(text)

    @property
    def list_question(self) -> List[int]:
        """RETURNS (List[int]): The question for the list of names, which follows the text."""
        return [*self._encode("\n"), *self._encode(self.prompts.list), *self._to_list]

    def after_list(self, ids: Sequence[int]) -> List[int]:
        """Encode the transition from a list to the next question.

        ids (Sequence[int]): The tokens of the list, including the end token.
        RETURNS (List[int]): The tokens of the list without the end token, and the transition.
        """
        return [*ids[:-1], *self._to_question]

    def type_question(self, span: str) -> List[int]:
        """RETURNS (List[int]): The question for the type of a span, which follows the list."""
        question = fill(self.prompts.type, {"{span}": span})
        return [*self._plain(question), *self._to_word]

    def check_question(self, span: str, label: str) -> List[int]:
        """RETURNS (List[int]): The question about whether a span has a label, which follows the list."""
        values = {"{span}": span, "{type}": self.types[label]}
        return [*self._plain(fill(self.prompts.check, values)), *self._to_word]

    def longest_question(self, span: str) -> int:
        """RETURNS (int): Maximum number of tokens after a list: those of any question about a span, and of
        its answer."""
        questions = [self.type_question(span)] + [self.check_question(span, x) for x in self.types]
        answer = max(len(sequence) for sequence in self.choices.sequences)
        return len(self.after_list([0])) + max(len(question) for question in questions) + answer

    @cached_property
    def tokens_after_text(self) -> int:
        """RETURNS (int): Maximum number of tokens after a text, not counting the spans in the list and in
        the question."""
        return len(self.list_question) + self.longest_question("")

    def overhead(self) -> int:
        """RETURNS (int): Maximum number of tokens around a text, not counting demonstrations and the
        spans in the list and in the question."""
        return len(self.shared_prompt("", [])) + self.tokens_after_text

    def _text(self, text: str) -> List[int]:
        before, after = self.prompts.text.split("{text}")
        return [*self._encode(before), *self._plain(text), *self._encode(after)]

    def _demonstration(self, demonstration: Demonstration) -> List[int]:
        text = demonstration.text
        entities = {(start, end): label for start, end, label in demonstration.entities}
        listed = [text[slice(*span)] for span in entities]
        out = [*self._text(text), *self.list_question]
        out += self._plain(json.dumps(listed, ensure_ascii=False))
        labels = {**entities, **dict.fromkeys(demonstration.others, NONE)}
        words = {**self.types, NONE: self.prompts.none}
        for span, label in sorted(labels.items()):
            out += [*self._to_question, *self.type_question(text[slice(*span)])]
            out += self._encode(self._between + words[label])
        return out
