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
from spacy.training import Example, validate_examples, validate_get_examples
from thinc.api import Model, Optimizer

from ..errors import Errors, LLMNERError, check_values
from ..llm.registry import LLM
from ..pipeline.base import FACTORY_META
from ..pipeline.gold import gold_mentions, warn_about_white_space
from ..pipeline.labels import check_labels, doc_labels
from ..pipeline.parallel import n_processes, share, total, wait_for_all
from ..pipeline.predictions import Prediction
from ..pipeline.scorers import scored_entities
from ..pipeline.settings import fill_settings
from ..pipeline.torch_pipe import isolated_seed
from . import platt_scaling
from .config import ANY_LABEL, DEFAULT_CONFIG, MIN_THRESHOLD, MODES, check_settings
from .features.batch import GoldSpans, collate, groups_by_words, surface
from .features.cache import FeatureCache, open_cache
from .features.corpus import BATCH, read_corpus, warn_about_unlearnable
from .features.words import WordFeatures, WordReader
from .matcher.labels import LabelReader
from .matcher.word_label_pipe import WordLabelPipe
from .predictor import Predictor
from .probes.base import Dims, Probe
from .probes.fewshot import Annotated, ChosenExample, FewShotSettings, as_example, choose
from .probes.match import MatchSettings, model_for
from .streaming.streaming_pipe import StreamingPipe

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


