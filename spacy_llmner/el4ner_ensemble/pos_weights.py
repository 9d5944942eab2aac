"""Weigh spans by the part of speech of their head, as the similarity of EL4NER does."""

from typing import Dict, Mapping, Optional

from spacy.tokens import Doc, Token

from ..errors import wrong

# The published weights.
POS_WEIGHTS = {"propn": 4.0, "noun": 2.0, "pron": 1.0, "other": 0.0}
# Kinds of words, by their Penn Treebank, Chinese Treebank or universal tag.
KINDS = {
    "NNP": "propn",
    "NNPS": "propn",
    "PROPN": "propn",
    "NR": "propn",
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
    """Validate weights, and add the missing ones.

    name (str): The name of the component, for messages.
    weights (Mapping[str, float]): The weights in the config, by kind of word.
    RETURNS (Dict[str, float]): The weights of all kinds. Missing ones are as published.
    RAISES (LLMNERError): If a kind of word doesn't exist, or a weight is below 0.
    """
    known = ", ".join(POS_WEIGHTS)
    for kind, weight in weights.items():
        if kind not in POS_WEIGHTS or not weight >= 0.0:
            must = f"weights of 0 or more for {known}"
            raise wrong("pos_weights", name, dict(weights), must)
    return {**POS_WEIGHTS, **weights}


def span_weight(doc: Doc, start: int, end: int, weights: Mapping[str, float]) -> float:
    """Weigh a span by its head. This is the root of the span if the Doc has a parse. Otherwise, it is the
    last noun or pronoun of the span.

    Tags or universal parts of speech come from the pipeline. Without a tagger, they are guessed from the
    shape of the words. See `shape_kind`.

    doc (Doc): The Doc.
    start (int): The first token of the span.
    end (int): One past the last token.
    weights (Mapping[str, float]): The weights from `check_weights`.
    RETURNS (float): The weight of the head's kind. A span without a noun or pronoun has the kind "other".
    """
    span = doc[start:end]
    tagged = doc.has_annotation("TAG") or doc.has_annotation("POS")
    if tagged and doc.has_annotation("DEP"):
        return weights[_kind(span.root)]
    kinds = [_kind(token) if tagged else shape_kind(token, end - start) for token in span]
    return weights[next((kind for kind in reversed(kinds) if kind != "other"), "other")]


def _kind(token: Token) -> str:
    kind: Optional[str] = KINDS.get(token.tag_) or KINDS.get(token.pos_)
    return kind or "other"


def shape_kind(token: Token, n_words: int) -> str:
    """Guess the kind of a word that has no tag.

    A word in the list of pronouns is a pronoun. Stop words and words without letters are "other". A word
    with a capital letter is a proper noun, and all other words are nouns. In scripts without case, such as
    Chinese, a word is a proper noun if it has two or more characters, or if its span has several words
    (spaCy's default tokenizer for Chinese makes each character a token).

    token (Token): The word.
    n_words (int): Number of words in its span.
    RETURNS (str): "propn", "noun", "pron" or "other".
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
