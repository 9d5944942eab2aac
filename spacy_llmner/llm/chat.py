"""Conversations in the tokens of an LLM: by its chat template, or line by line for a base model.

What a turn says is always read as plain characters: a text that spells a control token can't end its
turn. Only what the template itself writes between the turns is read with control tokens.
"""

from functools import lru_cache
from typing import List, Sequence, Tuple

from ..errors import Errors, LLMNERError
from .tokenization import LLMTokenizer

# (role, what is said)
Turn = Tuple[str, str]


class ChatEncoder:
    """How one LLM reads conversations.

    tokenizer (LLMTokenizer): The LLM's tokenizer.
    name (str): What the LLM is called, for messages.
    """

    def __init__(self, tokenizer: LLMTokenizer, name: str = "") -> None:
        self.tokenizer = tokenizer
        self.name = name
        self._glue = lru_cache(maxsize=64)(self._make_glue)
        self._say = lru_cache(maxsize=4096)(self._encode)

    def encode(self, turns: Sequence[Turn]) -> List[int]:
        """Encode a conversation, up to where the LLM answers.

        turns (Sequence[Turn]): Roles are "system", "user" and "assistant". The last one is the user's,
            or the assistant's: then it is not ended.
        RETURNS (List[int]): Conversations that begin alike have tokens that begin alike.
        """
        return [token for piece in self.pieces(turns) for token in piece]

    def pieces(self, turns: Sequence[Turn]) -> List[List[int]]:
        """RETURNS (List[List[int]]): The same in pieces: what stands in front of the first turn, the first
        turn, what stands between it and the second one, and so on; behind a last turn of the user what
        makes the LLM answer."""
        glue = self._glue(tuple(role for role, _ in turns))
        out = [list(glue[0])]
        for (_, content), behind in zip(turns, glue[1:]):
            out.extend([list(self._say(content)), list(behind)])
        return out

    def text(self, turns: Sequence[Turn]) -> str:
        """RETURNS (str): What `encode` encodes, the control tokens spelt out."""
        glue = self._between(tuple(role for role, _ in turns))
        return glue[0] + "".join(said + g for (_, said), g in zip(turns, glue[1:]))

    def _make_glue(self, roles: Tuple[str, ...]) -> List[Tuple[int, ...]]:
        out = [tuple(self.tokenizer.encode_control(glue)) for glue in self._between(roles)]
        if not self.tokenizer.hf.chat_template:
            out[0] = (*self.tokenizer.bos, *out[0])
        return out

    def _between(self, roles: Tuple[str, ...]) -> List[str]:
        """RETURNS (List[str]): What stands in front of the turns, between them and behind them."""
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
        except Exception as e:  # of the template: jinja's errors, or whatever it calls
            raise self._refused(roles, str(e)) from e
        out = []
        for mark in marks:
            before, found, rendered = rendered.partition(mark)
            if not found:
                raise self._refused(roles, "it leaves out a turn")
            out.append(before)
        return [*out, rendered if answer else ""]

    def _refused(self, roles: Sequence[str], reason: str) -> LLMNERError:
        shown = ", ".join(roles)
        return LLMNERError(Errors.E036.format(name=self.name, roles=shown, reason=reason))

    def _encode(self, content: str) -> List[int]:
        return list(self.tokenizer.encode_inside(content).ids)