class EmberProbe(WordLabelPipe, StreamingPipe):
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
        self.cache: Optional[FeatureCache] = None
        self._training = False
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

    def update(
        self,
        examples: Iterable[Example],
        *,
        drop: float = 0.0,
        sgd: Optional[Optimizer] = None,
        losses: Optional[Dict[str, float]] = None,
    ) -> Dict[str, float]:
        """Train the probe on a batch of annotated Docs.

        examples (Iterable[Example]): The batch.
        drop (float): Dropout rate.
        sgd (Optional[Optimizer]): If given, update the weights after this batch.
        losses (Optional[Dict[str, float]]): The loss per word is added under the component's name.
        RETURNS (Dict[str, float]): The losses.
        """
        losses = {} if losses is None else losses
        losses.setdefault(self.name, 0.0)
        examples = list(examples)
        validate_examples(examples, "EmberProbe.update")
        self.check_trainable()
        examples = [eg for eg in examples if len(eg.predicted)]
        n_words = sum(len(eg.predicted) for eg in examples)
        n_total = total(n_words)  # of all processes that train together
        if not examples:
            return losses
        self.trained_probe()
        self._start_training()
        predictor = self.predictor()
        probe = predictor.probe
        probe.train()
        probe.set_dropout(drop)
        docs = [eg.predicted for eg in examples]
        scores = probe(predictor.batch(docs, self.read_finite(docs)))
        loss, d_scores = self.get_loss(examples, scores)
        if n_total > n_words:
            loss *= n_words / n_total
            d_scores = tuple(d * (n_words / n_total) for d in d_scores)
        torch.autograd.backward(scores, d_scores)
        probe.eval()
        if sgd is not None:
            self.finish_update(sgd)
        losses[self.name] += loss
        return losses

    def get_loss(
        self, examples: Iterable[Example], scores: Tuple[torch.Tensor, ...]
    ) -> Tuple[float, Tuple[torch.Tensor, ...]]:
        """Compute the loss of a batch, and its gradient with respect to the probe's scores.

        examples (Iterable[Example]): The batch.
        scores (Tuple[Tensor, ...]): Output of the probe for the batch.
        RETURNS (Tuple[float, Tuple[Tensor, ...]]): The loss per word, and the gradients.
        RAISES (LLMNERError): If an example has a label that the component doesn't have.
        """
        assert self.module is not None
        return self.module.loss(scores, [self.gold_spans(eg) for eg in examples])

    def gold_spans(self, eg: Example) -> GoldSpans:
        entities, unknown = gold_mentions(eg)
        label_ids = {label: i for i, label in enumerate(self.labels)}
        new_labels = sorted({label for _, _, label in entities if label not in label_ids})
        if new_labels:
            raise self.unknown_labels(new_labels)
        return [(start, end, label_ids[label]) for start, end, label in entities], unknown

    def initialize(
        self,
        get_examples: Callable[[], Iterable[Example]],
        *,
        nlp: Optional[Language] = None,
        labels: Optional[List[str]] = None,
    ) -> None:
        """Create an untrained probe for the labels, and read the corpus with the LLM.

        If the model is a few-shot probe, this calls `fit` instead.

        get_examples (Callable[[], Iterable[Example]]): Returns the training examples.
        nlp (Optional[Language]): The pipeline.
        labels (Optional[List[str]]): The labels. None uses the labels of the examples.
        RAISES (LLMNERError): If there are no examples, entities or labels, or if an example has a label
            that is not in `labels`.
        """
        validate_get_examples(get_examples, "EmberProbe.initialize")
        self.check_trainable()
        examples = [eg for eg in get_examples() if len(eg.predicted)]
        if not examples:
            raise LLMNERError(Errors.E022.format(name=self.name))
        settings = self.model.attrs["settings"]
        if isinstance(settings, FewShotSettings):
            return self.fit(examples)
        self.record_corpus(examples, nlp)
        self.module = None
        self._optimizer = None
        self.adopt_labels(examples, labels)
        llm = self.adopt_settings()
        self.cache = None
        self._start_training()
        with isolated_seed(llm.device):
            if self.label_reader is None:
                self.module = self.build().to(llm.device)
            else:
                self.module = self.label_reader.build(llm, self.dims, self.labels)
        tokenizer = type(self.tokenizer).__name__
        warn_about_white_space(self.name, [eg.reference for eg in examples])
        warn_about_unlearnable(self.name, examples, getattr(settings, "max_words", None), tokenizer)
        docs = [eg.predicted for eg in examples]
        # Without a cache, read only what `fit_scale` needs.
        docs = docs[:BATCH] if self.cache is None else docs
        if n_processes() > 1 and self.cache is not None:
            # Each process reads its share, and then gets the rest from the cache.
            for k in range(0, len(docs), BATCH * n_processes()):
                self.read_finite(share(docs[k : k + BATCH * n_processes()]))
            wait_for_all()
            self.cache = open_cache(self.feature_cache, llm, self.word_reader)
        sample = read_corpus(self.read_finite, docs)
        if self.label_reader is None:
            self.module.fit_scale(sample)
        self.module.eval()

    def fit(self, examples: Iterable[Annotated]) -> None:
        """Learn from a few labeled sentences, in seconds.

        With EmberFewShot, at most `k` sentences per label are stored, and nothing is trained. With
        EmberMatch, the probe that knows the labels' words is fine-tuned. All labels of the component must
        be annotated in the sentences. Labels that occur only in the sentences are added.

        examples (Iterable[Union[Example, Tuple[str, Dict]]]): Examples, or texts with their annotation:
            (text, {"entities": [(start, end, label)]}).
        RAISES (LLMNERError): If the model has to be trained with `spacy train`, or no example has an
            entity.
        """
        settings = self.model.attrs["settings"]
        if not isinstance(settings, (FewShotSettings, MatchSettings)):
            raise LLMNERError(Errors.E033.format(name=self.name, model=self.model.name))
        converted = [as_example(self.name, eg, self.tokenizer) for eg in examples]
        warn_about_white_space(self.name, [eg.reference for eg in converted])
        if isinstance(settings, FewShotSettings):
            self._store(choose(converted, settings.k), settings)
        else:
            self.fine_tune([eg for eg in converted if len(eg.predicted)])
        self.record_corpus(converted)

    def _store(self, chosen: Sequence[ChosenExample], settings: FewShotSettings) -> None:
        labels = sorted({label for _, entities, _ in chosen for _, _, label in entities})
        if not labels:
            raise LLMNERError(Errors.E026.format(name=self.name, k=settings.k))
        self.module = None
        self.cfg["labels"] = []
        for label in labels:
            self.add_label(label)
        llm = self.adopt_settings()
        docs = [eg.predicted for eg, _, _ in chosen]
        batch = collate(
            self.word_reader.read(llm, docs), [surface(doc) for doc in docs], llm.device
        )
        gold = [
            ([(start, end, labels.index(label)) for start, end, label in entities], unknown)
            for _, entities, unknown in chosen
        ]
        probe = settings.build(self.dims).to(llm.device)
        probe.store(batch, gold)
        self.module = probe.eval()

    def _start_training(self) -> None:
        """Cache the features of all Docs that are read from now on, until the next call of `score`."""
        if self.cache is None:
            self.cache = open_cache(self.feature_cache, self.shared_llm(), self.word_reader)
        self._training = True

    def score(self, examples: Iterable[Example], **kwargs: Any) -> Dict[str, Any]:
        """Score annotated examples. During training, also fit the calibration (Platt scaling) on them.

        The training loop scores the development corpus and then saves the pipeline, so the saved pipeline
        is calibrated on the development corpus. Only the first call after an `update` fits the
        calibration. A pipeline that was just loaded, or that was scored already, keeps its calibration.

        RETURNS (Dict[str, Any]): The scorer's results.
        """
        examples = list(examples)
        if self._training:
            scored = scored_entities(examples, self.cfg["spans_key"])
            old = self.cfg["calibration"]
            raw = [(platt_scaling.invert(old, score), correct) for score, correct in scored]
            self.cfg["calibration"] = list(platt_scaling.fit(raw))
            self._training = False
        return super().score(examples, **kwargs)

    def _restore(self, cfg: Dict[str, Any], tensors: bytes) -> None:
        super()._restore(cfg, tensors)
        self.cache = None
        self._training = False

    def trained_probe(self) -> Probe:
        """RETURNS (Probe): The probe. With EmberMatch, it is created here at first.
        RAISES (LLMNERError): If the component is not trained.
        """
        self.start_from_words()
        if self.module is None:
            without_labels = Errors.E020 if self.label_reader is None else Errors.E139
            message = Errors.E024 if self.labels else without_labels
            raise LLMNERError(message.format(name=self.name))
        return self.module

    def read(self, docs: Sequence[Doc]) -> List[WordFeatures]:
        """RETURNS (List[WordFeatures]): The LLM's features of the Docs' words, cached during training."""
        llm = self.shared_llm()
        if self._training and self.cache is not None:
            return self.cache.read(llm, self.word_reader, docs)
        return self.word_reader.read(llm, docs)

    def read_finite(self, docs: Sequence[Doc]) -> List[WordFeatures]:
        """RETURNS (List[WordFeatures]): See `read`.
        RAISES (LLMNERError): If the LLM computes NaN.
        """
        found = self.read(docs)
        for features in found:
            self.shared_llm().check_finite(features.hidden)
        return found
