"""Encode conversations for an LLM: with its chat template, or line by line for a base model.

The content of a turn is always encoded as plain characters: a text that contains the name of a control
token can't end its turn. Only what the template itself writes between the turns is encoded with control
tokens.
"""

from functools import lru_cache
from typing import List, Sequence, Tuple

from ..errors import Errors, LLMNERError
from .tokenization import LLMTokenizer

# (role, content)
Turn = Tuple[str, str]


class ChatEncoder:
    """Encodes conversations for one LLM.

    tokenizer (LLMTokenizer): The LLM's tokenizer.
    name (str): The LLM's name in error messages.
    """

    def __init__(self, tokenizer: LLMTokenizer, name: str = "") -> None:
        self.tokenizer = tokenizer
        self.name = name
        self._separators = lru_cache(maxsize=64)(self._encode_separators)
        self._content = lru_cache(maxsize=4096)(self._encode_content)

    def encode(self, turns: Sequence[Turn]) -> List[int]:
        """Encode a conversation, up to where the LLM answers.

        turns (Sequence[Turn]): The roles are "system", "user" and "assistant". The last turn is the user's
            or the assistant's. If it is the assistant's, it is left open.
        RETURNS (List[int]): Token ids. If conversations start with the same turns, their ids start with the
            same tokens.
        """
        return [token for piece in self.pieces(turns) for token in piece]

    def pieces(self, turns: Sequence[Turn]) -> List[List[int]]:
        """Encode a conversation as `encode` does, in separate pieces.

        RETURNS (List[List[int]]): The ids before the first turn, the first turn, the ids between it and
            the second turn, and so on. If the last turn is the user's, the ids that make the LLM answer
            follow it.
        """
        separators = self._separators(tuple(role for role, _ in turns))
        out = [list(separators[0])]
        for (_, content), separator in zip(turns, separators[1:]):
            out.extend([list(self._content(content)), list(separator)])
        return out

    def text(self, turns: Sequence[Turn]) -> str:
        """RETURNS (str): The text that `encode` encodes, with control tokens written as their names."""
        separators = self._separator_texts(tuple(role for role, _ in turns))
        pairs = zip(turns, separators[1:])
        return separators[0] + "".join(content + separator for (_, content), separator in pairs)

    def _encode_separators(self, roles: Tuple[str, ...]) -> List[Tuple[int, ...]]:
        texts = self._separator_texts(roles)
        out = [tuple(self.tokenizer.encode_control(text)) for text in texts]
        if not self.tokenizer.hf.chat_template:
            out[0] = (*self.tokenizer.bos, *out[0])
        return out

    def _separator_texts(self, roles: Tuple[str, ...]) -> List[str]:
        """RETURNS (List[str]): The texts before, between and after the turns."""
        answer = roles[-1] != "assistant"
        if not self.tokenizer.hf.chat_template:
            ends = ["\n" if role != "assistant" else "\n\n" for role in roles]
            return ["", *ends[:-1], ends[-1] if answer else ""]
        marks = [f"\ue000{k}\ue001" for k in range(len(roles))]
        messages = [{"role": role, "content": mark} for role, mark in zip(roles, marks)]
        try:
            rendered = self.tokenizer.hf.apply_chat_template(
                messages, add_generation_prompt=answer, tokenize=False
            )
        except Exception as e:  # an error of jinja, or of a function in the template
            raise self._template_error(roles, str(e)) from e
        out = []
        for mark in marks:
            before, found, rendered = rendered.partition(mark)
            if not found:
                raise self._template_error(roles, "it leaves out a turn")
            out.append(before)
        return [*out, rendered if answer else ""]

    def _template_error(self, roles: Sequence[str], reason: str) -> LLMNERError:
        shown = ", ".join(roles)
        return LLMNERError(Errors.E036.format(name=self.name, roles=shown, reason=reason))

    def _encode_content(self, content: str) -> List[int]:
        return list(self.tokenizer.encode_inside(content).ids)
