"""`padellm_ner`: count the mentions of each label, then decode all of them in parallel (PaDeLLM-NER,
arXiv 2402.04838).
"""

import logging
from typing import Any, Callable, Dict, Iterable, Iterator, List, Optional, Tuple, Union

from spacy.language import Language
from spacy.tokens import Doc, Span, SpanGroup
from spacy.training import Example, validate_get_examples
from thinc.api import Model

from ..decoding.engine import DecodingEngine
from ..decoding.tree import Request
from ..errors import Errors, LLMNERError
from ..llm.loading import LoadedLLM
from ..llm.packing import Packed, TrainingSequence, pack
from ..llm.registry import LLM
from ..llm.word_tokens import WordTokens
from ..pipeline.adapter_pipe import AdaptedLLM, AdapterCache, AdapterPipe
from ..pipeline.base import FACTORY_META
from ..pipeline.gold import gold_mentions
from ..pipeline.labels import warn_about_misspelled
from ..pipeline.predictions import PredictedSpan, Prediction
from ..pipeline.settings import fill_settings
from ..pipeline.spans import Mention, filter_overlapping, token_spans
from ..pipeline.training import MentionsByLabel, known_windows
from ..pipeline.windows import Window, drop_unreadable, read_windows
from .architecture import PaDeLLMSettings
from .beginnings import LEAST_THRESHOLD
from .config import DEFAULT_CONFIG, check_settings
from .decoding import DecodedMention, MentionDecodingSettings, OnLabel, find_mentions
from .postprocess import deduplicate, locate_mentions
from .templates import TemplateEncoder, max_text_tokens
from .training_data import training_sequences

logger = logging.getLogger("spacy_llmner")


@Language.factory("padellm_ner", default_config=DEFAULT_CONFIG, **FACTORY_META)
def make_padellm_ner_pipe(
    nlp: Language,
    name: str,
    llm: Union[str, LLM],
    model: Model,
    spans_key: str,
    overwrite: bool,
    count: str,
    count_threshold: float,
    confidence: str,
    probability: str,
    deduplicate: str,
    threshold: float,
    window: int,
    max_mention_tokens: int,
    max_batch_tokens: int,
    train_spans: Optional[str],
    scorer: Optional[Callable],
) -> "PaDeLLM":
    """Create a `padellm_ner`. The LLM is loaded at first use.

    llm (Union[str, LLM]): The shared LLM: its name, or a handle on it (`@misc =
        "spacy_llmner.LLM.v1"`).
    model (Model): Settings of the template and the adapter (`spacy_llmner.PaDeLLM.v1`).
    spans_key (str): Key of the doc.spans group for all spans found, with their scores in
        `attrs["scores"]`. Default "llmner".
    overwrite (bool): Replace entities that are already set on the Doc. If False, they are kept, and
        only entities that don't overlap them are added. Default True.
    count (str): How the number of mentions is used. "argmax", as published, decodes as many mentions
        as the most likely number. "calibrated" (default) weighs all numbers by their probabilities:
        each word that begins a mention with a probability above `count_threshold` is decoded into
        a mention, and that probability is part of the mention's score.
    count_threshold (float): With `count` "calibrated", the probability, from 0 to 1, above which a
        mention is decoded. A lower value finds more mentions. Values below 0.001 count as 0.001.
        Default 0.15.
    confidence (str): How the score of a mention is computed from the probabilities of its tokens:
        their "product" (default), as published, or their geometric "mean".
    probability (str): Which token probabilities are used: "allowed" (default) renormalizes them over
        the tokens that could come next in an answer; "raw", as published, computes them over the whole
        vocabulary, which takes longer.
    deduplicate (str): What to do if several labels were found for the same string: "string" (default,
        as published) keeps the most confident label for all occurrences of the string, "span" does this
        for each span separately, and "none" keeps all labels in doc.spans. See
        `postprocess.deduplicate`.
    threshold (float): Mentions with a lower score are dropped. Between 0 and 1, default 0.
    window (int): Maximum number of LLM tokens of text in one prompt. It is reduced if the LLM has too
        few positions. Longer texts are split at sentence boundaries. Default 256.
    max_mention_tokens (int): Maximum number of LLM tokens in a mention. A mention that is not
        complete by then is dropped. Default 64.
    max_batch_tokens (int): Maximum number of tokens in memory at the same time: the KV slots in
        decoding, the tokens of a forward pass in training. Texts and labels that don't fit wait.
        Default 1024.
    train_spans (Optional[str]): Train on the doc.spans group with this key, whose spans can overlap,
        instead of doc.ents.
    scorer (Optional[Callable]): The scoring method.
    RETURNS (PaDeLLM): The component.
    RAISES (LLMNERError): If a setting is not valid.
    """
    return PaDeLLM(
        nlp,
        llm,
        model,
        name,
        spans_key=spans_key,
        overwrite=overwrite,
        count=count,
        count_threshold=count_threshold,
        confidence=confidence,
        probability=probability,
        deduplicate=deduplicate,
        threshold=threshold,
        window=window,
        max_mention_tokens=max_mention_tokens,
        max_batch_tokens=max_batch_tokens,
        train_spans=train_spans,
        scorer=scorer,
    )


