"""A trained probe with everything that inference needs, for finished texts and for streams."""

from dataclasses import dataclass
from typing import Any, Callable, List, Optional, Sequence, Set, Tuple

import numpy as np
import torch
from spacy.tokens import Doc

from ..llm.loading import LoadedLLM
from ..llm.transfer import to_cpu
from ..pipeline.predictions import PredictedSpan, Prediction, write_prediction
from ..util import batches_by_length
from . import platt_scaling
from .features.batch import WordBatch, collate, surfaces
from .features.words import WordFeatures, WordReader
from .matcher.answers import MIN_PROBABILITY, LabelJudge
from .postprocess import decode
from .probes.base import Probe
from .probes.segmentation import ScoredSpan

# Words per forward pass of the probe, padding included. On a CPU, smaller batches fit into its caches.
PADDED_WORDS, PADDED_WORDS_CPU = 8192, 1024


@dataclass(frozen=True)
class Predictor:
    """A trained probe with its LLM and the settings for inference.

    name (str): Name of the component.
    llm (LoadedLLM): The shared LLM.
    probe (Probe): The trained probe, on the LLM's device.
    reader (WordReader): Reads what the probe needs from the LLM.
    labels (Tuple[str, ...]): The labels, in the order of the probe's outputs.
    threshold (float): Probability, before calibration, at which a mention is preferred over no mention.
    calibration (Sequence[float]): Slope and offset of the log-odds (Platt scaling).
    tokenizer (Callable[[str], Doc]): The pipeline's tokenizer.
    spans_key (str): Key of doc.spans for everything found.
    overwrite (bool): Replace entities that are already set on a Doc.
    judge (Optional[LabelJudge]): Lets the LLM choose among the labels (`ask_llm`).
    """

    name: str
    llm: LoadedLLM
    probe: Probe
    reader: WordReader
    labels: Tuple[str, ...]
    threshold: float
    calibration: Sequence[float]
    tokenizer: Callable[[str], Doc]
    spans_key: str
    overwrite: bool
    judge: Optional[LabelJudge] = None

    def batch(self, docs: Sequence[Doc], features: Sequence[WordFeatures]) -> WordBatch:
        """RETURNS (WordBatch): The words of some Docs, padded, on the LLM's device."""
        return collate(features, [surfaces(docs)], self.llm.device)

    def score(
        self, docs: Sequence[Doc], features: Sequence[WordFeatures]
    ) -> Callable[[], List[np.ndarray]]:
        """Score the words of several Docs. A GPU only starts with it.

        docs (Sequence[Doc]): Docs with at least one word.
        features (Sequence[WordFeatures]): Features of each Doc's words.
        RETURNS (Callable[[], List[ndarray]]): Waits for the scores, and returns the rows of each Doc, for
            `decode_batch`. It raises an LLMNERError if the features contain NaN.
        """
        size = PADDED_WORDS if self.llm.device.type == "cuda" else PADDED_WORDS_CPU
        batches = batches_by_length([len(doc) for doc in docs], size)
        running = []
        for indices in batches:
            batch = self.batch([docs[i] for i in indices], [features[i] for i in indices])
            with torch.no_grad():
                # The maximum is NaN if any value is.
                running.append(to_cpu([batch.hidden.amax(), *self.probe(batch)]))

        def rows() -> List[np.ndarray]:
            out: List[Any] = [None] * len(docs)
            for indices, wait in zip(batches, running):
                highest, *scores = wait()
                self.llm.check_finite(highest)
                for k, i in enumerate(indices):
                    out[i] = self.probe.rows(tuple(scores), k, len(docs[i]))
            return out

        return rows

    def rows(self, doc: Doc, features: WordFeatures) -> np.ndarray:
        """Score the words of one Doc.

        features (WordFeatures): Features of the Doc's words.
        RETURNS (ndarray): One row per word, for `decode`.
        """
        if not len(doc):
            return np.zeros((0, 1, 1))
        with torch.no_grad():
            return self.probe.rows(self.probe(self.batch([doc], [features])), 0, len(doc))

    def decode(self, doc: Doc, rows: np.ndarray) -> Prediction:
        """Turn the probe's scores into entities. If the Doc has sentence boundaries, no entity crosses one.

        rows (ndarray): One row per word of the Doc.
        RETURNS (Prediction): Non-overlapping entities, and all spans found.
        """
        return self.decode_batch([doc], [rows])[0]

    def decode_batch(self, docs: Sequence[Doc], texts: Sequence[np.ndarray]) -> List[Prediction]:
        """Decode several Docs. See `decode`.

        texts (Sequence[ndarray]): The rows of each Doc.
        RETURNS (List[Prediction]): One for each Doc.
        """
        if self.judge is not None:
            texts = self.judge.judge(docs, texts, self._probable(docs, texts))
        out = []
        decoded = decode(docs, texts, self.probe, self.threshold)
        spans = iter(self.spans([m for _, mentions in decoded for m in mentions]))
        for chosen, mentions in decoded:
            found = {(m.start, m.end, m.label): next(spans) for m in mentions}
            out.append(Prediction([found[m] for m in chosen], list(found.values())))
        return out

    def _probable(
        self, docs: Sequence[Doc], texts: Sequence[np.ndarray]
    ) -> List[Set[Tuple[int, int]]]:
        """RETURNS (List[Set[Tuple[int, int]]]): The spans that are probable, whatever their label."""
        totals = [np.logaddexp.reduce(rows, axis=-1, keepdims=True) for rows in texts]
        found = decode(docs, totals, self.probe, min(self.threshold, MIN_PROBABILITY))
        return [{(m.start, m.end) for m in mentions} for _, mentions in found]

    def spans(self, mentions: Sequence[ScoredSpan]) -> List[PredictedSpan]:
        """RETURNS (List[PredictedSpan]): The mentions with the names of their labels and their calibrated
        scores.
        """
        scores = platt_scaling.apply_to_all(self.calibration, [m.score for m in mentions])
        return [
            PredictedSpan(m.start, m.end, self.labels[m.label], score)
            for m, score in zip(mentions, scores)
        ]

    def annotate(self, doc: Doc, rows: np.ndarray) -> None:
        """Write the entities of one Doc to it, as the component does.

        rows (ndarray): One row per word of the Doc.
        """
        write_prediction(doc, self.decode(doc, rows), self.spans_key, self.overwrite, self.name)
