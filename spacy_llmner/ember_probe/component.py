"""`ember_probe`: entities from what a frozen LLM computes anyway (EMBER, arXiv 2403.11747)."""

from dataclasses import asdict
from typing import Any, Callable, Dict, Iterable, List, Optional, Sequence, Tuple

import numpy as np
import torch
from spacy.language import Language
from spacy.tokens import Doc
from spacy.training import Example, validate_examples, validate_get_examples
from thinc.api import Config, Model, Optimizer

from ..errors import Errors, LLMNERError
from ..llm.registry import LLM
from ..pipeline.base import FACTORY, LLMNERPipe, drawn_apart
from ..pipeline.gold import aligned_entities
from ..pipeline.predictions import Found, FoundSpan
from ..pipeline.scorers import scored_entities
from . import platt_scaling as calibration
from .features.batch import Gold, WordBatch, batches_by_words, collate, groups_by_words, surface
from .features.cache import FeatureCache, open_cache
from .features.corpus import read_corpus, warn_about_lost
from .features.words import WordFeatures, WordReader
from .postprocess import decode
from .probes.base import LEAST_THRESHOLD, Dims, check_settings
from .probes.fewshot import Annotated, FewShotSettings, fit_few_shot
from .probes.segmentation import Mention
from .streaming.generation import EmberStream, Prompt, streaming

default_config = """
[ember_probe]
spans_key = "llmner"
overwrite = true
threshold = 0.5
max_batch_tokens = 2048
feature_cache = "auto"

[ember_probe.llm]
@misc = "spacy_llmner.LLM.v1"
name = null

[ember_probe.model]
@architectures = "spacy_llmner.EmberProbe.v1"

[ember_probe.scorer]
@scorers = "spacy_llmner.ner_scorer.v1"
"""

DEFAULT_CONFIG = Config().from_str(default_config)["ember_probe"]


