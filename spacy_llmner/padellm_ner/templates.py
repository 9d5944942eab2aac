"""The prompts and answers of `padellm_ner`: the published templates (PaDeLLM-NER, figure 1) and a
shorter one.
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Dict, List, Sequence, Tuple

from ..decoding.constraints import Choices
from ..errors import Errors, LLMNERError, wrong
from ..llm.tokenization import LLMTokenizer


@dataclass(frozen=True)
class Template:
    """The wording of the prompts.

    prompt (str): The text and the label. Must contain the placeholder {text} and, after it, {label}.
    count (str): Text between the prompt and the number of mentions.
    count_end (str): Text after a number above 0; "" for the LLM's end token, which always follows 0.
    mention (str): Text between the prompt and a mention. Must contain the placeholder {index}, the
        number of the mention. If it begins with {count} and `count_end`, mentions are decoded after
        the count; otherwise count and mentions are separate branches.
    bare (bool): Decode mentions as they are spelled at the beginning of a line. If False, decode them
        as they are in the text, with the space before them.
    """

    prompt: str
    count: str
    count_end: str
    mention: str
    bare: bool

    def __post_init__(self) -> None:
        for setting, needed in (("prompt", ("{text}", "{label}")), ("mention", ("{index}",))):
            if any(getattr(self, setting).count(placeholder) != 1 for placeholder in needed):
                raise self._wrong(setting, f"a text with {' and '.join(needed)} exactly once")
        if self.prompt.index("{text}") > self.prompt.index("{label}"):
            must = "a text with {text} before {label}, so that all labels share its encoding"
            raise self._wrong("prompt", must)
        if self.count_end[:1].isdecimal():
            raise self._wrong("count_end", "a text that does not begin with a digit")
        if "{count}" not in self.mention:
            return
        if not (self.count_end and self.mention.startswith("{count}" + self.count_end)):
            must = (
                "a text that begins with {count} and `count_end`, as the answer to the count does"
            )
            raise self._wrong("mention", must)
        if self.mention.count("{count}") > 1:
            raise self._wrong("mention", "a text with {count} at most once")

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
    # This needs a third of the tokens, and decodes mentions without waiting for the count.
    "compact": Template(
        prompt=" {text}\n{label}", count="", count_end="", mention="{index}", bare=False
    ),
}


# The highest number of mentions of one label that can be decoded in one window.
MAX_COUNT = 999


class NumberTokens(Choices):
    """The numbers from 0 as answers. Sequence n is the number n.

    sequences (Sequence[Sequence[int]]): The tokens of each number, its end included.
    lowest (Dict[Tuple[int, ...], int]): For each prefix of tokens, the lowest number that begins with
        it.
    """

    def __init__(self, sequences: Sequence[Sequence[int]]) -> None:
        super().__init__(sequences)
        self.lowest: Dict[Tuple[int, ...], int] = {}
        for n, sequence in enumerate(self.sequences):
            for k in range(len(sequence) + 1):
                self.lowest.setdefault(sequence[:k], n)


class TemplateEncoder:
    """Encodes a template for one LLM.

    template (Template): The wording.
    tokenizer (LLMTokenizer): The LLM's tokenizer.
    label_words (Dict[str, str]): The words that stand for labels in the prompt. A label without an
        entry stands for itself.
    """

    def __init__(
        self, template: Template, tokenizer: LLMTokenizer, label_words: Dict[str, str]
    ) -> None:
        self.template = template
        self.tokenizer = tokenizer
        self.label_words = label_words
        # Answers end with the LLM's own end token.
        self.end: int = tokenizer.end[0]
        before, rest = template.prompt.split("{text}")
        self.before = tokenizer.bos + self.encode(before)
        self._middle, self._after_label = rest.split("{label}")
        self._encode = lru_cache(maxsize=4096)(self.encode)
        self._numbers = lru_cache(maxsize=256)(self._make_numbers)

    def encode(self, text: str) -> List[int]:
        """RETURNS (List[int]): The tokens of a piece of the prompt."""
        return list(self.tokenizer.encode_inside(text).ids)

    def label(self, label: str) -> List[int]:
        """RETURNS (List[int]): The tokens from the end of the text to the end of the prompt."""
        word = self.label_words.get(label, label)
        return list(self._encode(self._middle)) + list(self._encode(word + self._after_label))

    def count(self) -> List[int]:
        """RETURNS (List[int]): The tokens between the prompt and the number of mentions."""
        return list(self._encode(self.template.count))

    def number(self, n: int) -> List[int]:
        """RETURNS (List[int]): The answer to the question about the number of mentions, its end
        included.
        """
        end = list(self._encode(self.template.count_end)) if n else []
        return list(self._encode(str(n))) + (end or [self.end])

    def numbers(self, highest: int) -> NumberTokens:
        """RETURNS (NumberTokens): All answers from 0 to `highest`, which is limited to MAX_COUNT."""
        return self._numbers(min(highest, MAX_COUNT))

    def _make_numbers(self, highest: int) -> NumberTokens:
        return NumberTokens([self.number(n) for n in range(highest + 1)])

    def mention(self, count: int, index: int) -> List[int]:
        """RETURNS (List[int]): The tokens between the prompt and mention number `index`."""
        parts = re.split(r"(\{count\}|\{index\})", self.template.mention)
        values = {"{count}": str(count), "{index}": str(index)}
        out: List[int] = []
        for part in parts:
            out.extend(self._encode(values.get(part, part)))
        return out

    def overhead(self, label: str) -> int:
        """RETURNS (int): The number of tokens that the questions about a label need in addition to the
        text and a mention.
        """
        prompt = len(self.before) + len(self.label(label)) + len(self.count())
        answer = max(len(self.number(MAX_COUNT)), len(self.mention(MAX_COUNT, MAX_COUNT)))
        return prompt + answer

    @property
    def count_first(self) -> bool:
        """Whether mentions are decoded after the count."""
        return "{count}" in self.template.mention


def max_text_tokens(
    prompt_encoder: TemplateEncoder, labels: Sequence[str], max_length: int, name: str
) -> int:
    """Compute how long a text can be if there must still be room for an answer of the same length.

    prompt_encoder (TemplateEncoder): The component's prompts.
    labels (Sequence[str]): The requested labels.
    max_length (int): The number of positions of the LLM.
    name (str): The component's name, for error messages.
    RETURNS (int): The maximum number of tokens.
    RAISES (LLMNERError): If the prompt of a label is too long to leave any tokens for a text.
    """
    tokens, longest = max((prompt_encoder.overhead(label), label) for label in labels)
    limit = (max_length - tokens) // 2
    if limit < 1:
        label = longest if len(longest) < 80 else f"{longest[:80]}..."
        message = Errors.E034.format(name=name, tokens=tokens, label=label, max_length=max_length)
        raise LLMNERError(message)
    return limit
