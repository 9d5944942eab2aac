"""What RA-IT's conversations say, as published for English and Chinese (methods.md 3a.1)."""

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
    """The wording of one language.

    examples (str): Begins the turn with retrieved examples.
    example (str): One of them, with {text} and {entities}; they are joined by line breaks.
    examples_read (str): The LLM's answer to it.
    passage (str): The turn with the text, with {text}.
    passage_read (str): The LLM's answer to it.
    question (str): Asks for one type, with {label}.
    """

    examples: str
    example: str
    examples_read: str
    passage: str
    passage_read: str
    question: str

    def __post_init__(self) -> None:
        slots = {"example": ("{text}", "{entities}"), "passage": ("{text}",)}
        for setting, needed in {**slots, "question": ("{label}",)}.items():
            if any(getattr(self, setting).count(slot) != 1 for slot in needed):
                must = f"a text in which {' and '.join(needed)} occurs once"
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
    """A conversation as one component has it with one LLM.

    chat (ChatEncoder): How the LLM reads conversations.
    vocab (int): Number of its tokens.
    conversation (Conversation): What is said.
    system (Optional[str]): The system turn; None leaves it to the LLM's chat template.
    notation (str): Entities of examples are written in "json", or in Python's notation as in the
        released weights' training data ("python").
    label_words (Dict[str, str]): What a label is called; others go by their own name.
    label_descriptions (Dict[str, str]): What stands in brackets behind it in the question.
    """

    chat: ChatEncoder
    vocab: int
    conversation: Conversation
    system: Optional[str]
    notation: str
    label_words: Dict[str, str]
    label_descriptions: Dict[str, str]

    @cached_property
    def anything(self) -> Unconstrained:
        """Answers without constraint. One for all texts: the decoder sees that the tokens are the same."""
        return Unconstrained(self.vocab, self.end)

    @property
    def end(self) -> int:
        """The token that ends an answer."""
        return self.chat.tokenizer.end[0]

    def turns(self, text: str, examples: Sequence[LabelledText], label: str) -> List[Turn]:
        """RETURNS (List[Turn]): The conversation in which a label is asked for. Without examples it is
        that of plain instruction tuning."""
        said = self.conversation
        out: List[Turn] = []
        if self.system is not None:
            out.append(("system", self.system))
        if examples:
            shown = said.examples + "\n".join(self.example(e) for e in examples)
            out += [("user", shown), ("assistant", said.examples_read)]
        out += [("user", said.passage.replace("{text}", text)), ("assistant", said.passage_read)]
        return [*out, ("user", self.question(label))]

    def encode(self, text: str, examples: Sequence[LabelledText], label: str) -> List[int]:
        """RETURNS (List[int]): The same in tokens, up to where the LLM answers. What is asked about one
        text begins alike."""
        return self.chat.encode(self.turns(text, examples, label))

    def acknowledgements(
        self, text: str, examples: Sequence[LabelledText], label: str
    ) -> List[bool]:
        """RETURNS (List[bool]): Which of these tokens the LLM says itself: that it has read."""
        turns = self.turns(text, examples, label)
        out: List[bool] = []
        for k, piece in enumerate(self.chat.pieces(turns)):
            said = k % 2 == 1 and turns[k // 2][0] == "assistant"
            out.extend([said] * len(piece))
        return out

    def question(self, label: str) -> str:
        word = self.label_words.get(label, label)
        description = self.label_descriptions.get(label)
        word = f"{word} ({description})" if description else word
        return self.conversation.question.replace("{label}", word)

    def example(self, example: LabelledText) -> str:
        """RETURNS (str): A labelled text with all its entities, as it is shown."""
        entities = [
            {example.text[start:end]: self.label_words.get(label, label)}
            for start, end, label in example.entities
        ]
        written = str(entities)
        if self.notation == "json":
            written = json.dumps(entities, ensure_ascii=False)
        # Slot by slot: what a text says is no slot.
        parts = re.split(r"(\{text\}|\{entities\})", self.conversation.example)
        values = {"{text}": example.text, "{entities}": written}
        return "".join(values.get(part, part) for part in parts)

    def decode(self, ids: Sequence[int]) -> str:
        """RETURNS (str): What some tokens spell, without control tokens."""
        return self.chat.tokenizer.hf.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )

    def longest(self, labels: Sequence[str]) -> Tuple[int, str]:
        """RETURNS (Tuple[int, str]): Tokens of a conversation about an empty text, and the label for which
        there are most."""
        return max((len(self.encode("", [], label)), label) for label in labels)
