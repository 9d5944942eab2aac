"""The wording of RA-IT's conversations, as published for English and Chinese (RA-IT, arXiv 2406.17305)."""

import json
import re
from dataclasses import dataclass
from functools import cached_property
from typing import Dict, List, Optional, Sequence, Tuple

from ..decoding.constraints import Unconstrained
from ..errors import wrong
from ..llm.chat import ChatEncoder, Turn
from ..retrieval.examples import LabelledText


@dataclass(frozen=True)
class Conversation:
    """The wording of the conversation, in one language.

    examples (str): Start of the turn with the retrieved examples.
    example (str): One example. Must contain the placeholders {text} and {entities}. Examples are
        joined by line breaks.
    examples_read (str): The LLM's answer to the examples.
    passage (str): The turn with the text. Must contain the placeholder {text}.
    passage_read (str): The LLM's answer to the text.
    question (str): The question about one type. Must contain the placeholder {label}.
    """

    examples: str
    example: str
    examples_read: str
    passage: str
    passage_read: str
    question: str

    def __post_init__(self) -> None:
        placeholders = {
            "example": ("{text}", "{entities}"),
            "passage": ("{text}",),
            "question": ("{label}",),
        }
        for setting, needed in placeholders.items():
            if any(getattr(self, setting).count(placeholder) != 1 for placeholder in needed):
                must = f"a text with {' and '.join(needed)} exactly once"
                raise wrong(f"conversation.{setting}", "ra_it_ner", getattr(self, setting), must)


CONVERSATIONS: Dict[str, Conversation] = {
    "published_en": Conversation(
        examples="Here are some examples of named entity recognition:\n",
        example="Text: {text}\nEntity: {entities}",
        examples_read="I've read these examples.",
        passage="Text: {text}",
        passage_read="I've read this text.",
        question="What describes {label} in the text?",
    ),
    "published_zh": Conversation(
        examples="以下是一些命名实体识别的例子：\n",
        example="文本：{text}\n实体：{entities}",
        examples_read="我已读完这些例子。",
        passage="文本： {text}",
        passage_read="我已读完这段文本。",
        question='文本中属于"{label}"的实体有哪些？',
    ),
}

NOTATIONS = ("json", "python")


@dataclass(frozen=True)
class ConversationEncoder:
    """Encodes the conversation of a component for one LLM.

    chat (ChatEncoder): Encodes the turns with the LLM's chat template.
    vocab (int): The size of the LLM's vocabulary.
    conversation (Conversation): The wording.
    system (Optional[str]): Text of the system turn. None leaves it to the LLM's chat template.
    notation (str): How the entities of examples are written: "json", or "python" as in the training
        data of the released weights.
    label_words (Dict[str, str]): The words that stand for labels. A label without an entry stands for
        itself.
    label_descriptions (Dict[str, str]): Descriptions of labels, added in brackets after the word in
        the question.
    """

    chat: ChatEncoder
    vocab: int
    conversation: Conversation
    system: Optional[str]
    notation: str
    label_words: Dict[str, str]
    label_descriptions: Dict[str, str]

    @cached_property
    def unconstrained(self) -> Unconstrained:
        """The constraint that allows all answers. All texts share one object, so that the decoding engine
        recognizes that their allowed tokens are the same.
        """
        return Unconstrained(self.vocab, self.end)

    @property
    def end(self) -> int:
        """The token that ends an answer."""
        return self.chat.tokenizer.end[0]

    def turns(self, text: str, examples: Sequence[LabelledText], label: str) -> List[Turn]:
        """Write the conversation about one label.

        text (str): The text.
        examples (Sequence[LabelledText]): The examples before it. If there are none, the conversation
            is that of plain instruction tuning.
        label (str): The requested label.
        RETURNS (List[Turn]): The turns up to the question.
        """
        wording = self.conversation
        out: List[Turn] = []
        if self.system is not None:
            out.append(("system", self.system))
        if examples:
            shown = wording.examples + "\n".join(self.example(e) for e in examples)
            out += [("user", shown), ("assistant", wording.examples_read)]
        out.append(("user", wording.passage.replace("{text}", text)))
        out.append(("assistant", wording.passage_read))
        return [*out, ("user", self.question(label))]

    def encode(self, text: str, examples: Sequence[LabelledText], label: str) -> List[int]:
        """Encode the conversation about one label up to the LLM's answer. See `turns` for the arguments.

        RETURNS (List[int]): The tokens. Conversations about the same text and examples begin with the
            same tokens.
        """
        return self.chat.encode(self.turns(text, examples, label))

    def acknowledgements(
        self, text: str, examples: Sequence[LabelledText], label: str
    ) -> List[bool]:
        """Find the tokens of the turns in which the LLM says that it has read the examples or the text.

        RETURNS (List[bool]): For each token of `encode`, whether it belongs to such a turn.
        """
        turns = self.turns(text, examples, label)
        out: List[bool] = []
        for k, piece in enumerate(self.chat.pieces(turns)):
            acknowledges = k % 2 == 1 and turns[k // 2][0] == "assistant"
            out.extend([acknowledges] * len(piece))
        return out

    def question(self, label: str) -> str:
        """RETURNS (str): The question about a label."""
        word = self.label_words.get(label, label)
        description = self.label_descriptions.get(label)
        word = f"{word} ({description})" if description else word
        return self.conversation.question.replace("{label}", word)

    def example(self, example: LabelledText) -> str:
        """RETURNS (str): A labelled text with all its entities, as it is shown to the LLM."""
        entities = [
            {example.text[start:end]: self.label_words.get(label, label)}
            for start, end, label in example.entities
        ]
        written = str(entities)
        if self.notation == "json":
            written = json.dumps(entities, ensure_ascii=False)
        # Replace the placeholders in one pass, so that a text that contains "{entities}" stays as it is.
        parts = re.split(r"(\{text\}|\{entities\})", self.conversation.example)
        values = {"{text}": example.text, "{entities}": written}
        return "".join(values.get(part, part) for part in parts)

    def decode(self, ids: Sequence[int]) -> str:
        """RETURNS (str): The text of some tokens, without control tokens."""
        return self.chat.tokenizer.hf.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )

    def longest(self, labels: Sequence[str]) -> Tuple[int, str]:
        """Find the label with the longest question.

        RETURNS (Tuple[int, str]): The number of tokens in the conversation about an empty text, and
            the label.
        """
        return max((len(self.encode("", [], label)), label) for label in labels)
