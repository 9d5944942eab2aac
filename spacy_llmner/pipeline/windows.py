"""Long texts are read in windows: words of a Doc that go into one prompt."""

import logging
from dataclasses import dataclass
from typing import Callable, Iterable, List, Sequence, Tuple

from spacy.tokens import Doc, Token

from ..llm.tokenization import LLMTokenizer
from ..llm.word_tokens import WordTokens, word_tokens

logger = logging.getLogger("spacy_llmner")

SENTENCE_ENDS = frozenset(".!?。！？…")
# What closes behind them belongs to the sentence.
CLOSING = frozenset("\"'”’»)]）】》」』")


@dataclass
class Window:
    """words (WordTokens): Of the window; characters counted in the whole text.
    tokens (List[int]): Which token of the Doc each of them is."""

    words: WordTokens
    tokens: List[int]


def read_windows(doc: Doc, tokenizer: LLMTokenizer, size: int) -> List[Window]:
    """Encode the words of a Doc, and cut them into windows.

    A window ends with a sentence: where the Doc has boundaries by them, else by punctuation or a line
    break; only a sentence that is longer than a window is cut.

    size (int): Tokens of the LLM in a window at most; a word that has more has a window of its own.
    RETURNS (List[Window]): They cover every word once.
    """
    tokens = [token for token in doc if not token.is_space]
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
    """Cut words into windows, between sentences where that is possible.

    shares (Sequence[float]): Of a window, by word.
    begins (Callable[[int], bool]): Whether a sentence may begin with a word.
    RETURNS (List[Tuple[int, int]]): First word of each window, and one past its last.
    """
    out = []
    start = 0
    while start < len(shares):
        end, used = start, 0.0
        while end < len(shares) and used + shares[end] <= 1.0 + 1e-9:
            used += shares[end]
            end += 1
        if end == start:
            start += 1  # a single word that can't be read at once is no name
            continue
        if end < len(shares):
            end = next((k for k in range(end, start, -1) if begins(k)), end)
        out.append((start, end))
        start = end
    n_lost = len(shares) - sum(end - start for start, end in out)
    if n_lost:
        logger.debug("%d words are not read: each is longer than a window", n_lost)
    return out


def drop_unreadable(windows: Iterable[Window], most: int, name: str) -> List[Window]:
    """Leave out single words that the LLM can't read at once, which are no names.

    most (int): Tokens that it can read.
    name (str): The component.
    RETURNS (List[Window]): Those that are left and have tokens.
    """
    windows = list(windows)
    out = [w for w in windows if len(w.words.ids) <= most]
    if len(out) < len(windows):
        n, total = len(windows) - len(out), sum(len(w.tokens) for w in windows)
        logger.debug(
            "%s: %d of %d words are too long for the LLM (%d tokens)", name, n, total, most
        )
    return [w for w in out if len(w.words.ids)]


def may_start_sentence(tokens: Sequence[Token], k: int, known: bool) -> bool:
    """Whether a sentence may begin with token k: as the Doc's boundaries say, if they are known; else
    behind a full stop and the quotes and brackets that close with it, but not behind that of an
    abbreviation such as "U.S.", or with a line."""
    if known:
        return bool(tokens[k].is_sent_start)
    gap = tokens[k].nbor(-1)
    if gap.is_space and "\n" in gap.text:
        return True
    if _closes(tokens[k]):
        return False
    end = k - 1
    while end > 0 and _closes(tokens[end]):
        end -= 1
    return tokens[end].is_punct and tokens[end].text[-1] in SENTENCE_ENDS


def _closes(token: Token) -> bool:
    """Whether it closes what stands before it. A quotation mark that looks the same on both sides does if
    there is no space before it."""
    gap = token.nbor(-1)
    return token.text in CLOSING and not gap.whitespace_ and not gap.is_space
