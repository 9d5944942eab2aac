"""Passages and their prompts: windows of Docs, with as many examples as the token budget allows."""

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
    """A window of a Doc with its examples and prompts.

    doc (int): The index of the Doc in the batch.
    words (WordTokens): Its words, with character offsets in the Doc's text.
    text (str): Its text.
    labels (List[str]): The requested labels.
    selected (SelectedExamples): The examples before it.
    prompts (Dict[str, List[int]]): The tokens of the conversation about each label.
    """

    doc: int
    words: WordTokens
    text: str
    labels: List[str]
    selected: SelectedExamples = SelectedExamples()
    prompts: Dict[str, List[int]] = field(default_factory=dict)

    @property
    def bounds(self) -> List[Tuple[int, int]]:
        """The first character, and one past the last, of each word."""
        return [(int(start), int(end)) for start, end in self.words.bounds]


def common_beginning(passages: Sequence[Passage]) -> Optional[Prefix]:
    """RETURNS (Optional[Prefix]): The longest common prefix of the prompts of several passages; None if
    there isn't one.
    """
    if len(passages) < 2:
        return None
    # Compare the prompts of all labels. Otherwise identical texts would share the first question as well.
    prompts = [prompt for passage in passages for prompt in passage.prompts.values()]
    shared = common_prefix(prompts)
    return Prefix(prompts[0][:shared]) if shared else None


@dataclass(frozen=True)
class TokenBudget:
    """The maximum lengths of conversations and their parts.

    name (str): The component's name, for error messages.
    max_context (int): Maximum number of tokens in a conversation, from the setting `context`.
    max_length (int): The number of positions of the LLM.
    window (int): Maximum number of tokens in a passage.
    answer (int): Maximum number of tokens in an answer.
    """

    name: str
    max_context: int
    max_length: int
    window: int
    answer: int
    _longest: Dict[Tuple[str, ...], Tuple[int, str]] = field(default_factory=dict, repr=False)

    @property
    def context(self) -> int:
        """Maximum number of tokens in a conversation, its answer included."""
        return min(self.max_context, self.max_length)

    @property
    def prompt(self) -> int:
        """Maximum number of tokens in a conversation before the answer: at least three quarters of the
        context.
        """
        return self.context - min(self.answer, self.context // 4)

    def windows(
        self, doc: Doc, prompt_encoder: ConversationEncoder, labels: Sequence[str]
    ) -> List[Window]:
        """Split a Doc into windows that fit into the prompt of every label.

        doc (Doc): The Doc.
        prompt_encoder (ConversationEncoder): Encodes the conversation for the LLM.
        labels (Sequence[str]): The requested labels.
        RETURNS (List[Window]): The windows.
        RAISES (LLMNERError): If the prompt of a label is too long to leave any tokens for a text.
        """
        tokens, longest = self._longest_question(prompt_encoder, labels)
        limit = self.prompt - tokens
        if limit < 1:
            label = longest if len(longest) < 80 else f"{longest[:80]}..."
            message = Errors.E047 if self.max_context < self.max_length else Errors.E048
            raise LLMNERError(
                message.format(
                    name=self.name,
                    label=label,
                    tokens=tokens,
                    context=self.max_context,
                    reads=self.max_length,
                    answer=self.context - self.prompt,
                )
            )
        windows = read_windows(doc, prompt_encoder.chat.tokenizer, min(self.window, limit))
        return drop_unreadable(windows, limit, self.name)

    def fit(
        self, selected: SelectedExamples, passage: Passage, prompt_encoder: ConversationEncoder
    ) -> SelectedExamples:
        """Leave out examples, the least similar first, until the longest prompt of a passage fits.

        RETURNS (SelectedExamples): The examples that are left.
        """
        label = self._longest_question(prompt_encoder, passage.labels)[1]
        while selected.examples:
            if len(prompt_encoder.encode(passage.text, selected.examples, label)) <= self.prompt:
                break
            selected = selected.without_last()
        return selected

    def _longest_question(
        self, prompt_encoder: ConversationEncoder, labels: Sequence[str]
    ) -> Tuple[int, str]:
        # Cached for all Docs of a batch: there can be hundreds of labels.
        key = tuple(labels)
        if key not in self._longest:
            self._longest[key] = prompt_encoder.longest(labels)
        return self._longest[key]


def labelled_passages(
    doc: Doc, tokenizer: LLMTokenizer, window: int, spans_key: Optional[str]
) -> Iterator[LabelledText]:
    """Split an annotated Doc into examples, with windows like those in prediction.

    doc (Doc): The Doc.
    tokenizer (LLMTokenizer): The LLM's tokenizer.
    window (int): Maximum number of tokens in a window.
    spans_key (Optional[str]): The doc.spans group with the entities; None for doc.ents.
    YIELDS (LabelledText): The windows that are completely annotated. Their `doc_id` is the hash of
        the Doc's text.
    """
    gold = gold_mentions(Example(doc, doc), spans_key)
    doc_id = LabelledText(doc.text).hash
    for words, mentions in known_windows(doc, read_windows(doc, tokenizer, window), gold):
        bounds = words.bounds - words.bounds[0, 0]
        entities = {
            (int(bounds[first, 0]), int(bounds[last - 1, 1]), label)
            for label, spans in mentions.items()
            for first, last in spans
        }
        yield LabelledText(passage_text(doc, words), tuple(sorted(entities)), doc_id)


def passage_text(doc: Any, words: WordTokens) -> str:
    """RETURNS (str): The text from the first to the last word."""
    return doc.text[int(words.bounds[0, 0]) : int(words.bounds[-1, 1])]
