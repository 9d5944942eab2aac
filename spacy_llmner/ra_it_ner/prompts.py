"""What is asked about at once: a stretch of a Doc, with examples in front as far as there is room."""

from dataclasses import dataclass, field
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple

from spacy.tokens import Doc
from spacy.training import Example

from ..decoding.engine import Prefix
from ..decoding.generate import common_prefix
from ..errors import Errors, LLMNERError
from ..llm.tokenization import LLMTokenizer
from ..llm.word_tokens import WordTokens
from ..pipeline.gold import gold_mentions
from ..pipeline.training import known_windows
from ..pipeline.windows import Window, drop_unreadable, read_windows
from ..retrieval.examples import LabelledText
from .conversation import ConversationEncoder
from .example_selection import SelectedExamples


@dataclass
class Passage:
    """doc (int): Number of the Doc.
    words (WordTokens): Its words; characters counted in the Doc's text.
    text (str): Its text.
    labels (List[str]): What is asked for.
    selected (SelectedExamples): The examples in front of it.
    prompts (Dict[str, List[int]]): By label: the conversation, in tokens.
    """

    doc: int
    words: WordTokens
    text: str
    labels: List[str]
    selected: SelectedExamples = SelectedExamples()
    prompts: Dict[str, List[int]] = field(default_factory=dict)

    @property
    def bounds(self) -> List[Tuple[int, int]]:
        """First character of each word, and one past the last."""
        return [(int(start), int(end)) for start, end in self.words.bounds]


def common_beginning(passages: Sequence[Passage]) -> Optional[Prefix]:
    """RETURNS (Optional[Prefix]): What the prompts of several texts begin with, if that is anything."""
    if len(passages) < 2:
        return None
    # All of them: texts may be the same, and must not share the first question.
    prompts = [prompt for passage in passages for prompt in passage.prompts.values()]
    shared = common_prefix(prompts)
    return Prefix(prompts[0][:shared]) if shared else None


@dataclass(frozen=True)
class TokenBudget:
    """How long things may be.

    name (str): The component.
    setting (int): Tokens of a conversation at most, as `context` says.
    reads (int): Tokens that the LLM can read.
    window (int): Tokens of a passage.
    answer (int): Tokens of an answer.
    """

    name: str
    setting: int
    reads: int
    window: int
    answer: int
    _longest: Dict[Tuple[str, ...], Tuple[int, str]] = field(default_factory=dict, repr=False)

    @property
    def context(self) -> int:
        """Tokens of a conversation, its answer included."""
        return min(self.setting, self.reads)

    @property
    def prompt(self) -> int:
        """Tokens of a conversation up to the answer."""
        return self.context - min(self.answer, self.context // 4)

    def windows(
        self, doc: Doc, prompt_encoder: ConversationEncoder, labels: Sequence[str]
    ) -> List[Window]:
        """Cut a Doc into windows that fit behind every question for a label.

        RAISES (LLMNERError): If a question leaves no room for a text.
        """
        tokens, longest = self._longest_question(prompt_encoder, labels)
        most = self.prompt - tokens
        if most < 1:
            label = longest if len(longest) < 80 else f"{longest[:80]}..."
            message = Errors.E047 if self.setting < self.reads else Errors.E048
            raise LLMNERError(
                message.format(
                    name=self.name,
                    label=label,
                    tokens=tokens,
                    context=self.setting,
                    reads=self.reads,
                    answer=self.context - self.prompt,
                )
            )
        windows = read_windows(doc, prompt_encoder.chat.tokenizer, min(self.window, most))
        return drop_unreadable(windows, most, self.name)

    def fit(
        self, selected: SelectedExamples, passage: Passage, prompt_encoder: ConversationEncoder
    ) -> SelectedExamples:
        """Leave out examples, the least similar first, until there is room for the question."""
        label = self._longest_question(prompt_encoder, passage.labels)[1]
        while selected.examples:
            if len(prompt_encoder.encode(passage.text, selected.examples, label)) <= self.prompt:
                break
            selected = selected.without_last()
        return selected

    def _longest_question(
        self, prompt_encoder: ConversationEncoder, labels: Sequence[str]
    ) -> Tuple[int, str]:
        # Once for all Docs of a batch: there may be hundreds of labels.
        key = tuple(labels)
        if key not in self._longest:
            self._longest[key] = prompt_encoder.longest(labels)
        return self._longest[key]


def labelled_passages(
    doc: Doc, tokenizer: LLMTokenizer, window: int, spans_key: Optional[str]
) -> Iterator[LabelledText]:
    """Cut an annotated Doc into examples, windows like those that are asked about.

    YIELDS (LabelledText): Those of which all is known. They name their Doc by its text.
    """
    gold = gold_mentions(Example(doc, doc), spans_key)
    doc_id = LabelledText(doc.text).hash
    for words, mentions in known_windows(doc, read_windows(doc, tokenizer, window), gold):
        bounds = words.bounds - words.bounds[0, 0]
        entities = {
            (int(bounds[first, 0]), int(bounds[last - 1, 1]), label)
            for label, places in mentions.items()
            for first, last in places
        }
        yield LabelledText(passage_text(doc, words), tuple(sorted(entities)), doc_id)


def passage_text(doc: Any, words: WordTokens) -> str:
    """RETURNS (str): The text from the first to the last word."""
    return doc.text[int(words.bounds[0, 0]) : int(words.bounds[-1, 1])]
