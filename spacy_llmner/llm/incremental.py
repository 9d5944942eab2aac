"""Encode a text that arrives in pieces, so that each token is final once it is returned."""

import re
from typing import List

import numpy as np

from .tokenization import Encoding, LLMTokenizer

# Where a text is cut: before a space, and after a letter or digit before other white space or Chinese
# punctuation. No token crosses such a place, and the tokens before it don't depend on what follows. Other
# places don't qualify: many tokenizers join line breaks to the punctuation before them.
# Llama-style tokenizers write spaces as "▁".
CUT = re.compile(r"(?<=[^\s▁])(?= )|(?<=[^\W_])(?=[\s，。、；：！？])")


class IncrementalEncoder:
    """Encodes a text that arrives in pieces. The text is cut between words, and each part is encoded as
    soon as the next part begins. So the tokens depend only on the text, not on its pieces.

    For tokenizers that split a text into words before they encode it, and for those of SentencePiece, the
    tokens equal those of the whole text.

    tokenizer (LLMTokenizer): The LLM's tokenizer.
    """

    def __init__(self, tokenizer: LLMTokenizer) -> None:
        self.tokenizer = tokenizer
        self.text = ""
        # Number of characters whose tokens were returned, and of those without a cut after them.
        self.encoded = 0
        self._searched = 1

    def push(self, piece: str) -> Encoding:
        """Add the next piece of the text.

        RETURNS (Encoding): The tokens that are final now, with offsets in the whole text.
        """
        self.text += piece
        cuts = [match.start() for match in CUT.finditer(self.text, self._searched)]
        # The character after a cut must be known.
        self._searched = max(len(self.text), 1)
        # Where a tokenizer drops the last character, white space before and after it would be adjacent.
        return self._encode([cut for cut in cuts if not self.tokenizer.drops(self.text[cut - 1])])

    def end(self) -> Encoding:
        """RETURNS (Encoding): The tokens of the rest of the text."""
        return self._encode([len(self.text)])

    def _encode(self, cuts: List[int]) -> Encoding:
        ids: List[int] = []
        starts, ends = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.int64)]
        for cut in cuts:
            encode = self.tokenizer.encode_inside if self.encoded else self.tokenizer.encode
            part = encode(self.text[self.encoded : cut])
            ids += part.ids
            starts.append(part.starts + self.encoded)
            ends.append(part.ends + self.encoded)
            self.encoded = cut
        return Encoding(ids, np.concatenate(starts), np.concatenate(ends))
