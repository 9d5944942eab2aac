"""TrainingPipe: base class of `ember_probe` that trains its probe."""

from typing import Any, Callable, Dict, Iterable, List, Optional, Sequence, Tuple

import torch
from spacy.language import Language
from spacy.tokens import Doc
from spacy.training import Example, validate_examples, validate_get_examples
from thinc.api import Optimizer

from ..errors import Errors, LLMNERError
from ..pipeline.gold import gold_mentions, warn_about_white_space
from ..pipeline.parallel import n_processes, share, total, wait_for_all
from ..pipeline.scorers import scored_entities
from ..pipeline.torch_pipe import isolated_seed
from . import platt_scaling
from .features.batch import GoldSpans, collate, surface
from .features.cache import FeatureCache, open_cache
from .features.corpus import BATCH, read_corpus, warn_about_unlearnable
from .features.words import WordFeatures
from .matcher.word_label_pipe import WordLabelPipe
from .predictor import Predictor
from .probes.base import Probe
from .probes.fewshot import Annotated, ChosenExample, FewShotSettings, as_example, choose
from .probes.match import MatchSettings


class TrainingPipe(WordLabelPipe):
    """Base class of `ember_probe`: a WordLabelPipe that learns from examples.

    feature_cache (str): The folder of the cache, "auto" or "off".
    cache (Optional[FeatureCache]): The LLM's features of the texts that are read in training.
    """

    feature_cache: str
    cache: Optional[FeatureCache] = None
    _training = False

    def predictor(self, labels: Optional[Sequence[str]] = None) -> Predictor:
        """RETURNS (Predictor): The trained probe with its LLM and the current settings."""
        raise NotImplementedError

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
