"""The `ember_probe` component, which finds entities in the internal states of a frozen LLM.

The method is EMBER (arXiv 2403.11747).
"""

from dataclasses import asdict
from threading import Lock
from typing import (
    Any,
    Callable,
    Dict,
    Iterable,
    List,
    Optional,
    Sequence,
    Tuple,
    Union,
)

import torch
from spacy.language import Language
from spacy.tokens import Doc
from thinc.api import Model

from ..errors import check_values
from ..llm.registry import LLM
from ..pipeline.base import FACTORY_META
from ..pipeline.labels import check_labels, doc_labels
from ..pipeline.predictions import Prediction
from ..pipeline.settings import fill_settings
from . import platt_scaling
from .config import ANY_LABEL, DEFAULT_CONFIG, MIN_THRESHOLD, MODES, check_settings
from .features.batch import groups_by_words
from .features.words import WordFeatures, WordReader
from .matcher.labels import LabelReader
from .predictor import Predictor
from .probes.base import Dims
from .probes.match import MatchSettings, model_for
from .streaming.streaming_pipe import StreamingPipe
from .training_pipe import TrainingPipe

_MOVING = Lock()


@Language.factory("ember_probe", default_config=DEFAULT_CONFIG, **FACTORY_META)
def make_ember_probe_pipe(
    nlp: Language,
    name: str,
    llm: Union[str, LLM],
    model: Model,
    spans_key: str,
    overwrite: bool,
    threshold: float,
    max_batch_tokens: int,
    feature_cache: str,
    scorer: Optional[Callable],
    labels: Optional[List[str]] = None,
    mode: str = "labels",
    ask_llm: bool = False,
) -> "EmberProbe":
    """Create an `ember_probe`. The LLM is not loaded before its first use.

    nlp (Language): The pipeline.
    name (str): Name of the component instance.
    llm (Union[str, LLM]): Name of the shared LLM, or a handle on it (`@misc = "spacy_llmner.LLM.v1"`).
    model (Model): Settings of the probe (`spacy_llmner.EmberProbe.v1`, `spacy_llmner.EmberMatch.v1`,
        `spacy_llmner.EmberPaper.v1` or `spacy_llmner.EmberFewShot.v2`).
    spans_key (str): Key of doc.spans for all spans found; their scores are in `attrs["scores"]`.
    overwrite (bool): Replace entities that are already set on the Doc.
    threshold (float): Probability, before calibration, at which an entity is preferred over no entity. A
        lower threshold finds more entities.
    max_batch_tokens (int): Tokens per forward pass of the LLM, padding included.
    feature_cache (str): Folder in which the LLM's features are cached during training; "auto" uses a folder
        in SPACY_LLMNER_HOME, "off" disables the cache.
    scorer (Optional[Callable]): The scoring method.
    labels (Optional[List[str]]): Labels in words, which are found without training. With the default model,
        they choose `spacy_llmner.EmberMatch.v1`.
    mode (str): "labels" (default) finds entities of these labels. "mentions" finds names of any kind
        without training: each has the label that matches it best or, without labels, "ENTITY".
    ask_llm (bool): Let the LLM choose among the labels in words: it answers a question about each mention.
        More labels are right, but it takes several times as long, and it can't stream.
    RETURNS (EmberProbe): The component.
    RAISES (LLMNERError): If labels or mentions are asked for with a model that has to be trained first.
    """
    return EmberProbe(
        nlp,
        llm,
        model,
        name,
        labels=labels or [],
        mode=mode,
        ask_llm=ask_llm,
        spans_key=spans_key,
        overwrite=overwrite,
        threshold=threshold,
        max_batch_tokens=max_batch_tokens,
        feature_cache=feature_cache,
        scorer=scorer,
    )


