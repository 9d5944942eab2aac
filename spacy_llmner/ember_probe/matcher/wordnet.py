"""Types of common words from WordNet, with which a matcher learns many labels without annotation.

The database files of WordNet (wordnet.princeton.edu) are read directly: `data.noun` and the indexes.
"""

from functools import cached_property
from pathlib import Path
from typing import Dict, Iterator, List, NamedTuple, Optional, Sequence, Set, Tuple

from ...errors import Errors, LLMNERError

# Longest match, in words.
MAX_WORDS = 4
# Types this close to the root, such as "entity" and "physical object", say too little.
ROOT_DEPTH = 2
# Names of a type that are used.
NAMES = 3


class Synset(NamedTuple):
    """A meaning of a noun.

    names (List[str]): The nouns that have it.
    types (List[str]): Identifiers of the next more general synsets.
    is_instance (bool): Whether it is an individual, such as a city, rather than a kind of things.
    """

    names: List[str]
    types: List[str]
    is_instance: bool


class Match(NamedTuple):
    """Words of a text that are a noun of WordNet.

    start (int): First word.
    end (int): One past the last word.
    types (List[str]): The synsets that include its meaning, nearest first.
    """

    start: int
    end: int
    types: List[str]


class WordNet:
    """The nouns of WordNet.

    folder (Path): The folder `dict` with the database files.
    RAISES (LLMNERError): If files are missing.
    """

    def __init__(self, folder: Path) -> None:
        files = ("data.noun", "index.noun", "index.verb", "index.adj", "index.adv")
        missing = [file for file in files if not (folder / file).is_file()]
        if missing:
            raise LLMNERError(Errors.E150.format(path=folder, missing=", ".join(missing)))
        self.synsets = dict(_read_synsets(folder / "data.noun"))
        self._senses = dict(_read_index(folder / "index.noun"))
        self._other = {lemma for file in files[2:] for lemma, _ in _read_index(folder / file)}
        self._types: Dict[str, List[str]] = {}

    def names(self, synset: str) -> List[str]:
        """RETURNS (List[str]): The first names of a type."""
        return self.synsets[synset].names[:NAMES]

    def match(self, words: Sequence[str]) -> List[Match]:
        """Find the words that have only one likely meaning: names of individuals, if they are capitalized,
        and common nouns in their first sense, unless they are also verbs or adjectives.

        words (Sequence[str]): The words of a text.
        RETURNS (List[Match]): The longest matches, from left to right.
        """
        out, i = [], 0
        while i < len(words):
            size, synset = self._longest(words, i)
            types = [] if synset is None else self.types(synset)
            if types:
                out.append(Match(i, i + size, types))
            i += max(size, 1)
        return out

    def types(self, synset: str) -> List[str]:
        """RETURNS (List[str]): The types of a synset, nearest first, without the most general ones."""
        if synset not in self._types:
            out, todo = [], list(self.synsets[synset].types)
            for found in todo:
                if found not in out:
                    out.append(found)
                    todo += self.synsets[found].types
            self._types[synset] = [found for found in out if found not in self._general]
        return self._types[synset]

    def _longest(self, words: Sequence[str], start: int) -> Tuple[int, Optional[str]]:
        """RETURNS (Tuple[int, Optional[str]]): The size of the longest noun that starts with a word (0 for
        none), and its synset, or None if its meaning is not certain.
        """
        for size in range(min(MAX_WORDS, len(words) - start), 0, -1):
            span = words[start : start + size]
            text = " ".join(span).lower()
            if len(text) < 3 or not all(any(map(str.isalpha, word)) for word in span):
                continue
            is_name = span[0][0].isupper() and span[-1][0].isupper()
            for lemma in _lemmas(text):
                if lemma not in self._senses:
                    continue
                synset = self._senses[lemma][0]
                first = self.synsets[synset]
                if first.is_instance:
                    if is_name and lemma == text:
                        return size, synset
                    continue
                has_capital = any(n[0].isupper() for n in first.names if n.lower() == lemma)
                if size == 1 and lemma in self._other:
                    return size, None
                if has_capital and not is_name:
                    continue
                if is_name and not has_capital and start:
                    return size, None
                return size, synset
        return 0, None

    @cached_property
    def _general(self) -> Set[str]:
        return {synset for synset in self.synsets if self._depth(synset) <= ROOT_DEPTH}

    def _depth(self, synset: str) -> int:
        depth = 0
        while self.synsets[synset].types:
            synset = self.synsets[synset].types[0]
            depth += 1
        return depth


def _lemmas(text: str) -> Iterator[str]:
    yield text
    if text.endswith("ies") and len(text) > 4:
        yield text[:-3] + "y"
    if text.endswith("es") and len(text) > 3:
        yield text[:-2]
    if text.endswith("s") and not text.endswith("ss") and len(text) > 3:
        yield text[:-1]
    if text.endswith("men"):
        yield text[:-3] + "man"


def _read_synsets(path: Path) -> Iterator[Tuple[str, Synset]]:
    """Read lines such as "02691156 06 n 02 airplane 0 aeroplane 0 001 @ 03510583 n 0000 | a machine ...".
    The numbers 02 (hexadecimal) and 001 count the names and the pointers that follow.
    """
    for columns in _lines(path):
        n_names = int(columns[3], 16)
        names = [columns[4 + 2 * k].replace("_", " ") for k in range(n_names)]
        first = 5 + 2 * n_names
        pointers = [
            (columns[first + 4 * k], columns[first + 4 * k + 1])
            for k in range(int(columns[first - 1]))
        ]
        kinds = [target for symbol, target in pointers if symbol == "@"]
        instance_of = [target for symbol, target in pointers if symbol == "@i"]
        yield columns[0], Synset(names, kinds + instance_of, bool(instance_of))


def _read_index(path: Path) -> Iterator[Tuple[str, List[str]]]:
    """YIELDS (Tuple[str, List[str]]): A lemma and its synsets, most frequent sense first."""
    for columns in _lines(path):
        yield columns[0].replace("_", " "), columns[-int(columns[2]) :]


def _lines(path: Path) -> Iterator[List[str]]:
    for line in path.read_text(encoding="utf8").splitlines():
        # Lines that begin with two spaces are the licence.
        if not line.startswith("  "):
            yield line.partition("|")[0].split()
