"""`padellm_ner`: count the mentions of each label, then write all of them in parallel
(PaDeLLM-NER, arXiv 2402.04838)."""

import logging
from typing import Any, Callable, Dict, Iterable, Iterator, List, Optional, Tuple, Union

from spacy.language import Language
from spacy.tokens import Doc, Span, SpanGroup
from spacy.training import Example, validate_get_examples
from thinc.api import Model

from ..decoding.engine import DecodingEngine, Request
from ..errors import Errors, LLMNERError
from ..llm.loading import LoadedLLM
from ..llm.packing import Packed, TrainingSequence, pack
from ..llm.registry import LLM
from ..llm.word_tokens import WordTokens
from ..pipeline.adapter_pipe import AdaptedLLM, AdapterCache, AdapterPipe
from ..pipeline.base import FACTORY_META
from ..pipeline.gold import gold_mentions
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
from .templates import TemplateEncoder, most_tokens
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
    """Build a `padellm_ner`; nothing is loaded.

    llm (Union[str, LLM]): The name of the shared LLM, or a handle on it (`@misc = "spacy_llmner.LLM.v1"`).
    model (Model): TemplateEncoder and adapter (`spacy_llmner.PaDeLLM.v1`).
    spans_key (str): Key of doc.spans for all spans found, with `attrs["scores"]`.
    overwrite (bool): Replace entities that are already on the Doc.
    count (str): "argmax" takes the likeliest number of mentions, as published; "calibrated" weighs all
        numbers by their probabilities, and writes what is more likely than `count_threshold` to begin a
        mention. Its score says how likely that is.
    count_threshold (float): See `count`. Lower finds more.
    confidence (str): "product" of the probabilities of a mention's tokens, as published, or their "mean".
    probability (str): "allowed": among the tokens that could come next; "raw": among the whole
        vocabulary, as published, which takes longer.
    deduplicate (str): What to do when several labels claim the same: "string" (as published), "span" or
        "none". See `mentions.deduplicate`.
    threshold (float): Mentions with a lower score are dropped.
    window (int): Tokens of text that are read at once; fewer if the LLM can't read so many. Longer texts
        are cut between sentences.
    max_mention_tokens (int): What has not ended after so many tokens is no mention, and dropped.
    max_batch_tokens (int): Tokens that are kept in memory at once.
    train_spans (Optional[str]): Learn from these doc.spans, which may overlap, instead of doc.ents.
    scorer (Optional[Callable]): The scoring method.
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
    """The LLM, with an adapter of its own, says how many mentions of each label there are, and writes
    them all at the same time."""

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
        """
        settings: Those of make_padellm_ner_pipe; what is not given has the default of `DEFAULT_CONFIG`.
        RAISES (LLMNERError): If a setting is unknown, or its value is not valid.
        """
        settings = fill_settings(name, DEFAULT_CONFIG, settings)
        check_settings(name, **settings)
        self.max_batch_tokens = settings.pop("max_batch_tokens")
        super().__init__(nlp, llm, model, name, scorer=scorer, shapes={}, **settings)
        # Not the pipeline itself, which would be kept alive by those that the component is sourced into.
        self.tokenizer = nlp.tokenizer

    @property
    def settings(self) -> PaDeLLMSettings:
        """RETURNS (PaDeLLMSettings): TemplateEncoder and adapter."""
        return self.model.attrs["settings"]

    def predict(self, docs: Iterable[Doc]) -> List[Prediction]:
        """Find entities, without changing the Docs.

        docs (Iterable[Doc]): The Docs.
        RETURNS (List[Prediction]): For each Doc. Nothing is found in training before the first step that learns:
            without it the LLM counts many mentions of each label, and to write them takes minutes.
        RAISES (LLMNERError): If the component is not trained, the LLM is not the one it knows, or a
            setting in `cfg` makes no sense.
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
        written: Dict[int, List[Dict[str, List[DecodedMention]]]] = {
            i: [] for i in range(len(docs))
        }
        for (i, _), found in zip(order, engine.run(requests)):
            written[i].append(found)
        return [self._found(doc, written[i]) for i, doc in enumerate(docs)]

    def request(
        self,
        prompt_encoder: TemplateEncoder,
        words: WordTokens,
        text: str,
        on_label: Optional[OnLabel] = None,
    ) -> Request:
        """RETURNS (Request): Finds the mentions in some words of a text. See `find_mentions`."""
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
        """RETURNS (List[TrainingSequence]): What is learnt from some words of a text."""
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
        """RETURNS (MentionDecodingSettings): How mentions are counted and decoded."""
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
        """Find the entities of a text, label by label as soon as they are written.

        Nothing is held back: strings that two labels claim are yielded for both.
        text (Union[str, Doc]): A str is tokenized as in the pipeline that the component was made in. One
            that was added to another pipeline (`source=`) is not told: give it `nlp.make_doc(text)` there.
        YIELDS (Span): Of the Doc, with `span._.score`; those so far are in its doc.spans.
        """
        doc = self.tokenizer(text) if isinstance(text, str) else text
        text = doc.text
        key = self.cfg["spans_key"]
        doc.spans[key] = SpanGroup(doc, name=key, attrs={"scores": [], "method": self.name})
        group = doc.spans[key]
        engine, prompt_encoder = self._engine()
        for window in self._windows(doc, prompt_encoder):
            done: List[PredictedSpan] = []

            def tell(label: str, written: List[DecodedMention]) -> None:
                mentions = self._mentions([{label: written}])
                done.extend(token_spans(doc, mentions))  # noqa: B023

            for _ in engine.steps([self.request(prompt_encoder, window.words, text, tell)]):
                while done:
                    found = done.pop(0)
                    group.append(Span(doc, found.start, found.end, label=found.label))
                    group.attrs["scores"].append(found.score)
                    yield group[-1]

    def _found(self, doc: Doc, written: List[Dict[str, List[DecodedMention]]]) -> Prediction:
        mentions = deduplicate(doc.text, self._mentions(written), self.cfg["deduplicate"])
        return Prediction(
            token_spans(doc, filter_overlapping(mentions)), token_spans(doc, mentions)
        )

    def _mentions(self, written: List[Dict[str, List[DecodedMention]]]) -> List[Mention]:
        mentions, lost = locate_mentions(
            written,
            self.cfg["confidence"],
            raw=self.cfg["probability"] == "raw",
        )
        if lost:
            total = lost + len(mentions)
            logger.debug("%s: %d of %d mentions have no place in the text", self.name, lost, total)
        return [m for m in mentions if m.score >= self.cfg["threshold"]]

    def initialize(
        self,
        get_examples: Callable[[], Iterable[Example]],
        *,
        nlp: Optional[Language] = None,
        labels: Optional[List[str]] = None,
    ) -> None:
        """Make a new adapter.

        get_examples (Callable[[], Iterable[Example]]): Gives the training examples.
        nlp (Optional[Language]): The pipeline.
        labels (Optional[List[str]]): The labels; None takes those of the examples.
        RAISES (LLMNERError): Without examples, entities or labels, with labels that are not given, if
            nothing of the examples can be learnt, or if a setting does not fit them or the LLM.
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
        self.start_adapter(llm)
        self.check_corpus(examples)

    def labels_of(self, eg: Example) -> List[str]:
        return [label for _, _, label in gold_mentions(eg, self.cfg["train_spans"])[0]]

    def make_training_batch(self, examples: List[Example]) -> List[Packed]:
        return [packed for eg in examples for packed in self._packed(eg)]

    def _packed(self, eg: Example) -> List[Packed]:
        prompt_encoder = self.adapted_llm().prompt_encoder
        mentions = gold_mentions(eg, self.cfg["train_spans"])
        strange = sorted({label for _, _, label in mentions[0] if label not in self.labels})
        if strange:
            raise self.unknown_labels(strange)
        doc = eg.predicted
        return [
            pack(self.sequences(prompt_encoder, words, doc.text, inside))
            for words, inside in known_windows(doc, self.text_windows(doc), mentions)
        ]

    def text_windows(self, doc: Doc) -> List[Window]:
        return self._windows(doc, self.adapted_llm().prompt_encoder)

    def _windows(self, doc: Doc, prompt_encoder: TemplateEncoder) -> List[Window]:
        most = most_tokens(prompt_encoder, self.labels, self.shared_llm().max_length, self.name)
        size = min(self.cfg["window"], most)
        return drop_unreadable(read_windows(doc, prompt_encoder.tokenizer, size), most, self.name)

    def _engine(self) -> Tuple[DecodingEngine, TemplateEncoder]:
        # Settings may be changed at any time.
        check_settings(self.name, max_batch_tokens=self.max_batch_tokens, **self.cfg)
        llm, view, prompt_encoder = self.adapted_llm()
        raw = self.cfg["probability"] == "raw"
        return DecodingEngine(llm, view, raw=raw, max_slots=self.max_batch_tokens), prompt_encoder

    def adapted_llm(self) -> AdaptedLLM:
        """RAISES (LLMNERError): If the component is not trained, or the LLM is another one."""
        if self.module is None:
            raise self.not_trained()
        return super().adapted_llm()

    def make_prompt_encoder(self, llm: LoadedLLM) -> TemplateEncoder:
        return TemplateEncoder(self.settings.template, llm.tokenizer, self.settings.label_words)