@Language.factory("ember_probe", default_config=DEFAULT_CONFIG, **FACTORY)
def make_ember_probe_pipe(
    nlp: Language,
    name: str,
    llm: LLM,
    model: Model,
    spans_key: str,
    overwrite: bool,
    threshold: float,
    max_batch_tokens: int,
    feature_cache: str,
    scorer: Optional[Callable],
) -> "EmberProbe":
    """Build an `ember_probe`; nothing is loaded.

    llm (LLM): Handle on the shared LLM (`@misc = "spacy_llmner.LLM.v1"`).
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
        llm: LLM,
        model: Model,
        name: str = "ember_probe",
        *,
        spans_key: str = "llmner",
        overwrite: bool = True,
        threshold: float = 0.5,
        max_batch_tokens: int = 2048,
        feature_cache: str = "auto",
        scorer: Optional[Callable] = None,
    ) -> None:
        """See make_ember_probe_pipe.

        RAISES (LLMNERError): If a setting has a value that makes no sense.
        """
        check_settings(name, threshold=threshold, max_batch_tokens=max_batch_tokens)
        # Not the pipeline itself, which would be kept alive by those that the component is sourced into.
        self.tokenizer = nlp.tokenizer
        super().__init__(
            nlp,
            llm,
            model,
            name,
            scorer=scorer,
            spans_key=spans_key,
            overwrite=overwrite,
            threshold=threshold,
            calibration=list(calibration.IDENTITY),
        )
        self.max_batch_tokens = max_batch_tokens
        self.feature_cache = feature_cache
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

    def predict(self, docs: Iterable[Doc]) -> List[Found]:
        """Find entities, without changing the Docs.

        docs (Iterable[Doc]): The Docs.
        RETURNS (List[Found]): For each Doc.
        RAISES (LLMNERError): If the component is not trained or the LLM is not the one it knows.
        """
        docs = list(docs)
        self._check()
        probe = self.trained_probe()
        out = [Found([], []) for _ in docs]
        probe.eval()
        # Features of a few thousand words are held at a time: they take some 10 to 100 KB a word.
        for places in groups_by_words([len(doc) for doc in docs], 4 * self.max_batch_tokens):
            read = [docs[i] for i in places]
            features = self.read(read)
            for group in batches_by_words([len(f) for f in features]):
                batch = self._batch([read[i] for i in group], [features[i] for i in group])
                with torch.no_grad():
                    scores = probe(batch)
                for row, i in enumerate(group):
                    rows = probe.rows(scores, row, len(read[i]))
                    out[places[i]] = self.decode(read[i], rows)
        return out

    def _check(self) -> None:
        # Settings may be changed at any time.
        threshold = self.cfg["threshold"]
        check_settings(self.name, threshold=threshold, max_batch_tokens=self.max_batch_tokens)

    def rows(self, doc: Doc, features: WordFeatures) -> np.ndarray:
        """Score the words of one Doc. RETURNS (ndarray): One row for each word, for `decode`."""
        if not len(doc):
            return np.zeros((0, 1, 1))
        probe = self.trained_probe()
        with torch.no_grad():
            return probe.rows(probe(self._batch([doc], [features])), 0, len(doc))

    def decode(self, doc: Doc, rows: np.ndarray) -> Found:
        """Turn the probe's scores into entities. Where the Doc has sentence boundaries, none crosses one.

        rows (ndarray): One for each word of the Doc.
        """
        chosen, every = decode(doc, rows, self.trained_probe(), self.threshold)
        found = {(m.start, m.end, m.label): self.found_span(m) for m in every}
        return Found([found[m] for m in chosen], list(found.values()))

    def found_span(self, mention: Mention) -> FoundSpan:
        """Name the label of a mention and calibrate its score."""
        score = calibration.apply(self.cfg["calibration"], mention.score)
        return FoundSpan(mention.start, mention.end, self.labels[mention.label], score)

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
        probe = self.trained_probe()
        self._start_training()
        probe.train()
        probe.set_dropout(drop)
        docs = [eg.predicted for eg in examples]
        scores = probe(self._batch(docs, self.read(docs)))
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

    def _gold(self, eg: Example) -> Gold:
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
        self.cfg["calibration"] = list(calibration.IDENTITY)
        self.cfg["trained_with"] = self.trained_with()
        with drawn_apart(llm.device):
            self.module = self.build().to(llm.device)
        tokenizer = type(self.tokenizer).__name__
        warn_about_lost(self.name, examples, getattr(settings, "max_words", None), tokenizer)
        sample = read_corpus(self, [eg.predicted for eg in examples])
        if hasattr(self.module, "fit_scale"):
            self.module.fit_scale(sample)
        self.module.eval()

    def fit(self, examples: Iterable[Annotated]) -> None:
        """Few-shot use: store the words of a few labelled sentences, without training.

        examples (Iterable[Union[Example, Tuple[str, Dict]]]): Examples, or texts with their annotation:
            (text, {"entities": [(start, end, label)]}). At most `k` sentences per label are kept.
        RAISES (LLMNERError): If the model is no few-shot model, or no example has an entity.
        """
        fit_few_shot(self, examples)

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
        return EmberStream(self, prompt, **settings)

    def streamer(self) -> Any:
        """Find entities in a generation that you run yourself with transformers' `generate`.

        RETURNS (ContextManager[EmberStreamer]): See EmberStreamer.
        RAISES (LLMNERError): If the probe looks to the right, or is not trained.
        """
        self._check_streams()
        return streaming(self)

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
            raw = [(calibration.invert(old, score), right) for score, right in scored]
            self.cfg["calibration"] = list(calibration.fit(raw))
            self._training = False
        return super().score(examples, **kwargs)

    def _restore(self, cfg: Dict[str, Any], tensors: bytes) -> None:
        super()._restore(cfg, tensors)
        self.cache = None
        self._training = False

    def trained_probe(self) -> Any:
        """RETURNS (Module): The probe.
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
            llm.check_numbers(features.hidden)
        return found

    def _batch(self, docs: Sequence[Doc], features: Sequence[WordFeatures]) -> WordBatch:
        device = self.shared_llm().device
        assert self.module is not None
        self.module.to(device)
        return collate(features, [surface(doc) for doc in docs], device)
