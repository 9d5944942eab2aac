"""Check that ways of decoding give the same mentions, occurrences and log-probabilities."""

from dataclasses import replace
from typing import Any, Dict, List, Tuple, Union

import numpy as np
from spacy.tokens import Doc

from benchmarks.padellm.autoreg import AutoReg
from benchmarks.padellm.published_inference import (
    GreedyLoop,
    HFGenerate,
    Strings,
    published_mentions,
)
from spacy_llmner.llm.word_tokens import WordTokens
from spacy_llmner.padellm_ner.component import PaDeLLM
from spacy_llmner.padellm_ner.decoding import DecodedMention, MentionDecodingSettings, find_mentions
from spacy_llmner.padellm_ner.templates import TemplateEncoder

# The settings that a way of decoding uses: those of `padellm_ner`, or attributes of the baseline. None
# restores the component's own.
WaySettings = Union[MentionDecodingSettings, Dict[str, Any], None]
MentionsByLabel = Dict[str, List[DecodedMention]]

PUBLISHED = MentionDecodingSettings(draft=0, look_ahead=False)
BATCH_SIZE = 16


def check_equivalence(pipe: PaDeLLM, ar: AutoReg, docs: List[Doc], few: int) -> Dict[str, Any]:
    """Compare all mentions, with their occurrences and log-probabilities.

    pipe (PaDeLLM): The component. Its ways of decoding are compared on all Docs.
    ar (AutoReg): The autoregressive baseline.
    docs (List[Doc]): The Docs.
    few (int): How many Docs the published way reads.
    RETURNS (Dict[str, Any]): On how many Docs each way gives the same, and the largest difference in
        log-probability.
    RAISES (AssertionError): If a speed-up changes what is decoded.
    """
    out: Dict[str, Any] = {"sentences": len(docs)}
    own = pipe.decoding_settings
    expected = decode_in_batches(pipe, docs, without_speedups(pipe))
    for what, settings in (
        ("default", own),
        ("no drafts", replace(own, draft=0)),
        ("no look-ahead", replace(own, look_ahead=False)),
    ):
        same, distance = compare(expected, decode_in_batches(pipe, docs, settings))
        out[f"{what} = plain"], out[f"{what}: log-probabilities apart"] = same, distance
        assert same == len(docs), f"{what}: {len(docs) - same} Docs differ"
    drafted, undrafted = decode_in_batches(ar, docs, {}), decode_in_batches(ar, docs, {"draft": 0})
    out["autoregressive: look-up = none"] = compare(drafted, undrafted)[0]
    assert compare(drafted, undrafted)[0] == len(docs), "look-up changes what the baseline writes"
    if ar.settings.loss == "raw":
        free = decode_in_batches(ar, docs[:few], {"constrained": False})
        out["autoregressive, sentences: unconstrained = constrained"] = compare(free, drafted)[0]
    docs = docs[:few]
    by_engine = [
        as_strings(doc, found) for doc, found in zip(docs, decode_in_batches(pipe, docs, PUBLISHED))
    ]
    llm, view, prompt_encoder = pipe.adapted_llm()
    loop, generate = GreedyLoop(llm, view), HFGenerate(llm, view)
    out["sentences, published way"] = len(docs)
    strings = [published_mentions(pipe, prompt_encoder, d, loop, constrained=True) for d in docs]
    assert by_engine == strings, "the published way, constrained, differs from the engine"
    if pipe.settings.loss == "raw":
        for what, write in (("published way", loop), ("generate", generate)):
            strings = [published_mentions(pipe, prompt_encoder, d, write) for d in docs]
            out[f"{what} = ours"] = sum(a == b for a, b in zip(by_engine, strings))
    return out


def without_speedups(pipe: PaDeLLM) -> MentionDecodingSettings:
    """RETURNS (MentionDecodingSettings): The component's own, without drafts and look-ahead."""
    return replace(pipe.decoding_settings, draft=0, look_ahead=False)


def decode_in_batches(
    pipe: PaDeLLM, docs: List[Doc], settings: WaySettings
) -> List[MentionsByLabel]:
    return [
        found
        for i in range(0, len(docs), BATCH_SIZE)
        for found in decode_mentions(pipe, docs[i : i + BATCH_SIZE], settings)
    ]


def decode_mentions(pipe: PaDeLLM, docs: Any, settings: WaySettings) -> List[MentionsByLabel]:
    """Decode the mentions of some Docs in one batch.

    docs (Union[Doc, List[Doc]]): The Docs.
    RETURNS (List[MentionsByLabel]): The mentions of each Doc, by label.
    """
    docs = [docs] if isinstance(docs, Doc) else docs
    apply_settings(pipe, settings)
    engine, prompt_encoder = pipe._engine()
    parts = [(i, w) for i, doc in enumerate(docs) for w in pipe._windows(doc, prompt_encoder)]
    requests = [pipe.request(prompt_encoder, w.words, docs[i].text) for i, w in parts]
    out: List[MentionsByLabel] = [{label: [] for label in pipe.labels} for _ in docs]
    for (i, _), found in zip(parts, engine.run(requests)):
        for label, mentions in found.items():
            out[i][label] += mentions
    apply_settings(pipe, None)
    return out


def compare(a: List[MentionsByLabel], b: List[MentionsByLabel]) -> Tuple[int, float]:
    """Compare the mentions of Docs.

    RETURNS (Tuple[int, float]): How many Docs have the same mentions, and the largest difference between
        the log-probabilities of these.
    """
    same, largest = 0, 0.0
    for one, other in zip(a, b):
        pairs = [(label, m.occurrences) for label, of_label in one.items() for m in of_label]
        if pairs == [(label, m.occurrences) for label, of_label in other.items() for m in of_label]:
            same += 1
            for label in one:
                for m, n in zip(one[label], other[label]):
                    distance = np.abs(np.array(m.log_probs) - np.array(n.log_probs))
                    largest = max(largest, float(distance.max(initial=0.0)))
    return same, largest


def as_strings(doc: Doc, found: MentionsByLabel) -> Strings:
    return {
        label: [doc.text[slice(*m.occurrences[0])] for m in of_label]
        for label, of_label in found.items()
    }


def apply_settings(pipe: PaDeLLM, settings: WaySettings) -> None:
    """Make a component decode in another way; None restores its own way."""
    for name in ("request", "draft", "constrained"):
        pipe.__dict__.pop(name, None)
    if isinstance(settings, MentionDecodingSettings):

        def request(
            prompt_encoder: TemplateEncoder, words: WordTokens, text: str, on_label: Any = None
        ) -> Any:
            return find_mentions(prompt_encoder, words, text, pipe.labels, settings, on_label)

        pipe.request = request  # type: ignore[method-assign]
    else:
        pipe.__dict__.update(settings or {})