class EmberProbe(TrainingPipe, StreamingPipe):
    """Set doc.ents with small probes on a frozen LLM's hidden states (and attention weights).

    The LLM is never changed; only the probe is trained and saved.
    """

    factory = "ember_probe"

    def __init__(
        self,
        nlp: Language,
        llm: Union[str, LLM],
        model: Model,
        name: str = "ember_probe",
        *,
        scorer: Optional[Callable] = None,
        **settings: Any,
    ) -> None:
        """Create the component.

        nlp (Language): The pipeline.
        llm (Union[str, LLM]): Name of the shared LLM, or a handle on it.
        model (Model): Settings of the probe.
        name (str): Name of the component instance.
        scorer (Optional[Callable]): The scoring method.
        settings: The other settings of make_ember_probe_pipe, with the defaults of `DEFAULT_CONFIG`.
        RAISES (LLMNERError): If a setting is unknown or has an invalid value.
        """
        settings = fill_settings(name, DEFAULT_CONFIG, settings)
        mode, labels = settings.pop("mode"), settings.pop("labels") or []
        check_values(name, {"mode": mode}, choices={"mode": MODES})
        model = model_for(name, model, labels, mode, settings.pop("ask_llm"))
        self.max_batch_tokens = settings.pop("max_batch_tokens")
        self.feature_cache = settings.pop("feature_cache")
        check_settings(
            name, threshold=settings["threshold"], max_batch_tokens=self.max_batch_tokens
        )
        super().__init__(
            nlp,
            llm,
            model,
            name,
            scorer=scorer,
            calibration=list(platt_scaling.IDENTITY),
            **settings,
        )
        if isinstance(model.attrs["settings"], MatchSettings):
            self.label_reader = LabelReader(name, model.attrs["settings"])
        for label in check_labels(name, labels) or ([ANY_LABEL] if mode == "mentions" else []):
            self.add_label(label)

    @property
    def dims(self) -> Dims:
        """RETURNS (Dims): Sizes of the LLM that the probe was built for, and the number of labels."""
        llm = self.cfg["llm"]
        return Dims(llm["n_layers"], llm["width"], llm["n_heads"], len(self.labels))

    @property
    def threshold(self) -> float:
        """RETURNS (float): The threshold in `cfg`, clipped so that it is never 0 or 1, which
        `spacy find-threshold` tries as well. At 0, every possible span would become an entity.
        """
        return min(max(self.cfg["threshold"], MIN_THRESHOLD), 1 - MIN_THRESHOLD)

    @property
    def word_reader(self) -> WordReader:
        """RETURNS (WordReader): Reads what the probe needs from the LLM."""
        settings = self.model.attrs["settings"]
        return settings.reader(self.dims, max_batch_tokens=self.max_batch_tokens)

    def trained_with(self) -> Dict[str, Any]:
        settings = self.model.attrs["settings"]
        # The words of labels and the first weights can change.
        if not isinstance(settings, MatchSettings):
            return {"kind": self.model.name, **asdict(settings)}
        mode = {"mode": "mentions"} if settings.mentions else {}
        return {"kind": self.model.name, **mode, **asdict(settings.probe)}

    def build(self) -> torch.nn.Module:
        return self.model.attrs["settings"].build(self.dims)

    def predict(self, docs: Iterable[Doc]) -> List[Prediction]:
        """Find entities, without changing the Docs. With EmberMatch, the labels in `doc._.llmner_labels`
        take the place of the component's labels.

        docs (Iterable[Doc]): The Docs.
        RETURNS (List[Prediction]): One for each Doc.
        RAISES (LLMNERError): If the component is not trained, or its LLM is not the one it was trained on.
        """
        docs = list(docs)
        self.check_settings()
        of_docs = (doc_labels(self.name, doc) or () for doc in docs)
        self.expect_labels(label for labels in of_docs for label in labels)
        out = [Prediction([], []) for _ in docs]
        predictor = self.predictor()
        running: List[Callable[[], Iterable[Tuple[int, Prediction]]]] = []

        def start(part: Predictor, indices: List[int], features: List[WordFeatures]) -> None:
            group = [docs[i] for i in indices]
            rows = part.score(group, features)
            running.append(lambda: zip(indices, part.decode_batch(group, rows())))

        def finish() -> None:
            for i, prediction in running.pop(0)():
                out[i] = prediction

        # Features take about 10 to 100 KB per word, so only a few thousand words are processed at a time.
        for indices in groups_by_words([len(doc) for doc in docs], 4 * self.max_batch_tokens):
            features = dict(zip(indices, self.read([docs[i] for i in indices])))
            for part, chosen in self.by_labels(predictor, docs, indices):
                start(part, chosen, [features[i] for i in chosen])
                if len(running) > 1:
                    # A GPU computes the scores of the new group while those of the last one are decoded.
                    finish()
        while running:
            finish()
        return out

    def check_cfg(self) -> None:
        super().check_cfg()
        platt_scaling.check(self.name, self.cfg["calibration"])

    def check_settings(self) -> None:
        # Users can change settings at any time.
        threshold = self.cfg["threshold"]
        check_settings(self.name, threshold=threshold, max_batch_tokens=self.max_batch_tokens)

    def predictor(self, labels: Optional[Sequence[str]] = None) -> Predictor:
        """Get the trained probe with its LLM and the current settings.

        labels (Optional[Sequence[str]]): With EmberMatch, the labels to find instead of the component's.
        RETURNS (Predictor): The predictor.
        RAISES (LLMNERError): If the component is not trained, or its LLM is not the one it was trained on.
        """
        self.expect_labels(labels or ())
        probe = self.trained_probe()
        llm = self.shared_llm()
        self._move_probe(llm.device)
        predictor = Predictor(
            name=self.name,
            llm=llm,
            probe=probe,
            reader=self.word_reader,
            labels=self.labels,
            threshold=self.threshold,
            calibration=list(self.cfg["calibration"]),
            tokenizer=self.tokenizer,
            spans_key=self.cfg["spans_key"],
            overwrite=self.cfg["overwrite"],
            judge=self.judge(self.labels),
        )
        return predictor if labels is None else self.for_labels(predictor, labels)

    def _move_probe(self, device: torch.device) -> None:
        # Move it only if needed: `to` rebuilds the list of the GRU's weights, which other threads may use.
        with _MOVING:
            tensors = [*self.module.parameters(), *self.module.buffers()]
            if any(tensor.device != device for tensor in tensors):
                self.module.to(device)
