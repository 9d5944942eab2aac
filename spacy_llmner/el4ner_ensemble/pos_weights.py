"""How much a span weighs in the similarity: the part of speech of its head (methods.md 4a, 4c f)."""

from typing import Dict, Mapping, Optional

from spacy.tokens import Doc, Token

from ..errors import wrong

# The published weights.
POS_WEIGHTS = {"propn": 4.0, "noun": 2.0, "pron": 1.0, "other": 0.0}
# Penn tags and universal ones.
KINDS = {
    "NNP": "propn",
    "NNPS": "propn",
    "PROPN": "propn",
    "NR": "propn",  # Chinese treebank
    "NN": "noun",
    "NNS": "noun",
    "NOUN": "noun",
    "NT": "noun",
    "PRP": "pron",
    "PRP$": "pron",
    "PRON": "pron",
    "PN": "pron",
}
PRONOUNS = frozenset(
    (
        "i",
        "me",
        "my",
        "mine",
        "you",
        "your",
        "yours",
        "he",
        "him",
        "his",
        "she",
        "her",
        "hers",
        "it",
    )
    + ("its", "we", "us", "our", "ours", "they", "them", "their", "theirs")
    + ("我", "你", "您", "他", "她", "它", "我们", "你们", "他们", "她们", "它们")
)


def check_weights(name: str, weights: Mapping[str, float]) -> Dict[str, float]:
    """RETURNS (Dict[str, float]): The weights, those that are not given as published.
    RAISES (LLMNERError): About a kind of word that is not there, or a weight below 0."""
    known = ", ".join(POS_WEIGHTS)
    for kind, weight in weights.items():
        if kind not in POS_WEIGHTS or not weight >= 0.0:
            must = f"weights of 0 or more for {known}"
            raise wrong("pos_weights", name, dict(weights), must)
    return {**POS_WEIGHTS, **weights}


def span_weight(doc: Doc, start: int, end: int, weights: Mapping[str, float]) -> float:
    """Weigh a span by its head: its root where the Doc has a parse, else its last noun or pronoun.

    Tags, or universal parts of speech, come from the pipeline. Without a tagger the shape of the words
    decides: see `shape_kind`.

    start (int), end (int): Tokens of the span, the last one excluded.
    RETURNS (float): 0 for a span without noun or pronoun.
    """
    span = doc[start:end]
    tagged = doc.has_annotation("TAG") or doc.has_annotation("POS")
    if tagged and doc.has_annotation("DEP"):
        return weights[_kind(span.root)]
    kinds = [_kind(token) if tagged else shape_kind(token, end - start) for token in span]
    return weights[next((kind for kind in reversed(kinds) if kind != "other"), "other")]


def _kind(token: Token) -> str:
    """RETURNS (str): Kind of a tagged word."""
    kind: Optional[str] = KINDS.get(token.tag_) or KINDS.get(token.pos_)
    return kind or "other"


def shape_kind(token: Token, n_words: int) -> str:
    """Guess the kind of a word that has no tag.

    Pronouns are known by a list. A word with a capital letter that is no stop word is a proper noun, any
    other word with a letter that is no stop word a noun. Where letters have no case, as in Chinese, a word
    of two or more characters, or one in a span of several words (spaCy cuts Chinese into characters by
    default), is a proper noun.

    n_words (int): Words of the span.
    """
    if token.lower_ in PRONOUNS:
        return "pron"
    letters = [c for c in token.text if c.isalpha()]
    if not letters or token.is_stop:
        return "other"
    if any(c.isupper() for c in letters):
        return "propn"
    caseless = not any(c.islower() for c in letters)
    if caseless and (len(token) > 1 or n_words > 1):
        return "propn"
    return "noun"
