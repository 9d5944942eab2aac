"""`ra_it_ner`: open entity recognition by retrieval-augmented instruction tuning (RA-IT,
arXiv 2406.17305)."""

import logging
import random
from collections import Counter
from dataclasses import replace
from typing import Any, Callable, Iterable, List, Optional, Sequence, Tuple, Union

from spacy.language import Language
from spacy.tokens import Doc
from spacy.training import Example, validate_get_examples
from thinc.api import Model

from ..decoding.engine import DecodingEngine, Request
from ..errors import DocumentError, Errors, LLMNERError
from ..llm.loading import LoadedLLM
from ..llm.packing import Packed
from ..llm.registry import LLM
from ..pipeline.adapter_pipe import AdapterCache, check_llm
from ..pipeline.base import FACTORY_META
from ..pipeline.gold import gold_mentions
from ..pipeline.labels import check_labels, doc_labels
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
    """Build a `ra_it_ner`; nothing is loaded.

    llm (Union[str, LLM]): The name of the shared LLM, or a handle on it (`@misc = "spacy_llmner.LLM.v1"`).
    model (Model): Conversation and adapter (`spacy_llmner.RAIT.v1`).
    encoder (Encoder): Encodes texts for retrieval (`spacy_llmner.SentenceEncoder.v1`, or
        `spacy_llmner.LLMEncoder.v1`).
    retrieval (Strategy): How examples are retrieved (`spacy_llmner.Retrieval.v1`). With k = 0 there
        are none, and training is plain instruction tuning.
    labels (List[str]): What is asked for; `set_labels` changes it at any time, and
        `doc._.llmner_labels` for one Doc. Training sets it, if it is empty.
    spans_key (str): Key of doc.spans for all spans found, with `attrs["scores"]`.
    overwrite (bool): Replace entities that are already on the Doc.
    use_examples (str): When examples are put in front of a text: "always", "never", or "auto". See
        `context.Chooser`.
    example_threshold (Optional[float]): With "auto", the cosine that an example has to reach;
        `calibrate` sets it. None goes by the published rule.
    list_threshold (float): Entities of a type are listed if it is more likely than this that there
        are any. Lower finds more.
    constrained (bool): Answers can only be JSON lists of runs of words of the text. False lets the
        LLM write freely, and takes what can be read of it.
    threshold (float): Entities with a lower score are dropped.
    context (int): Tokens of a conversation at most (fewer if the LLM can't read so many). For lack
        of room examples are left out first, then the text is cut.
    window (int): Tokens of text that are asked about at once. Longer texts are cut between
        sentences.
    max_answer_tokens (int): Tokens of an answer at most.
    max_batch_tokens (int): Tokens that are kept in memory at once.
    random_k (bool): While training, take 0 to k examples in any order; else k, the most similar
        first, as published.
    negative_rate (float): For each type a text has, how likely one that it has not is asked for in
        training.
    least_negatives (int): At least so many of those are asked for in training.
    train_spans (Optional[str]): Learn from these doc.spans, which may overlap, instead of doc.ents.
    scorer (Optional[Callable]): The scoring method.
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
    """The LLM, with an adapter of its own, is asked for each type in turn, behind similar texts whose
    entities are known. Types are words: others can be asked for at any time."""

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
        """
        settings: Those of make_ra_it_ner_pipe; what is not given has the default of `DEFAULT_CONFIG`.
        RAISES (LLMNERError): If a setting is unknown, or its value is not valid.
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
        self.set_labels(labels)

    def set_labels(self, labels: Iterable[str]) -> None:
        """Say what to ask for from now on. Any words do, also such that were never trained on.

        labels (Iterable[str]): The labels; each counts once.
        RAISES (LLMNERError): If they are no words, or two of them go by the same word.
        """
        kept = check_labels(self.name, labels)
        self.settings.check_labels(self.name, kept)
        for label in kept:
            self.vocab.strings.add(label)
        self.cfg["labels"] = kept

    def add_label(self, label: str) -> int:
        """Ask for one more label. RETURNS (int): 1 if it is new, else 0."""
        before = len(self.labels)
        self.set_labels([*self.labels, label])
        return len(self.labels) - before

    def predict(self, docs: Iterable[Doc]) -> List[PredictionWithExamples]:
        """Find entities, without changing the Docs.

        docs (Iterable[Doc]): The Docs.
        RETURNS (List[PredictionWithExamples]): For each Doc.
        RAISES (LLMNERError): If there is nothing to ask for, the LLM is not the one trained on, or a
            setting in `cfg` makes no sense.
        """
        # Settings may be changed at any time.
        check_settings(self.name, max_batch_tokens=self.max_batch_tokens, **self.cfg)
        docs = list(docs)
        texts = [doc.text for doc in docs]
        llm, view, prompt_encoder = self.adapted_llm()
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
                "%s: %d of %d strings have no place in the text", self.name, n_lost, n_strings
            )
        out = []
        for doc, found, around in zip(docs, mentions, selections):
            found.sort(key=lambda m: (m.start, -m.end, m.label))
            spans, ents = token_spans(doc, found), token_spans(doc, filter_overlapping(found))
            around.sort(key=_start)
            starts = [start for start, _ in around]
            out.append(PredictionWithExamples(ents, spans, [c for _, c in around], starts))
        return out

    def set_annotations(self, docs: Iterable[Doc], scores: Sequence[Prediction]) -> None:
        """Write what was found, and to `doc._.llmner_examples` why which examples were used.

        docs (Iterable[Doc]): The Docs, modified in place.
        scores (Sequence[PredictionWithExamples]): From `predict`.
        """
        docs = list(docs)
        super().set_annotations(docs, scores)
        for doc, found in zip(docs, scores):
            selections = getattr(found, "selections", [])
            doc._.llmner_examples = [c.summary() for c in selections]
            for c in selections:
                logger.debug(
                    "%s: %d examples for '%s' (%s)", self.name, len(c.examples), doc[:5], c.reason
                )

    @property
    def decoding_settings(self) -> ListDecodingSettings:
        """RETURNS (ListDecodingSettings): How answers are decoded."""
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
        """Make a new adapter, and index the training examples.

        get_examples (Callable[[], Iterable[Example]]): Gives the training examples.
        nlp (Optional[Language]): The pipeline.
        labels (Optional[List[str]]): What is asked for after training; None takes the labels of the
            component, or else those of the examples.
        pool (Optional[str]): Folder of `spacy llmner index` with further examples.
        RAISES (LLMNERError): Without examples or entities, if nothing of the examples can be learnt, or if
            a setting does not fit the LLM.
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
        self.set_labels(labels or self.labels or sorted(seen))
        llm = self.adopt_llm()
        check_llm(self.name, self.settings.adapter, llm)
        if self.retrieval.k:
            index = ExampleIndex(self.encoder)
            self.set_index(index if pool is None else index.from_disk(pool))
            self.add_examples((eg.reference for eg in examples), progress=len(examples) > 1000)
        self.start_adapter(llm)
        self.check_corpus(examples)

    def labels_of(self, eg: Example) -> List[str]:
        return [label for _, _, label in gold_mentions(eg, self.cfg["train_spans"])[0]]

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
        """RETURNS (List[Passage]): All that is asked about, with examples in front."""
        out: List[Passage] = []
        budget = self._budget(llm)
        doc_ids = [LabelledText(doc.text).hash for doc in docs]
        for number, doc in enumerate(docs):
            labels, windows = self._asked(doc, budget, prompt_encoder)
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

    def _asked(
        self, doc: Doc, budget: TokenBudget, prompt_encoder: ConversationEncoder
    ) -> Tuple[List[str], List[Window]]:
        """RETURNS (Tuple[List[str], List[Window]]): Labels of a Doc, and where they are looked for."""
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


# Not by the component: one that is unpickled in another process needs it too.
if not Doc.has_extension("llmner_examples"):
    Doc.set_extension("llmner_examples", default=None)


def _start(item: Tuple[int, SelectedExamples]) -> int:
    return item[0]
