"""Prompts of a stream: texts to continue, or messages."""

from typing import Any, Dict, List, Mapping, Sequence, Union

from ...errors import Errors, LLMNERError, wrong
from ...llm.chat import ChatEncoder
from ...llm.hidden_states import Features
from ...llm.loading import LoadedLLM
from ...llm.tokenization import Encoding

Prompt = Union[str, Sequence[Dict[str, str]]]


class EncodedPrompt:
    """A prompt as the LLM reads it, and the part of it that is text for entities.

    ids (List[int]): All ids: sink or template, text, template.
    first (int): Where the text's tokens start.
    encoding (Encoding): The text's tokens.
    text (str): The text.
    separator (str): What stands between it and the answer.
    """

    def __init__(
        self, ids: List[int], first: int, encoding: Encoding, text: str, separator: str
    ) -> None:
        self.ids = ids
        self.first = first
        self.encoding = encoding
        self.text = text
        self.separator = separator

    def cut(self, features: Features) -> Features:
        """RETURNS (Features): Of the text's tokens only."""
        part = slice(self.first, self.first + len(self.encoding))
        attention = None if features.attention is None else features.attention[part]
        return Features(features.hidden[part], attention)


def encode_prompt(llm: LoadedLLM, prompt: Prompt) -> EncodedPrompt:
    """Encode a text with the sink in front, or messages with the LLM's chat template, in which no message
    can end its turn.

    RETURNS (EncodedPrompt): Of messages, the last one's content is the text.
    RAISES (LLMNERError): If it is neither, or the LLM's chat template can't write it.
    """
    if isinstance(prompt, str):
        encoding = llm.tokenizer.encode(prompt)
        bos = llm.tokenizer.bos
        return EncodedPrompt(bos + encoding.ids, len(bos), encoding, prompt, "")
    if not llm.tokenizer.hf.chat_template:
        raise LLMNERError(Errors.E028.format(name=llm.spec.name))
    if not (len(prompt) and all(_is_message(message) for message in prompt)):
        must = "a text, or messages such as [{'role': 'user', 'content': 'Who came?'}]"
        raise wrong("prompt", "stream", prompt, must)
    turns = [(message["role"], message["content"]) for message in prompt]
    text = turns[-1][1].strip()
    *pieces, _, after = ChatEncoder(llm.tokenizer, llm.spec.name).pieces(turns)
    before = [token for piece in pieces for token in piece]
    encoding = llm.tokenizer.encode_inside(text)
    ids = before + encoding.ids + after
    return EncodedPrompt(ids, len(before), encoding, text, "\n\n")


def _is_message(message: Any) -> bool:
    return isinstance(message, Mapping) and all(
        isinstance(message.get(key), str) for key in ("role", "content")
    )
