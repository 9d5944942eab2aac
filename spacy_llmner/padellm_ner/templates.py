"""What the LLM reads and writes: the published templates (methods.md 2a.1), and a shorter one."""

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Dict, List, Sequence, Tuple

from ..decoding.constraints import Choices
from ..errors import Errors, LLMNERError, wrong
from ..llm.tokenization import LLMTokenizer


@dataclass(frozen=True)
class Template:
    """The wording of one prompt.

    prompt (str): With {text} and, behind it, {label}.
    count (str): Stands between the prompt and the number of mentions.
    count_end (str): Stands behind a number above 0; "" for the end token, which always follows 0.
    mention (str): Stands between the prompt and mention number {index}. If it begins with {count} and
        `count_end`, mentions are written behind the number.
    bare (bool): Mentions are written as if at the beginning of a line. Else as they are in the text,
        with the space in front.
    """

    prompt: str
    count: str
    count_end: str
    mention: str
    bare: bool

    def __post_init__(self) -> None:
        for setting, needed in (("prompt", ("{text}", "{label}")), ("mention", ("{index}",))):
            if any(getattr(self, setting).count(slot) != 1 for slot in needed):
                raise self._wrong(setting, f"a text in which {' and '.join(needed)} occurs once")
        if self.prompt.index("{text}") > self.prompt.index("{label}"):
            must = "a text with {text} in front of {label}, so that all labels share its encoding"
            raise self._wrong("prompt", must)
        if self.count_end[:1].isdecimal():
            raise self._wrong("count_end", "a text that does not go on with the number")
        if "{count}" not in self.mention:
            return
        if not (self.count_end and self.mention.startswith("{count}" + self.count_end)):
            must = (
                "a text that begins with {count} and `count_end`, as the answer to the count does"
            )
            raise self._wrong("mention", must)
        if self.mention.count("{count}") > 1:
            raise self._wrong("mention", "a text in which {count} occurs at most once")

    def _wrong(self, setting: str, must: str) -> LLMNERError:
        return wrong(f"template.{setting}", "padellm_ner", getattr(self, setting), must)


TEMPLATES: Dict[str, Template] = {
    # As published, for English and Chinese.
    "published_en": Template(
        prompt="text:\n{text}\nentity type:\n{label}\n\n<num>",
        count="",
        count_end="\n",
        mention="{count}\n<mention {index}>",
        bare=True,
    ),
    "published_zh": Template(
        prompt="文本:\n{text}\n指定NER标签:\n{label}\n\n<数量>",
        count="",
        count_end="\n",
        mention="{count}\n<第{index}文段>",
        bare=True,
    ),
    # A third of the tokens; a mention does not wait for the count.
    "compact": Template(
        prompt=" {text}\n{label}", count="", count_end="", mention="{index}", bare=False
    ),
}


# No text has more mentions of one label.
MAX_COUNT = 999


class NumberTokens(Choices):
    """The numbers from 0 on, as answers. Sequence n is number n.

    lowest (Dict[Tuple[int, ...], int]): The lowest number that begins with some tokens.
    """

    def __init__(self, sequences: Sequence[Sequence[int]]) -> None:
        super().__init__(sequences)
        self.lowest: Dict[Tuple[int, ...], int] = {}
        for n, sequence in enumerate(self.sequences):
            for k in range(len(sequence) + 1):
                self.lowest.setdefault(sequence[:k], n)


class TemplateEncoder:
    """A template in the tokens of one LLM.

    template (Template): The wording.
    tokenizer (LLMTokenizer): The LLM's tokenizer.
    label_words (Dict[str, str]): What a label is called in the prompt; others by their own name.
    """

    def __init__(
        self, template: Template, tokenizer: LLMTokenizer, label_words: Dict[str, str]
    ) -> None:
        self.template = template
        self.tokenizer = tokenizer
        self.label_words = label_words
        # The end of an answer: what the LLM itself ends with.
        self.end: int = tokenizer.end[0]
        before, rest = template.prompt.split("{text}")
        self.before = tokenizer.bos + self.encode(before)
        self._middle, self._after_label = rest.split("{label}")
        self._encode = lru_cache(maxsize=4096)(self.encode)
        self._numbers = lru_cache(maxsize=256)(self._make_numbers)

    def encode(self, text: str) -> List[int]:
        return list(self.tokenizer.encode_inside(text).ids)

    def label(self, label: str) -> List[int]:
        """RETURNS (List[int]): From the end of the text to the end of the prompt."""
        word = self.label_words.get(label, label)
        return list(self._encode(self._middle)) + list(self._encode(word + self._after_label))

    def count(self) -> List[int]:
        """RETURNS (List[int]): What is read before the number of mentions is written."""
        return list(self._encode(self.template.count))

    def number(self, n: int) -> List[int]:
        """RETURNS (List[int]): The answer to the question for the number of mentions, with its end."""
        end = list(self._encode(self.template.count_end)) if n else []
        return list(self._encode(str(n))) + (end or [self.end])

    def numbers(self, most: int) -> NumberTokens:
        """RETURNS (NumberTokens): All answers from 0 to `most`."""
        return self._numbers(min(most, MAX_COUNT))

    def _make_numbers(self, most: int) -> NumberTokens:
        return NumberTokens([self.number(n) for n in range(most + 1)])

    def mention(self, count: int, index: int) -> List[int]:
        """RETURNS (List[int]): What is read before mention number `index` is written."""
        parts = re.split(r"(\{count\}|\{index\})", self.template.mention)
        values = {"{count}": str(count), "{index}": str(index)}
        out: List[int] = []
        for part in parts:
            out.extend(self._encode(values.get(part, part)))
        return out

    def around(self, label: str) -> int:
        """RETURNS (int): Tokens that the question for a label takes besides the text and its answer."""
        prompt = len(self.before) + len(self.label(label)) + len(self.count())
        most = max(len(self.number(MAX_COUNT)), len(self.mention(MAX_COUNT, MAX_COUNT)))
        return prompt + most

    @property
    def count_first(self) -> bool:
        """Whether mentions are written behind the count."""
        return "{count}" in self.template.mention


def most_tokens(
    prompt_encoder: TemplateEncoder, labels: Sequence[str], max_length: int, name: str
) -> int:
    """Say how long a text may be, so that any part of it fits behind it as an answer.

    labels (Sequence[str]): What is asked for.
    max_length (int): Positions of the LLM.
    name (str): The component.
    RETURNS (int): In tokens.
    RAISES (LLMNERError): If a prompt leaves no room for a text.
    """
    tokens, longest = max((prompt_encoder.around(label), label) for label in labels)
    most = (max_length - tokens) // 2
    if most < 1:
        label = longest if len(longest) < 80 else f"{longest[:80]}..."
        message = Errors.E034.format(name=name, tokens=tokens, label=label, max_length=max_length)
        raise LLMNERError(message)
    return most
