"""Texts, and an encoder whose vectors are made by hand."""

import numpy as np

from spacy_llmner.retrieval.examples import LabelledText

TEXTS = [
    "Ada Hale met Bo Lund in Bonn on Monday, and they spoke about the old bridge.",
    "The river Aare flows past Bern.",
    "Nobody came to the meeting in Rome.",
    "王小明在北京大学学习。",
    "Prices rose by 3.5% to 120 euros, said Dr. Hale of Lund & Sons.",
    "Zoë's party 🎉 was loud.",
]


class FakeEncoder:
    """Gives the vectors it was made with; for other texts, one drawn from the text's own characters."""

    def __init__(self, vectors=None, width=4, name="fake", fingerprint="f0"):
        self.vectors = vectors or {}
        self.width = width
        self.name = name
        self.fingerprint = fingerprint
        self.options = f"--encoder {name}"
        self.encoded = []

    def encode(self, texts, *, progress=False):
        self.encoded.append(list(texts))
        return np.array([self._vector(t) for t in texts], dtype=np.float32).reshape(-1, self.width)

    def _vector(self, text):
        if not text.strip():
            return np.zeros(self.width)
        vector = self.vectors.get(text)
        if vector is None:
            # Case and white space don't matter, as they hardly do for real encoders.
            folded = " ".join(text.casefold().split())
            seed = sum(ord(c) * (i + 1) for i, c in enumerate(folded))
            vector = np.random.default_rng(seed).standard_normal(self.width)
        return np.asarray(vector) / np.linalg.norm(vector)


def example(text, *labels, doc_id=""):
    """An example whose entities are its first characters."""
    return LabelledText(text, tuple((i, i + 1, label) for i, label in enumerate(labels)), doc_id)


def at(degrees):
    """A vector in the first two dimensions."""
    angle = np.radians(degrees)
    return [np.cos(angle), np.sin(angle), 0, 0]
