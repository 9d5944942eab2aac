"""Prompts in the tokens of one LLM: what all questions about a text share, and the questions behind it."""

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
    """The prompts of one voter.

    What is asked about a text goes on like this, so that all of it shares its beginning:

        instruction, demonstrations, text | list? [...] | type of a span? ...
                                                        | is it so? ...

    Texts, spans and types are encoded as plain characters, each for itself: what looks like a control token
    in them is none, and what stands in front never changes their tokens.

    prompts (Prompts): What is said.
    tokenizer (LLMTokenizer): The LLM's tokenizer.
    label_set (LabelSet): The types.
    chat (bool): By the LLM's chat template; else line by line.
    name (str): Of the voter, for messages.
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
        spelt = [[*self._encode(space + words[label]), self.end] for label in self.labels]
        self.choices = Choices(spelt)
        self.truth = self._truth(space, name)
        listed = fill(prompts.instruction, {"{types}": ", ".join(self.types.values())})
        instruction = [*self._begin, *self._encode(listed), *self._encode("\n\n")]
        self.instruction = Prefix(instruction)
        self._shown = lru_cache(maxsize=2048)(self._demonstration)

    def _plain(self, text: str) -> List[int]:
        return list(self.tokenizer.encode_inside(text).ids)

    def _check_words(self, words: Dict[str, str], name: str) -> None:
        if len(set(words.values())) < len(words):
            raise LLMNERError(Errors.E064.format(name=name, words=", ".join(words.values())))

    def _truth(self, space: str, name: str) -> np.ndarray:
        """RETURNS (ndarray): The first tokens of the answers "true" and "false"."""
        true, false = (self._encode(space + w)[:1] for w in (self.prompts.true, self.prompts.false))
        if true == false:
            words = f"{self.prompts.true}, {self.prompts.false}"
            raise LLMNERError(Errors.E065.format(name=name, words=words))
        return np.array([*true, *false], dtype=np.int64)

    def stem(self, shown: str, demonstrations: Sequence[Demonstration]) -> List[int]:
        """RETURNS (List[int]): What all questions about a text share, the text included.

        shown (str): The text.
        """
        out = list(self.instruction.ids)
        for demonstration in demonstrations:
            out.extend([*self._shown(demonstration), *self._to_text])
        return out + self._text(shown)

    @property
    def list_question(self) -> List[int]:
        """What follows a text, up to where a list is written."""
        return [*self._encode("\n"), *self._encode(self.prompts.list), *self._to_list]

    def after_list(self, ids: Sequence[int]) -> List[int]:
        """RETURNS (List[int]): A list that was written, up to where the next question begins.

        ids (Sequence[int]): Its tokens, the end included.
        """
        return [*ids[:-1], *self._to_question]

    def type_question(self, span: str) -> List[int]:
        """RETURNS (List[int]): From behind a list up to where the type of a span is written."""
        question = fill(self.prompts.type, {"{span}": span})
        return [*self._plain(question), *self._to_word]

    def check_question(self, span: str, label: str) -> List[int]:
        """RETURNS (List[int]): From behind a list up to where it is said whether a span is of a type."""
        values = {"{span}": span, "{type}": self.types[label]}
        return [*self._plain(fill(self.prompts.check, values)), *self._to_word]

    def longest_question(self, span: str) -> int:
        """RETURNS (int): Tokens that stand behind a list at most, if a span is asked about: the question
        and its answer."""
        questions = [self.type_question(span)] + [self.check_question(span, x) for x in self.types]
        answer = max(len(sequence) for sequence in self.choices.sequences)
        return len(self.after_list([0])) + max(len(question) for question in questions) + answer

    @cached_property
    def after(self) -> int:
        """Tokens behind a text, without what is said of the text."""
        return len(self.list_question) + self.longest_question("")

    def longest(self) -> int:
        """RETURNS (int): Tokens around a text, without demonstrations and what is said of the text."""
        return len(self.stem("", [])) + self.after

    def _text(self, shown: str) -> List[int]:
        before, after = self.prompts.text.split("{text}")
        return [*self._encode(before), *self._plain(shown), *self._encode(after)]

    def _demonstration(self, shown: Demonstration) -> List[int]:
        spans = {(start, end): label for start, end, label in shown.entities}
        listed = [shown.text[slice(*span)] for span in spans]
        out = [*self._text(shown.text), *self.list_question]
        out += self._plain(json.dumps(listed, ensure_ascii=False))
        said = {**spans, **dict.fromkeys(shown.others, NONE)}
        words = {**self.types, NONE: self.prompts.none}
        for span, label in sorted(said.items()):
            out += [*self._to_question, *self.type_question(shown.text[slice(*span)])]
            out += self._encode(self._between + words[label])
        return out