class PaDeLLM(AdapterPipe):
    """The component `padellm_ner`. The LLM, with an adapter trained for this component, predicts the
    number of mentions of each label, and decodes all mentions in parallel.
    """

    factory = "padellm_ner"

    def __init__(
        self,
        nlp: Language,
        llm: Union[str, LLM],
        model: Model,
        name: str = "padellm_ner",
        *,
        scorer: Optional[Callable] = None,
        **settings: Any,
    ) -> None:
        """Create the component. See `make_padellm_ner_pipe` for the arguments.

        settings: The settings of `make_padellm_ner_pipe`. A setting that is not given has its default
            value.
        RAISES (LLMNERError): If a setting does not exist or is not valid.
        """
        settings = fill_settings(name, DEFAULT_CONFIG, settings)
        check_settings(name, **settings)
        self.max_batch_tokens = settings.pop("max_batch_tokens")
        super().__init__(nlp, llm, model, name, scorer=scorer, shapes={}, **settings)

    @property
    def settings(self) -> PaDeLLMSettings:
        """The settings of the template and the adapter."""
        return self.model.attrs["settings"]

    def predict(self, docs: Iterable[Doc]) -> List[Prediction]:
        """Find entities without changing the Docs.

        During training, nothing is predicted before the first update: the LLM without a trained
        adapter predicts many mentions of each label, and decoding them would take minutes.

        docs (Iterable[Doc]): The Docs.
        RETURNS (List[Prediction]): The entities and spans found in each Doc.
        RAISES (LLMNERError): If the component is not trained, the LLM is not the one it was trained
            on, or a setting in `cfg` is not valid.
        """
        docs = list(docs)
        texts = [doc.text for doc in docs]
        engine, prompt_encoder = self._engine()
        if self._optimizer is not None and self.module.is_untrained():
            return [Prediction([], []) for _ in docs]
        windows = [self._windows(doc, prompt_encoder) for doc in docs]
        order = sorted(
            ((i, w) for i, parts in enumerate(windows) for w in parts),
            key=lambda item: len(item[1].words.ids),
        )
        requests = [self.request(prompt_encoder, w.words, texts[i]) for i, w in order]
        decoded: Dict[int, List[Dict[str, List[DecodedMention]]]] = {
            i: [] for i in range(len(docs))
        }
        for (i, _), found in zip(order, engine.run(requests)):
            decoded[i].append(found)
        return [self._prediction(doc, decoded[i]) for i, doc in enumerate(docs)]

    def request(
        self,
        prompt_encoder: TemplateEncoder,
        words: WordTokens,
        text: str,
        on_label: Optional[OnLabel] = None,
    ) -> Request:
        """Create the request that finds the mentions in a window. See `find_mentions` for the arguments.

        RETURNS (Request): The request for the decoding engine.
        """
        return find_mentions(
            prompt_encoder, words, text, self.labels, self.decoding_settings, on_label
        )

    def sequences(
        self,
        prompt_encoder: TemplateEncoder,
        words: WordTokens,
        text: str,
        mentions: MentionsByLabel,
    ) -> List[TrainingSequence]:
        """Create the training sequences for a window. See `training_sequences` for the arguments.

        RETURNS (List[TrainingSequence]): The sequences.
        """
        settings = self.settings
        return training_sequences(
            prompt_encoder,
            words,
            text,
            self.labels,
            mentions,
            learn_index=settings.learn_index,
            allowed=settings.loss == "allowed",
        )

    @property
    def decoding_settings(self) -> MentionDecodingSettings:
        """The settings for counting and decoding mentions."""
        threshold = None
        if self.cfg["count"] == "calibrated":
            threshold = max(self.cfg["count_threshold"], LEAST_THRESHOLD)
        return MentionDecodingSettings(
            count_threshold=threshold,
            nested=self.cfg["train_spans"] is not None,
            raw=self.cfg["probability"] == "raw",
            max_tokens=self.cfg["max_mention_tokens"],
        )

    def stream(self, text: Union[str, Doc]) -> Iterator[Span]:
        """Find the entities in a text and yield the entities of each label as soon as they are decoded.

        There is no deduplication: a string that is found under two labels is yielded for both.

        text (Union[str, Doc]): A str is tokenized with the tokenizer of the pipeline that the
            component was created in. If the component was sourced into another pipeline (`source=`),
            pass `nlp.make_doc(text)` of that pipeline instead.
        YIELDS (Span): Spans of the Doc, with `span._.score`. The spans yielded so far are also in
            doc.spans.
        RAISES (LLMNERError): See `predict`.
        """
        doc = self.tokenizer(text) if isinstance(text, str) else text
        text = doc.text
        key = self.cfg["spans_key"]
        doc.spans[key] = SpanGroup(doc, name=key, attrs={"scores": [], "method": self.name})
        group = doc.spans[key]
        engine, prompt_encoder = self._engine()
        for window in self._windows(doc, prompt_encoder):
            done: List[PredictedSpan] = []

            def collect(label: str, decoded: List[DecodedMention]) -> None:
                mentions = self._mentions([{label: decoded}])
                done.extend(token_spans(doc, mentions))  # noqa: B023

            for _ in engine.steps([self.request(prompt_encoder, window.words, text, collect)]):
                while done:
                    found = done.pop(0)
                    group.append(Span(doc, found.start, found.end, label=found.label))
                    group.attrs["scores"].append(found.score)
                    yield group[-1]

    def _prediction(self, doc: Doc, decoded: List[Dict[str, List[DecodedMention]]]) -> Prediction:
        mentions = deduplicate(doc.text, self._mentions(decoded), self.cfg["deduplicate"])
        return Prediction(
            token_spans(doc, filter_overlapping(mentions)), token_spans(doc, mentions)
        )

    def _mentions(self, decoded: List[Dict[str, List[DecodedMention]]]) -> List[Mention]:
        mentions, n_lost = locate_mentions(
            decoded,
            self.cfg["confidence"],
            raw=self.cfg["probability"] == "raw",
        )
        if n_lost:
            total = n_lost + len(mentions)
            logger.debug(
                "%s: %d of %d mentions have no occurrence left in the text",
                self.name,
                n_lost,
                total,
            )
        return [m for m in mentions if m.score >= self.cfg["threshold"]]

    def initialize(
        self,
        get_examples: Callable[[], Iterable[Example]],
        *,
        nlp: Optional[Language] = None,
        labels: Optional[List[str]] = None,
    ) -> None:
        """Create a new adapter.

        get_examples (Callable[[], Iterable[Example]]): Returns the training examples.
        nlp (Optional[Language]): The pipeline.
        labels (Optional[List[str]]): The labels. None uses the labels of the examples, in addition to
            those added before.
        RAISES (LLMNERError): If there are no examples, entities or labels, if an example has a label
            that is not in `labels`, if no window of the examples can be used for training, or if a
            setting does not fit the labels or the LLM.
        """
        validate_get_examples(get_examples, "PaDeLLM.initialize")
        examples = [eg for eg in get_examples() if len(eg.predicted)]
        if not examples:
            raise LLMNERError(Errors.E022.format(name=self.name))
        self.module = self._optimizer = None
        self._adapted = AdapterCache()
        self.adopt_labels(examples, labels)
        llm = self.adopt_llm()
        self.settings.check(self.name, self.labels, llm)
        warn_about_misspelled(self.name, self.settings.label_words, self.labels)
        self.start_adapter(llm)
        self.check_corpus(examples)
        self.record_corpus(examples, nlp)

    def make_training_batch(self, examples: List[Example]) -> List[Packed]:
        return [packed for eg in examples for packed in self._packed(eg)]

    def _packed(self, eg: Example) -> List[Packed]:
        prompt_encoder = self.adapted_llm().prompt_encoder
        mentions = gold_mentions(eg, self.cfg["train_spans"])
        unknown = sorted({label for _, _, label in mentions[0] if label not in self.labels})
        if unknown:
            raise self.unknown_labels(unknown)
        doc = eg.predicted
        return [
            pack(self.sequences(prompt_encoder, words, doc.text, inside))
            for words, inside in known_windows(doc, self.text_windows(doc), mentions)
        ]

    def text_windows(self, doc: Doc) -> List[Window]:
        return self._windows(doc, self.adapted_llm().prompt_encoder)

    def _windows(self, doc: Doc, prompt_encoder: TemplateEncoder) -> List[Window]:
        limit = max_text_tokens(
            prompt_encoder, self.labels, self.shared_llm().max_length, self.name
        )
        size = min(self.cfg["window"], limit)
        return drop_unreadable(read_windows(doc, prompt_encoder.tokenizer, size), limit, self.name)

    def _engine(self) -> Tuple[DecodingEngine, TemplateEncoder]:
        # Settings can be changed at any time, so they are validated before each use.
        check_settings(self.name, max_batch_tokens=self.max_batch_tokens, **self.cfg)
        llm, view, prompt_encoder = self.adapted_llm()
        raw = self.cfg["probability"] == "raw"
        return DecodingEngine(llm, view, raw=raw, max_slots=self.max_batch_tokens), prompt_encoder

    def adapted_llm(self) -> AdaptedLLM:
        """Get the LLM with the adapter.

        RETURNS (AdaptedLLM): The LLM, its view with the adapter, and the prompt encoder.
        RAISES (LLMNERError): If the component is not trained, or the LLM is not the one it was
            trained on.
        """
        if self.module is None:
            raise self.not_trained()
        return super().adapted_llm()

    def make_prompt_encoder(self, llm: LoadedLLM) -> TemplateEncoder:
        return TemplateEncoder(self.settings.template, llm.tokenizer, self.settings.label_words)
