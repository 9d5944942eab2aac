"""The prompt of a stream: a text to continue, or chat messages."""

from typing import Any, Dict, List, Mapping, Sequence, Union

from ...errors import Errors, LLMNERError, wrong
from ...llm.chat import ChatEncoder
from ...llm.hidden_states import Features
from ...llm.loading import LoadedLLM
from ...llm.tokenization import Encoding

Prompt = Union[str, Sequence[Dict[str, str]]]


class EncodedPrompt:
    """A prompt as token ids, and the part of it in which entities are found.

    ids (List[int]): All token ids: the BOS token or chat template, the text, and the rest of the template.
    first (int): Index of the text's first token.
    encoding (Encoding): The text's tokens.
    text (str): The text.
    separator (str): Text between `text` and the answer.
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
        """RETURNS (Features): The features of the text's tokens only."""
        part = slice(self.first, self.first + len(self.encoding))
        attention = None if features.attention is None else features.attention[part]
        return Features(features.hidden[part], attention)


def encode_prompt(llm: LoadedLLM, prompt: Prompt) -> EncodedPrompt:
    """Encode a text after the BOS token, or messages with the LLM's chat template.

    Control tokens in the content of a message are read as plain text, so a message can't end its own turn.

    RETURNS (EncodedPrompt): With messages, `text` is the content of the last one.
    RAISES (LLMNERError): If the prompt is neither a text nor messages, or if the LLM's chat template can't
        render it.
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
