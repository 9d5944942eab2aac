"""Do ways to decode give the same mentions, places and log-probabilities?"""

from dataclasses import replace
from typing import Any, Dict, List, Tuple

import numpy as np
from autoreg import AutoReg
from published_way import LeanLoop, PlainGenerate, Strings, published
from spacy.tokens import Doc

from spacy_llmner.llm.word_tokens import WordTokens
from spacy_llmner.padellm_ner.component import PaDeLLM
from spacy_llmner.padellm_ner.decoding import DecodedMention, MentionDecodingSettings, find_mentions
from spacy_llmner.padellm_ner.templates import TemplateEncoder

PUBLISHED = MentionDecodingSettings(draft=0, look_ahead=False)


def exactness(pipe: PaDeLLM, ar: AutoReg, docs: List[Doc], few: int) -> Dict[str, Any]:
    """Compare outcomes: all mentions with all their places, and log-probabilities.

    RAISES (AssertionError): If a speed-up changes an outcome.
    """
    out: Dict[str, Any] = {"sentences": len(docs)}
    mine = pipe.decoding_settings
    slow = outcomes(pipe, docs, plain(pipe))
    for what, settings in (
        ("default", mine),
        ("no drafts", replace(mine, draft=0)),
        ("no look-ahead", replace(mine, look_ahead=False)),
    ):
        other = outcomes(pipe, docs, settings)
        same, apart = compare(slow, other)
        out[f"{what} = plain"], out[f"{what}: log-probabilities apart"] = same, apart
        assert same == len(docs), f"{what}: {len(docs) - same} outcomes differ"
    looked_up, written = outcomes(ar, docs, {}), outcomes(ar, docs, {"draft": 0})
    out["autoregressive: look-up = none"] = compare(looked_up, written)[0]
    assert compare(looked_up, written)[0] == len(docs), "look-up changes the baseline's outcome"
    if ar.settings.loss == "raw":
        free = outcomes(ar, docs[:few], {"constrained": False})
        out["autoregressive, sentences: unconstrained = constrained"] = compare(free, looked_up)[0]
    docs = docs[:few]
    by_number = [as_strings(d, found) for d, found in zip(docs, outcomes(pipe, docs, PUBLISHED))]
    llm, view, prompt_encoder = pipe.adapted_llm()
    lean, generate = LeanLoop(llm, view), PlainGenerate(llm, view)
    out["sentences, published way"] = len(docs)
    strings = [published(pipe, prompt_encoder, d, lean, constrained=True) for d in docs]
    assert by_number == strings, "the published way, constrained, differs from ours"
    if pipe.settings.loss == "raw":
        for what, write in (("published way", lean), ("generate", generate)):
            strings = [published(pipe, prompt_encoder, d, write) for d in docs]
            out[f"{what} = ours"] = sum(a == b for a, b in zip(by_number, strings))
    return out


def plain(pipe: PaDeLLM) -> MentionDecodingSettings:
    """RETURNS (MentionDecodingSettings): The component's own, without what makes it faster."""
    return replace(pipe.decoding_settings, draft=0, look_ahead=False)


def outcomes(
    pipe: PaDeLLM, docs: List[Doc], settings: Any
) -> List[Dict[str, List[DecodedMention]]]:
    return [
        found for i in range(0, len(docs), 16) for found in run(pipe, docs[i : i + 16], settings)
    ]


def run(pipe: PaDeLLM, docs: Any, settings: Any) -> List[Dict[str, List[DecodedMention]]]:
    """RETURNS (List[Dict[str, List[DecodedMention]]]): What was written about each Doc, by label."""
    docs = [docs] if isinstance(docs, Doc) else docs
    with_settings(pipe, settings)
    decoder, prompt_encoder = pipe._decoder()
    parts = [(i, w) for i, doc in enumerate(docs) for w in pipe._windows(doc, prompt_encoder)]
    requests = [pipe.request(prompt_encoder, w.words, docs[i].text) for i, w in parts]
    out: List[Dict[str, List[DecodedMention]]] = [
        {label: [] for label in pipe.labels} for _ in docs
    ]
    for (i, _), found in zip(parts, decoder.run(requests)):
        for label, written in found.items():
            out[i][label] += written
    with_settings(pipe, None)
    return out


def compare(a: List[Any], b: List[Any]) -> Tuple[int, float]:
    """RETURNS (Tuple[int, float]): How many outcomes are the same, and how far log-probabilities are
    apart at most."""
    same, apart = 0, 0.0
    for one, other in zip(a, b):
        pairs = [(label, w.places) for label, of_label in one.items() for w in of_label]
        if pairs == [(label, w.places) for label, of_label in other.items() for w in of_label]:
            same += 1
            for label in one:
                for w, v in zip(one[label], other[label]):
                    distance = np.abs(np.array(w.log_probs) - np.array(v.log_probs))
                    apart = max(apart, float(distance.max(initial=0.0)))
    return same, apart


def as_strings(doc: Doc, found: Dict[str, List[DecodedMention]]) -> Strings:
    return {
        label: [doc.text[slice(*w.places[0])] for w in of_label]
        for label, of_label in found.items()
    }


def with_settings(pipe: PaDeLLM, settings: Any) -> None:
    """Make a component decode in another way; None takes its own way again."""
    for name in ("program", "draft", "constrained"):
        pipe.__dict__.pop(name, None)
    if isinstance(settings, MentionDecodingSettings):

        def request(
            prompt_encoder: TemplateEncoder, words: WordTokens, text: str, on_label: Any = None
        ) -> Any:
            return find_mentions(prompt_encoder, words, text, pipe.labels, settings, on_label)

        pipe.request = request  # type: ignore[method-assign]
    else:
        pipe.__dict__.update(settings or {})
