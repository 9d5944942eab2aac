"""BM25: score texts by the words that they share with a query."""

import re
from collections import Counter
from typing import Dict, Iterable, List, Optional, Sequence, Tuple

import numpy as np

# The constants of summarization.bm25 in gensim 3, which RA-IT uses (arXiv 2406.17305).
K1, B, EPSILON = 1.5, 0.75, 0.25
# A word, or a single Chinese or Japanese character, since these languages don't separate words.
CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
WORD = re.compile(rf"[{CJK}]|[^\W{CJK}]+")


def words_of(text: str) -> List[str]:
    """RETURNS (List[str]): The words of a text, case-folded and without punctuation. Each Chinese or
    Japanese character is a word."""
    return WORD.findall(text.casefold())


class BM25:
    """BM25 with the formula of gensim 3, which is also that of BM25Okapi in rank-bm25. Texts can be added
    at any time.

    texts (Iterable[str]): The texts of the corpus.
    """

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self._ids: Dict[str, int] = {}
        # For each text: the ids of its distinct words, ascending; the number of times that each occurs; and
        # the number of words in the text.
        self._words: List[np.ndarray] = []
        self._counts: List[np.ndarray] = []
        self._lengths: List[int] = []
        self._n_words = 0
        # For each word: the number of texts that contain it.
        self._n_texts: List[int] = []
        self._idf: Optional[np.ndarray] = None
        self.add(texts)

    def __len__(self) -> int:
        return len(self._lengths)

    def add(self, texts: Iterable[str]) -> None:
        """Append texts to the corpus."""
        for text in texts:
            counts = Counter(self._ids.setdefault(w, len(self._ids)) for w in words_of(text))
            self._n_texts.extend([0] * (len(self._ids) - len(self._n_texts)))
            for word in counts:
                self._n_texts[word] += 1
            order = sorted(counts)
            self._words.append(np.array(order, dtype=np.int32))
            self._counts.append(np.array([counts[w] for w in order], dtype=np.int32))
            self._lengths.append(sum(counts.values()))
            self._n_words += self._lengths[-1]
            self._idf = None

    def score(self, query: str, numbers: Sequence[int]) -> np.ndarray:
        """Score texts of the corpus.

        query (str): Any text. A word that occurs twice in it counts twice.
        numbers (Sequence[int]): The indices of the texts to score.
        RETURNS (ndarray): The sums over the words of the query, not normalized. float64, shape (numbers,).
        """
        scores = np.zeros(len(numbers))
        words, times, _ = self._look_up(query)
        if not len(words) or not len(numbers):
            return scores
        inside = np.concatenate([self._words[n] for n in numbers])
        counts = np.concatenate([self._counts[n] for n in numbers])
        row = np.repeat(np.arange(len(numbers)), [len(self._words[n]) for n in numbers])
        column = np.searchsorted(words, inside).clip(max=len(words) - 1)
        hit = words[column] == inside
        row, column, counts = row[hit], column[hit], counts[hit]
        lengths = np.array([self._lengths[n] for n in numbers])[row]
        values = (times * self._idfs()[words])[column] * self._saturated(counts, lengths)
        np.add.at(scores, row, values)
        return scores

    def self_score(self, query: str) -> float:
        """Score a query against itself, as if it were a text of the corpus. This is roughly the maximum of
        `score`.

        A word that no text contains counts like the rarest words. Otherwise, if a query had only one known
        word, a text with just this word would be a perfect match.

        query (str): Any text.
        RETURNS (float): The score, or 0 if the corpus is empty.
        """
        if not len(self):
            return 0.0
        words, times, unknown = self._look_up(query)
        length = int(times.sum()) + sum(unknown)
        rarest = np.log(len(self) + 0.5) - np.log(0.5)
        known = (times * self._idfs()[words] * self._saturated(times, length)).sum()
        others = np.array(unknown, dtype=np.int64)
        return float(known + (others * rarest * self._saturated(others, length)).sum())

    def _look_up(self, query: str) -> Tuple[np.ndarray, np.ndarray, List[int]]:
        """RETURNS (Tuple[ndarray, ndarray, List[int]]): The ids of the known words in a query, ascending;
        how often each of them occurs; and how often each unknown word occurs."""
        counts = Counter(words_of(query))
        known = sorted((self._ids[w], n) for w, n in counts.items() if w in self._ids)
        words = np.array([w for w, _ in known], dtype=np.int32)
        times = np.array([n for _, n in known], dtype=np.int64)
        return words, times, [n for w, n in counts.items() if w not in self._ids]

    def _saturated(self, counts: np.ndarray, lengths: "np.ndarray | int") -> np.ndarray:
        mean = max(self._n_words / max(len(self), 1), 1e-9)
        return counts * (K1 + 1) / (counts + K1 * (1 - B + B * lengths / mean))

    def _idfs(self) -> np.ndarray:
        if self._idf is None:
            having = np.array(self._n_texts, dtype=np.float64)
            idf = np.log(len(self) - having + 0.5) - np.log(having + 0.5)
            # Otherwise, a shared word would lower the score if more than half of the texts contain it.
            idf[idf < 0] = EPSILON * idf.mean() if len(idf) else 0.0
            self._idf = idf
        return self._idf
