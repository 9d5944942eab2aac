"""`ra_it_ner`: open NER by retrieval-augmented instruction tuning (RA-IT, arXiv 2406.17305)."""

import logging
import random
import warnings
from collections import Counter
from dataclasses import replace
from typing import Any, Callable, Iterable, List, Optional, Sequence, Tuple, Union

from spacy.language import Language
from spacy.tokens import Doc
from spacy.training import Example, validate_get_examples
from thinc.api import Model

from ..decoding.engine import DecodingEngine
from ..decoding.tree import Request
from ..errors import DocumentError, Errors, LLMNERError, Warnings
from ..llm.loading import LoadedLLM
from ..llm.packing import Packed
from ..llm.registry import LLM
from ..pipeline.adapter_pipe import AdapterCache, check_llm
from ..pipeline.base import FACTORY_META
from ..pipeline.labels import check_labels, doc_labels, warn_about_misspelled
from ..pipeline.predictions import Prediction
from ..pipeline.settings import fill_settings
from ..pipeline.spans import Mention, filter_overlapping, token_spans
from ..pipeline.windows import Window
from ..retrieval.encoder import Encoder
from ..retrieval.examples import LabelledText
from ..retrieval.index import ExampleIndex
from ..retrieval.strategies import Strategy
from .config import DEFAULT_CONFIG, check_settings
from .conversation import ConversationEncoder
from .decoding import ListDecodingSettings, ask_types
from .example_pipe import ExamplePipe
from .example_selection import PredictionWithExamples, SelectedExamples
from .postprocess import mentions_of
from .prompts import Passage, TokenBudget, common_beginning, passage_text
from .training_data import make_training_batch

logger = logging.getLogger("spacy_llmner")


@Language.factory("ra_it_ner", default_config=DEFAULT_CONFIG, **FACTORY_META)
def make_ra_it_ner_pipe(
    nlp: Language,
    name: str,
    llm: Union[str, LLM],
    model: Model,
    encoder: Encoder,
    retrieval: Strategy,
    labels: List[str],
    spans_key: str,
    overwrite: bool,
    use_examples: str,
    example_threshold: Optional[float],
    list_threshold: float,
    constrained: bool,
    threshold: float,
    context: int,
    window: int,
    max_answer_tokens: int,
    max_batch_tokens: int,
    random_k: bool,
    negative_rate: float,
    least_negatives: int,
    train_spans: Optional[str],
    scorer: Optional[Callable],
) -> "RAIT":
    """Create a `ra_it_ner`. The LLM and the encoder are loaded at first use.

    llm (Union[str, LLM]): The shared LLM: its name, or a handle on it (`@misc =
        "spacy_llmner.LLM.v1"`).
    model (Model): Settings of the conversation and the adapter (`spacy_llmner.RAIT.v1`).
    encoder (Encoder): The encoder that embeds texts for retrieval (`spacy_llmner.SentenceEncoder.v1`
        or `spacy_llmner.LLMEncoder.v1`).
    retrieval (Strategy): How examples are retrieved (`spacy_llmner.Retrieval.v1`). With k = 0 there
        are no examples, and training is plain instruction tuning.
    labels (List[str]): The labels to find. They can be changed at any time with `set_labels`, and for
        one Doc with `doc._.llmner_labels`. If empty (default), they are set at initialization.
    spans_key (str): Key of the doc.spans group for all spans found, with their scores in
        `attrs["scores"]`. Default "llmner".
    overwrite (bool): Replace entities that are already set on the Doc. If False, they are kept, and
        only entities that don't overlap them are added. Default True.
    use_examples (str): When to put examples before a text: "always", "never" or "auto" (default),
        which uses them only if they are similar enough. See `ExampleSelector.choose`.
    example_threshold (Optional[float]): With `use_examples` "auto", the cosine similarity, from -1 to
        1, that the most similar example must have. `calibrate` sets it. None (default) uses the
        published rule.
    list_threshold (float): The entities of a type are listed if the probability that there are any is
        above this. A lower value finds more entities. Not used if `constrained` is False. Between 0
        and 1, default 0.5, which is greedy decoding.
    constrained (bool): Constrain answers to JSON lists of strings from the text, which start and end at
        word boundaries. With False, the LLM generates freely, and its answer is parsed as far as possible.
        Default True.
    threshold (float): Entities with a lower score are dropped. Between 0 and 1, default 0.
    context (int): Maximum number of LLM tokens in a conversation, the answer included. It is reduced
        if the LLM has fewer positions. If a conversation is too long, examples are left out first;
        then the text is split into shorter windows. Default 2048.
    window (int): Maximum number of LLM tokens of text in one conversation. Longer texts are split at
        sentence boundaries. Default 256.
    max_answer_tokens (int): Maximum number of LLM tokens in an answer. Default 256.
    max_batch_tokens (int): Maximum number of tokens in memory at the same time: the KV slots in
        decoding, the tokens of a forward pass in training. Texts and types that don't fit wait.
        Default 2048.
    random_k (bool): In training, show a random number of examples, from 0 to k, in random order.
        False always shows k examples, the most similar first, as published. Default True.
    negative_rate (float): In training, for each type that the text contains, the probability that a
        type that it doesn't contain is requested too. Between 0 and 1, default 0.5, as published.
    least_negatives (int): In training, sample at least this many types that the text doesn't contain.
        Default 1 (0 in the paper).
    train_spans (Optional[str]): Train on the doc.spans group with this key, whose spans can overlap,
        instead of doc.ents.
    scorer (Optional[Callable]): The scoring method.
    RETURNS (RAIT): The component.
    RAISES (LLMNERError): If a setting is not valid.
    """
    return RAIT(
        nlp,
        llm,
        model,
        encoder,
        retrieval,
        name,
        labels=labels,
        spans_key=spans_key,
        overwrite=overwrite,
        use_examples=use_examples,
        example_threshold=example_threshold,
        list_threshold=list_threshold,
        constrained=constrained,
        threshold=threshold,
        context=context,
        window=window,
        max_answer_tokens=max_answer_tokens,
        max_batch_tokens=max_batch_tokens,
        random_k=random_k,
        negative_rate=negative_rate,
        least_negatives=least_negatives,
        train_spans=train_spans,
        scorer=scorer,
    )


