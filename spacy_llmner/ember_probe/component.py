"""`ember_probe`: entities from what a frozen LLM computes anyway (EMBER, arXiv 2403.11747)."""

from dataclasses import asdict
from typing import (
    Any,
    Callable,
    ContextManager,
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

from ..errors import Errors, LLMNERError
from ..llm.registry import LLM
from ..pipeline.base import FACTORY_META, LLMNERPipe, isolated_seed
from ..pipeline.gold import aligned_entities
from ..pipeline.predictions import Prediction
from ..pipeline.scorers import scored_entities
from ..pipeline.settings import fill_settings
from ..util import batches_by_length
from . import platt_scaling
from .config import DEFAULT_CONFIG, LEAST_THRESHOLD, check_settings
from .features.batch import GoldSpans, collate, groups_by_words, surface
from .features.cache import FeatureCache, open_cache
from .features.corpus import BATCH, read_corpus, warn_about_lost
from .features.words import WordFeatures, WordReader
from .predictor import Predictor
from .probes.base import Dims, Probe
from .probes.fewshot import Annotated, FewShotSettings, as_example, choose
from .streaming.generation import EmberStream
from .streaming.prompt import Prompt
from .streaming.streamer import EmberStreamer, follow_generation

# Words that the probe scores at once, padding included.
PADDED_WORDS = 8192


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
) -> "EmberProbe":
    """Build an `ember_probe`; nothing is loaded.

    llm (Union[str, LLM]): The name of the shared LLM, or a handle on it (`@misc = "spacy_llmner.LLM.v1"`).
    model (Model): The probe's settings (`spacy_llmner.EmberProbe.v1`, `spacy_llmner.EmberPaper.v1` or
        `spacy_llmner.EmberFewShot.v1`).
    spans_key (str): Key of doc.spans for all spans found, with `attrs["scores"]`.
    overwrite (bool): Replace entities that are already on the Doc.
    threshold (float): Probability at which an entity wins against no entity, before calibration.
        Lower finds more.
    max_batch_tokens (int): Tokens that go through the LLM at once.
    feature_cache (str): Folder for the LLM's features while training; "auto" is a folder in
        SPACY_LLMNER_HOME, "off" caches nothing.
    scorer (Optional[Callable]): The scoring method.
    """
    return EmberProbe(
        nlp,
        llm,
        model,
        name,
        spans_key=spans_key,
        overwrite=overwrite,
        threshold=threshold,
        max_batch_tokens=max_batch_tokens,
        feature_cache=feature_cache,
        scorer=scorer,
    )


