"""Split long texts into windows: the words of a Doc that are read in one prompt."""

import logging
from dataclasses import dataclass
from typing import Callable, Iterable, List, Sequence, Tuple

from spacy.tokens import Doc, Token

from ..llm.tokenization import LLMTokenizer
from ..llm.word_tokens import WordTokens, word_tokens
from ..util import is_blank

logger = logging.getLogger("spacy_llmner")

SENTENCE_ENDS = frozenset(".!?。！？…")
# Quotes and brackets that close after the sentence end belong to the sentence.
CLOSING = frozenset("\"'”’»)]）】》」』")


@dataclass
class Window:
    """A window of a Doc.

    words (WordTokens): Its words, with character offsets in the whole text.
    tokens (List[int]): The index of each word's token in the Doc.
    """

    words: WordTokens
    tokens: List[int]


def read_windows(doc: Doc, tokenizer: LLMTokenizer, size: int) -> List[Window]:
    """Encode the words of a Doc and split them into windows.

    A window ends at the end of a sentence: as set on the Doc or, if it has no sentence boundaries, at
    punctuation or a line break. Only a sentence that is longer than a window is split.

    doc (Doc): The Doc.
    tokenizer (LLMTokenizer): The LLM's tokenizer.
    size (int): Maximum number of LLM tokens in a window. A longer word is a window of its own.
    RETURNS (List[Window]): The windows. Every word is in exactly one of them.
    """
    tokens = [token for token in doc if not is_blank(token.text)]
    words = word_tokens(tokenizer, doc.text, [(t.idx, t.idx + len(t)) for t in tokens], inside=True)
    known = doc.has_annotation("SENT_START")
    out: List[Window] = []
    start = 0
    while start < len(tokens):
        low = int(words.first[start])
        end = start + 1
        while end < len(tokens) and int(words.last[end]) - low < size:
            end += 1
        if end < len(tokens):
            breaks = (k for k in range(end, start, -1) if may_start_sentence(tokens, k, known))
            end = next(breaks, end)
        out.append(Window(words.part(start, end).stripped(), [t.i for t in tokens[start:end]]))
        start = end
    return out


def cut_into_windows(
    shares: Sequence[float], begins: Callable[[int], bool]
) -> List[Tuple[int, int]]:
    """Split words into windows, at sentence boundaries where possible.

    shares (Sequence[float]): For each word, the fraction of a window that it fills. A word with a
        fraction above 1 is left out.
    begins (Callable[[int], bool]): Whether a sentence can begin with a word.
    RETURNS (List[Tuple[int, int]]): The first word, and one past the last, of each window.
    """
    out = []
    start = 0
    while start < len(shares):
        end, used = start, 0.0
        while end < len(shares) and used + shares[end] <= 1.0 + 1e-9:
            used += shares[end]
            end += 1
        if end == start:
            start += 1  # a word that is longer than a window can't be a name
            continue
        if end < len(shares):
            end = next((k for k in range(end, start, -1) if begins(k)), end)
        out.append((start, end))
        start = end
    n_lost = len(shares) - sum(end - start for start, end in out)
    if n_lost:
        logger.debug("%d words are not read: each is longer than a window", n_lost)
    return out


def drop_unreadable(windows: Iterable[Window], max_tokens: int, name: str) -> List[Window]:
    """Leave out windows of a single word that is too long for the LLM, and therefore can't be a name.

    windows (Iterable[Window]): The windows.
    max_tokens (int): Maximum number of tokens that the LLM can read.
    name (str): The component's name, for the log.
    RETURNS (List[Window]): The windows that are left and have tokens.
    """
    windows = list(windows)
    out = [w for w in windows if len(w.words.ids) <= max_tokens]
    if len(out) < len(windows):
        n, total = len(windows) - len(out), sum(len(w.tokens) for w in windows)
        logger.debug(
            "%s: %d of %d words are too long for the LLM (%d tokens)", name, n, total, max_tokens
        )
    return [w for w in out if len(w.words.ids)]


def may_start_sentence(tokens: Sequence[Token], k: int, known: bool) -> bool:
    """Decide whether a sentence can begin with a token.

    Without sentence boundaries on the Doc, a sentence begins on a new line, or after a full stop and
    the quotes and brackets that close with it. The full stop of an abbreviation such as "U.S." doesn't
    count.

    tokens (Sequence[Token]): Tokens of a Doc.
    k (int): The index of the token in `tokens`.
    known (bool): Whether the Doc has sentence boundaries. If so, they are used.
    RETURNS (bool): Whether a sentence can begin with token k.
    """
    if known:
        return bool(tokens[k].is_sent_start)
    gap = tokens[k].nbor(-1)
    if is_blank(gap.text) and "\n" in gap.text:
        return True
    if _closes(tokens[k]):
        return False
    end = k - 1
    while end > 0 and _closes(tokens[end]):
        end -= 1
    return tokens[end].is_punct and tokens[end].text[-1] in SENTENCE_ENDS


def _closes(token: Token) -> bool:
    """Check whether a token is a closing quote or bracket. A quotation mark that looks the same on both
    sides is a closing one if there is no space before it.
    """
    gap = token.nbor(-1)
    return token.text in CLOSING and not gap.whitespace_ and not is_blank(gap.text)