class RAIT(ExamplePipe):
    """The component `ra_it_ner`. The LLM, with an adapter trained for this component, reads similar texts
    with their entities, and is then asked about each type in a separate question.

    Types are words in the question, so types that were not in the training data can be requested too.
    """

    factory = "ra_it_ner"

    def __init__(
        self,
        nlp: Language,
        llm: Union[str, LLM],
        model: Model,
        encoder: Encoder,
        retrieval: Strategy,
        name: str = "ra_it_ner",
        *,
        scorer: Optional[Callable] = None,
        **settings: Any,
    ) -> None:
        """Create the component. See `make_ra_it_ner_pipe` for the arguments.

        settings: The settings of `make_ra_it_ner_pipe`. A setting that is not given has its default
            value.
        RAISES (LLMNERError): If a setting does not exist or is not valid.
        """
        settings = fill_settings(name, DEFAULT_CONFIG, settings)
        labels = settings.pop("labels")
        check_settings(name, **settings)
        self.max_batch_tokens = settings.pop("max_batch_tokens")
        super().__init__(
            nlp,
            llm,
            model,
            encoder,
            retrieval,
            name,
            scorer=scorer,
            shapes={},
            frequencies={},
            **settings,
        )
        self._rng: Optional[random.Random] = None
        self._warned = False
        self.set_labels(labels)

    def set_labels(self, labels: Iterable[str]) -> None:
        """Set the labels to find. They can be any words, including words that were not in the training
        data.

        labels (Iterable[str]): The labels. Duplicates are ignored.
        RAISES (LLMNERError): If a label is not a word, or two labels have the same word.
        """
        checked = check_labels(self.name, labels)
        self.settings.check_labels(self.name, checked)
        warn_about_misspelled(self.name, self.settings.label_words, checked)
        for label in checked:
            self.vocab.strings.add(label)
        self.cfg["labels"] = checked

    def add_label(self, label: str) -> int:
        """Add a label to the labels to find.

        label (str): The label.
        RETURNS (int): 1 if the label is new, else 0.
        RAISES (LLMNERError): See `set_labels`.
        """
        before = len(self.labels)
        self.set_labels([*self.labels, label])
        return len(self.labels) - before

    def predict(self, docs: Iterable[Doc]) -> List[PredictionWithExamples]:
        """Find entities without changing the Docs.

        docs (Iterable[Doc]): The Docs.
        RETURNS (List[PredictionWithExamples]): The entities and spans found in each Doc, and the
            examples used.
        RAISES (LLMNERError): If there are no labels, the LLM is not the one the component was trained
            on, or a setting in `cfg` is not valid.
        """
        # Settings can be changed at any time, so they are validated before each use.
        check_settings(self.name, max_batch_tokens=self.max_batch_tokens, **self.cfg)
        docs = list(docs)
        texts = [doc.text for doc in docs]
        llm, view, prompt_encoder = self.adapted_llm()
        if self.module is None and not self._warned:
            warnings.warn(Warnings.W018.format(name=self.name, llm=llm.spec.name), stacklevel=2)
            self._warned = True
        settings = self.decoding_settings
        passages = sorted(self._passages(docs, llm, prompt_encoder), key=lambda p: len(p.words.ids))
        budget = self._budget(llm)
        requests = [self._request(prompt_encoder, p, texts[p.doc], budget) for p in passages]
        prefix = common_beginning(passages)
        engine = DecodingEngine(llm, view, prefix=prefix, max_slots=self.max_batch_tokens)
        mentions: List[List[Mention]] = [[] for _ in docs]
        selections: List[List[Tuple[int, SelectedExamples]]] = [[] for _ in docs]
        n_strings = n_lost = 0
        for passage, answers in zip(passages, engine.run(requests)):
            start = int(passage.words.bounds[0][0])
            selections[passage.doc].append((start, passage.selected))
            for label, listed in answers.items():
                found, lost = mentions_of(label, listed, ordered=settings.ordered)
                n_strings, n_lost = n_strings + len(listed), n_lost + lost
                mentions[passage.doc] += [m for m in found if m.score >= self.cfg["threshold"]]
        if n_lost:
            logger.debug(
                "%s: %d of %d strings have no occurrence left in the text",
                self.name,
                n_lost,
                n_strings,
            )
        out = []
        for doc, found, selected in zip(docs, mentions, selections):
            found.sort(key=lambda m: (m.start, -m.end, m.label))
            spans, ents = token_spans(doc, found), token_spans(doc, filter_overlapping(found))
            selected.sort(key=_start)
            starts = [start for start, _ in selected]
            out.append(PredictionWithExamples(ents, spans, [s for _, s in selected], starts))
        return out

    def set_annotations(self, docs: Iterable[Doc], scores: Sequence[Prediction]) -> None:
        """Set the entities and spans, and record in `doc._.llmner_examples` which examples were used, and
        why.

        docs (Iterable[Doc]): The Docs, modified in place.
        scores (Sequence[PredictionWithExamples]): The predictions from `predict`.
        """
        docs = list(docs)
        super().set_annotations(docs, scores)
        for doc, found in zip(docs, scores):
            selections = getattr(found, "selections", [])
            doc._.llmner_examples = [selected.summary() for selected in selections]
            for selected in selections:
                n = len(selected.examples)
                logger.debug(
                    "%s: %d examples for '%s' (%s)", self.name, n, doc[:5], selected.reason
                )

    @property
    def decoding_settings(self) -> ListDecodingSettings:
        """The settings for decoding answers."""
        return ListDecodingSettings(
            list_threshold=self.cfg["list_threshold"],
            constrained=self.cfg["constrained"],
            ordered=self.settings.ordered,
            max_tokens=self.cfg["max_answer_tokens"],
        )

    def initialize(
        self,
        get_examples: Callable[[], Iterable[Example]],
        *,
        nlp: Optional[Language] = None,
        labels: Optional[List[str]] = None,
        pool: Optional[str] = None,
    ) -> None:
        """Create a new adapter, and index the training examples.

        get_examples (Callable[[], Iterable[Example]]): Returns the training examples.
        nlp (Optional[Language]): The pipeline.
        labels (Optional[List[str]]): The labels to find after training. None uses the component's
            labels or, if there are none, the labels of the examples.
        pool (Optional[str]): A folder created by `spacy llmner index`, with further examples.
        RAISES (LLMNERError): If there are no examples or entities, if no window of the examples can
            be used for training, or if a setting does not fit the LLM.
        """
        validate_get_examples(get_examples, "RAIT.initialize")
        examples = [eg for eg in get_examples() if len(eg.predicted)]
        if not examples:
            raise LLMNERError(Errors.E022.format(name=self.name))
        seen = Counter(label for eg in examples for label in self.labels_of(eg))
        if not seen:
            raise LLMNERError(Errors.E023.format(name=self.name))
        self.module = self._optimizer = self._rng = None
        self._adapted = AdapterCache()
        self.cfg["frequencies"] = dict(sorted(seen.items()))
        self.record_corpus(examples, nlp)
        self.set_labels(labels or self.labels or sorted(seen))
        llm = self.adopt_llm()
        check_llm(self.name, self.settings.adapter, llm)
        if self.retrieval.k:
            index = ExampleIndex(self.encoder)
            self.set_index(index if pool is None else index.from_disk(pool))
            self.add_examples((eg.reference for eg in examples), progress=len(examples) > 1000)
        self.start_adapter(llm)
        self.check_corpus(examples)

    def make_prompt_encoder(self, llm: LoadedLLM) -> ConversationEncoder:
        check_llm(self.name, self.settings.adapter, llm)
        return self.settings.prompt_encoder(llm)

    def make_training_batch(self, examples: List[Example]) -> List[Packed]:
        llm, _, prompt_encoder = self.adapted_llm()
        if self._rng is None:
            self._rng = random.Random(random.getrandbits(31))
        budget = self._budget(llm)
        return make_training_batch(
            examples, prompt_encoder, budget, self.selector, self.settings, self.cfg, self._rng
        )

    def text_windows(self, doc: Doc) -> List[Window]:
        llm, _, prompt_encoder = self.adapted_llm()
        return self._budget(llm).windows(doc, prompt_encoder, list(self.cfg["frequencies"]))

    def _passages(
        self, docs: Sequence[Doc], llm: LoadedLLM, prompt_encoder: ConversationEncoder
    ) -> List[Passage]:
        """Split the Docs into passages, select their examples and encode their prompts.

        RETURNS (List[Passage]): The passages of all Docs.
        """
        out: List[Passage] = []
        budget = self._budget(llm)
        doc_ids = [LabelledText(doc.text).hash for doc in docs]
        for number, doc in enumerate(docs):
            labels, windows = self._labels_and_windows(doc, budget, prompt_encoder)
            for window in windows:
                text = passage_text(doc, window.words)
                out.append(Passage(number, window.words, text, labels))
        selections = self.selector.choose(
            self.cfg["use_examples"],
            self.cfg["example_threshold"],
            [LabelledText(p.text, doc_id=doc_ids[p.doc]) for p in out],
            [passage.labels for passage in out],
        )
        for passage, selected in zip(out, selections):
            passage.selected = budget.fit(selected, passage, prompt_encoder)
            shown = passage.selected.examples
            for label in passage.labels:
                passage.prompts[label] = prompt_encoder.encode(passage.text, shown, label)
        return out

    def _labels_and_windows(
        self, doc: Doc, budget: TokenBudget, prompt_encoder: ConversationEncoder
    ) -> Tuple[List[str], List[Window]]:
        """RETURNS (Tuple[List[str], List[Window]]): The requested labels of a Doc, and its windows."""
        if doc._.llmner_labels is None:
            if not self.labels:
                raise DocumentError(Errors.E037.format(name=self.name))
            return list(self.labels), budget.windows(doc, prompt_encoder, self.labels)
        try:
            labels = doc_labels(self.name, doc) or []
            self.settings.check_labels(self.name, labels)
            return labels, budget.windows(doc, prompt_encoder, labels) if labels else []
        except LLMNERError as e:
            raise DocumentError(str(e)) from e

    def _budget(self, llm: LoadedLLM) -> TokenBudget:
        context, window, answer = (
            self.cfg[size] for size in ("context", "window", "max_answer_tokens")
        )
        return TokenBudget(self.name, context, llm.max_length, window, answer)

    def _request(
        self, prompt_encoder: ConversationEncoder, passage: Passage, text: str, budget: TokenBudget
    ) -> Request:
        prompts = passage.prompts
        left = budget.context - max(map(len, prompts.values()))
        settings = self.decoding_settings
        settings = replace(settings, max_tokens=min(settings.max_tokens, left))
        return ask_types(prompt_encoder, prompts, text, passage.bounds, settings)


# Register it on import, since a component that is unpickled in another process needs it as well.
if not Doc.has_extension("llmner_examples"):
    Doc.set_extension("llmner_examples", default=None)


def _start(item: Tuple[int, SelectedExamples]) -> int:
    return item[0]