class EmberProbe(LLMNERPipe):
    """Tiny probes on a frozen LLM's hidden states (and attention) set doc.ents.

    The LLM is never changed; only the probe is trained and saved.
    """

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
        """
        settings: Those of make_ember_probe_pipe; what is not given has the default of `DEFAULT_CONFIG`.
        RAISES (LLMNERError): If a setting is unknown, or its value is not valid.
        """
        settings = fill_settings(name, DEFAULT_CONFIG, settings)
        self.max_batch_tokens = settings.pop("max_batch_tokens")
        self.feature_cache = settings.pop("feature_cache")
        check_settings(
            name, threshold=settings["threshold"], max_batch_tokens=self.max_batch_tokens
        )
        # Not the pipeline itself, which would be kept alive by those that the component is sourced into.
        self.tokenizer = nlp.tokenizer
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

    @property
    def dims(self) -> Dims:
        """RETURNS (Dims): Sizes of the LLM the probe was made for."""
        llm = self.cfg["llm"]
        return Dims(llm["n_layers"], llm["width"], llm["n_heads"], len(self.labels))

    @property
    def threshold(self) -> float:
        """RETURNS (float): The one of `cfg`, kept away from 0 and 1, which `spacy find-threshold` tries:
        with 0, everything that could be an entity would be one."""
        return min(max(self.cfg["threshold"], LEAST_THRESHOLD), 1 - LEAST_THRESHOLD)

    @property
    def reader(self) -> WordReader:
        """RETURNS (WordReader): What the probe reads from the LLM."""
        settings = self.model.attrs["settings"]
        return settings.reader(self.dims, max_batch_tokens=self.max_batch_tokens)

    def trained_with(self) -> Dict[str, Any]:
        return {"kind": self.model.name, **asdict(self.model.attrs["settings"])}

    def build(self) -> torch.nn.Module:
        return self.model.attrs["settings"].build(self.dims)

    def predict(self, docs: Iterable[Doc]) -> List[Prediction]:
        """Find entities, without changing the Docs.

        docs (Iterable[Doc]): The Docs.
        RETURNS (List[Prediction]): For each Doc.
        RAISES (LLMNERError): If the component is not trained or the LLM is not the one it knows.
        """
        docs = list(docs)
        self._check()
        out = [Prediction([], []) for _ in docs]
        predictor = self.predictor()
        predictor.probe.eval()
        # Features of a few thousand words are held at a time: they take some 10 to 100 KB a word.
        for indices in groups_by_words([len(doc) for doc in docs], 4 * self.max_batch_tokens):
            read = [docs[i] for i in indices]
            features = self.read(read)
            for group in batches_by_length([len(f) for f in features], PADDED_WORDS):
                batch = predictor.batch([read[i] for i in group], [features[i] for i in group])
                with torch.no_grad():
                    scores = predictor.probe(batch)
                for row, i in enumerate(group):
                    rows = predictor.probe.rows(scores, row, len(read[i]))
                    out[indices[i]] = predictor.decode(read[i], rows)
        return out

    def _check(self) -> None:
        # Settings may be changed at any time.
        threshold = self.cfg["threshold"]
        check_settings(self.name, threshold=threshold, max_batch_tokens=self.max_batch_tokens)

    def predictor(self) -> Predictor:
        """RETURNS (Predictor): The trained probe on its LLM, with the present settings.
        RAISES (LLMNERError): If the component is not trained, or the LLM is not the one it was trained on.
        """
        probe: Any = self.trained_probe()
        llm = self.shared_llm()
        probe.to(llm.device)
        return Predictor(
            name=self.name,
            llm=llm,
            probe=probe,
            reader=self.reader,
            labels=self.labels,
            threshold=self.threshold,
            calibration=list(self.cfg["calibration"]),
            tokenizer=self.tokenizer,
            spans_key=self.cfg["spans_key"],
            overwrite=self.cfg["overwrite"],
        )

    def update(
        self,
        examples: Iterable[Example],
        *,
        drop: float = 0.0,
        sgd: Optional[Optimizer] = None,
        losses: Optional[Dict[str, float]] = None,
    ) -> Dict[str, float]:
        """Learn from a batch of Docs and their entities.

        examples (Iterable[Example]): The batch.
        drop (float): Dropout rate.
        sgd (Optional[Optimizer]): If given, a step is made at once.
        losses (Optional[Dict[str, float]]): The loss per word is added under the component's name.
        RETURNS (Dict[str, float]): The losses.
        """
        losses = {} if losses is None else losses
        losses.setdefault(self.name, 0.0)
        examples = list(examples)
        validate_examples(examples, "EmberProbe.update")
        examples = [eg for eg in examples if len(eg.predicted)]
        if not examples:
            return losses
        self.trained_probe()
        self._start_training()
        predictor = self.predictor()
        probe = predictor.probe
        probe.train()
        probe.set_dropout(drop)
        docs = [eg.predicted for eg in examples]
        scores = probe(predictor.batch(docs, self.read(docs)))
        loss, d_scores = self.get_loss(examples, scores)
        torch.autograd.backward(scores, d_scores)
        probe.eval()
        if sgd is not None:
            self.finish_update(sgd)
        losses[self.name] += loss
        return losses

    def get_loss(
        self, examples: Iterable[Example], scores: Tuple[torch.Tensor, ...]
    ) -> Tuple[float, Tuple[torch.Tensor, ...]]:
        """Find the loss of a batch and the gradient of the probe's scores.

        RETURNS (Tuple[float, Tuple[Tensor]]): The loss per word and the gradients.
        RAISES (LLMNERError): If an example has a label that the component does not know.
        """
        assert self.module is not None
        return self.module.loss(scores, [self._gold(eg) for eg in examples])

    def _gold(self, eg: Example) -> GoldSpans:
        entities, unknown = aligned_entities(eg)
        known = {label: i for i, label in enumerate(self.labels)}
        strange = sorted({label for _, _, label in entities if label not in known})
        if strange:
            raise self.unknown_labels(strange)
        return [(start, end, known[label]) for start, end, label in entities], unknown

    def initialize(
        self,
        get_examples: Callable[[], Iterable[Example]],
        *,
        nlp: Optional[Language] = None,
        labels: Optional[List[str]] = None,
    ) -> None:
        """Make a new probe for the labels, and let the LLM read the corpus.

        get_examples (Callable[[], Iterable[Example]]): Gives the training examples.
        nlp (Optional[Language]): The pipeline.
        labels (Optional[List[str]]): The labels; None takes those of the examples.
        RAISES (LLMNERError): Without examples, entities or labels, or with labels that are not given.
        """
        validate_get_examples(get_examples, "EmberProbe.initialize")
        examples = [eg for eg in get_examples() if len(eg.predicted)]
        if not examples:
            raise LLMNERError(Errors.E022.format(name=self.name))
        settings = self.model.attrs["settings"]
        if isinstance(settings, FewShotSettings):
            return self.fit(examples)
        self.module = None
        self._optimizer = None
        self.adopt_labels(examples, labels)
        llm = self.adopt_llm()
        self.cache = None
        self._start_training()
        self.cfg["calibration"] = list(platt_scaling.IDENTITY)
        self.cfg["trained_with"] = self.trained_with()
        with isolated_seed(llm.device):
            self.module = self.build().to(llm.device)
        tokenizer = type(self.tokenizer).__name__
        warn_about_lost(self.name, examples, getattr(settings, "max_words", None), tokenizer)
        docs = [eg.predicted for eg in examples]
        # Without a cache, only as much is read as the scale needs.
        sample = read_corpus(self.read, docs[:BATCH] if self.cache is None else docs)
        self.module.fit_scale(sample)
        self.module.eval()

    def fit(self, examples: Iterable[Annotated]) -> None:
        """Few-shot use: store the words of a few labelled sentences, without training.

        examples (Iterable[Union[Example, Tuple[str, Dict]]]): Examples, or texts with their annotation:
            (text, {"entities": [(start, end, label)]}). At most `k` sentences per label are kept.
        RAISES (LLMNERError): If the model is no few-shot model, or no example has an entity.
        """
        settings = self.model.attrs["settings"]
        if not isinstance(settings, FewShotSettings):
            raise LLMNERError(Errors.E033.format(name=self.name, model=self.model.name))
        known = [as_example(self.name, eg, self.tokenizer) for eg in examples]
        chosen = choose(known, settings.k)
        labels = sorted({label for _, entities, _ in chosen for _, _, label in entities})
        if not labels:
            raise LLMNERError(Errors.E026.format(name=self.name, k=settings.k))
        self.module = None
        self.cfg["labels"] = []
        for label in labels:
            self.add_label(label)
        self.cfg["calibration"] = list(platt_scaling.IDENTITY)
        self.cfg["trained_with"] = self.trained_with()
        llm = self.adopt_llm()
        docs = [eg.predicted for eg, _, _ in chosen]
        batch = collate(self.reader.read(llm, docs), [surface(doc) for doc in docs], llm.device)
        gold = [
            ([(start, end, labels.index(label)) for start, end, label in entities], unknown)
            for _, entities, unknown in chosen
        ]
        probe = settings.build(self.dims).to(llm.device)
        probe.store(batch, gold)
        self.module = probe.eval()

    def _start_training(self) -> None:
        """From here to the next `score`, what the LLM reads is cached."""
        if self.cache is None:
            self.cache = open_cache(self.feature_cache, self.shared_llm(), self.reader)
        self._training = True

    def stream(self, prompt: Prompt, **settings: Any) -> EmberStream:
        """Let the LLM write, and find the entities while it does.

        prompt (Union[str, Sequence[Dict[str, str]]]): A text to continue, or messages for the LLM's chat
            template.
        settings: `max_new_tokens`, `stop`, `temperature`, `top_p`, `repetition_penalty`, `seed`; see
            EmberStream.
        RETURNS (EmberStream): Iterate over it to get TextPiece and EntityEvent; then it has the `doc`.
        RAISES (LLMNERError): If the probe looks to the right, or is not trained.
        """
        self._check_streams()
        return EmberStream(self.predictor(), prompt, **settings)

    def streamer(self) -> ContextManager[EmberStreamer]:
        """Find entities in a generation that you run yourself with transformers' `generate`.

        RETURNS (ContextManager[EmberStreamer]): See EmberStreamer.
        RAISES (LLMNERError): If the probe looks to the right, or is not trained.
        """
        self._check_streams()
        return follow_generation(self.predictor())

    def _check_streams(self) -> None:
        self._check()
        self.trained_probe()
        if not self.model.attrs["settings"].streams:
            raise LLMNERError(Errors.E025.format(name=self.name))

    def score(self, examples: Iterable[Example], **kwargs: Any) -> Dict[str, Any]:
        """Score annotated examples; in a training run, also calibrate on them.

        The training loop scores the dev corpus and then saves the pipeline, so what is saved is
        calibrated on dev. Scoring ends the training until the next `update`: a pipeline that is
        loaded, or that was scored already, keeps its calibration.
        RETURNS (Dict[str, Any]): The scorer's results.
        """
        examples = list(examples)
        if self._training:
            scored = scored_entities(examples, self.cfg["spans_key"])
            old = self.cfg["calibration"]
            raw = [(platt_scaling.invert(old, score), right) for score, right in scored]
            self.cfg["calibration"] = list(platt_scaling.fit(raw))
            self._training = False
        return super().score(examples, **kwargs)

    def _restore(self, cfg: Dict[str, Any], tensors: bytes) -> None:
        super()._restore(cfg, tensors)
        self.cache = None
        self._training = False

    def trained_probe(self) -> Probe:
        """RETURNS (Probe): The probe.
        RAISES (LLMNERError): If there is none yet."""
        if self.module is None:
            message = Errors.E024 if self.labels else Errors.E020
            raise LLMNERError(message.format(name=self.name))
        return self.module

    def read(self, docs: Sequence[Doc]) -> List[WordFeatures]:
        """RETURNS (List[WordFeatures]): What the LLM says about the Docs' words, cached in training."""
        llm = self.shared_llm()
        if self._training and self.cache is not None:
            found = self.cache.read(llm, self.reader, docs)
        else:
            found = self.reader.read(llm, docs)
        for features in found:
            llm.check_finite(features.hidden)
        return found
