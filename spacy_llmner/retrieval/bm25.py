"""BM25: how many telling words two texts share."""

import re
from collections import Counter
from typing import Dict, Iterable, List, Optional, Sequence, Tuple

import numpy as np

# Of gensim's old summarization.bm25, which RA-IT used (methods.md 3a.2).
K1, B, EPSILON = 1.5, 0.75, 0.25
# A word; or a Chinese character (or one of Japanese), since words aren't separated there.
CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
WORD = re.compile(rf"[{CJK}]|[^\W{CJK}]+")


def words_of(text: str) -> List[str]:
    """RETURNS (List[str]): Words with case folded; each Chinese character and each Japanese one is a
    word. Punctuation is none."""
    return WORD.findall(text.casefold())


class BM25:
    """BM25 with the formula of gensim 3 (and of rank-bm25's BM25Okapi). Texts can be added at any time.

    texts (Iterable[str]): The corpus.
    """

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self._ids: Dict[str, int] = {}
        # Per text: its distinct words, ascending, how often each is in it, and how many words there are.
        self._words: List[np.ndarray] = []
        self._counts: List[np.ndarray] = []
        self._lengths: List[int] = []
        self._n_words = 0
        # Per word: how many texts have it.
        self._n_texts: List[int] = []
        self._idf: Optional[np.ndarray] = None
        self.add(texts)

    def __len__(self) -> int:
        return len(self._lengths)

    def add(self, texts: Iterable[str]) -> None:
        """Add texts behind those that are there."""
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
        """Score chosen texts.

        query (str): Any text. A word that it has twice counts twice.
        numbers (Sequence[int]): Texts of the corpus.
        RETURNS (ndarray): float64, shape (numbers,): sums over the words of the query, not normalised.
        """
        scores = np.zeros(len(numbers))
        words, times, _ = self._look_up(query)
        if not len(words) or not len(numbers):
            return scores
        inside = np.concatenate([self._words[n] for n in numbers])
        counts = np.concatenate([self._counts[n] for n in numbers])
        row = np.repeat(np.arange(len(numbers)), [len(self._words[n]) for n in numbers])
        place = np.searchsorted(words, inside).clip(max=len(words) - 1)
        hit = words[place] == inside
        row, place, counts = row[hit], place[hit], counts[hit]
        lengths = np.array([self._lengths[n] for n in numbers])[row]
        values = (times * self._idfs()[words])[place] * self._saturated(counts, lengths)
        np.add.at(scores, row, values)
        return scores

    def self_score(self, query: str) -> float:
        """Score a query against itself, as if it were one of the texts: what `score` could be at most,
        roughly. Words that no text has count as the rarest, or a query of unknown words but one would
        find that one word a perfect match.
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
        """RETURNS (Tuple[ndarray, ndarray, List[int]]): Known words, ascending, how often each is in the
        query, and how often each of the unknown ones."""
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
            # Words that most texts have would count against a match.
            idf[idf < 0] = EPSILON * idf.mean() if len(idf) else 0.0
            self._idf = idf
        return self._idf
