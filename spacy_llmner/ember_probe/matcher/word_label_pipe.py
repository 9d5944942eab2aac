"""WordLabelPipe: base class of `ember_probe` that finds labels in words."""

from dataclasses import replace
from threading import Lock
from typing import Dict, Iterable, Iterator, List, Optional, Sequence, Tuple

from spacy.tokens import Doc
from spacy.training import Example

from ...errors import Errors, LLMNERError, wrong
from ...llm.loading import LoadedLLM
from ...pipeline.base import LLMNERPipe
from ...pipeline.labels import check_labels, doc_labels
from .. import platt_scaling
from ..features.batch import GoldSpans, surface
from ..features.words import WordFeatures, WordReader
from ..predictor import Predictor
from ..probes.base import Dims
from ..probes.match import Label
from .answers import LabelJudge
from .fitting import fine_tune
from .labels import LabelReader

_BUILDING = Lock()


class WordLabelPipe(LLMNERPipe):
    """Base class of `ember_probe`. With EmberMatch, its labels are words, which can change at any time."""

    # Reads the labels' words; None for the other models.
    label_reader: Optional[LabelReader] = None
    max_batch_tokens: int

    @property
    def word_reader(self) -> WordReader:
        """RETURNS (WordReader): Reads what the probe needs from the LLM."""
        raise NotImplementedError

    @property
    def dims(self) -> Dims:
        """RETURNS (Dims): Sizes of the LLM that the probe was built for, and the number of labels."""
        raise NotImplementedError

    def set_labels(self, labels: Iterable[str]) -> None:
        """Set the labels to find: any words. Possible at any time, but only with EmberMatch.

        Labels that the component has already keep what they learned in `fit` or in training.

        labels (Iterable[str]): The labels. Duplicates are ignored.
        RAISES (LLMNERError): If a label is not a word, or if the model is not EmberMatch.
        """
        if self.label_reader is None:
            raise LLMNERError(Errors.E149.format(name=self.name, model=self.model.name))
        checked = self._check_labels(labels)
        if self.module is not None:
            self.module.set_labels(self._read_labels(checked))
            self._optimizer = None
        for label in checked:
            self.vocab.strings.add(label)
        self.cfg["labels"] = list(checked)

    def add_label(self, label: str) -> int:
        """Add a label. With EmberMatch, this is possible at any time, otherwise only before training.

        label (str): The label.
        RETURNS (int): 1 if the label is new, else 0.
        RAISES (LLMNERError): If the component is already trained and its model is not EmberMatch.
        """
        if self.label_reader is None or label in self.labels:
            return super().add_label(label)
        self.set_labels([*self.labels, label])
        return 1

    def by_labels(
        self, predictor: Predictor, docs: Sequence[Doc], indices: Sequence[int]
    ) -> Iterator[Tuple[Predictor, List[int]]]:
        """Group Docs by their labels: those in `doc._.llmner_labels`, or else those of the component.

        predictor (Predictor): The predictor with the component's labels.
        docs (Sequence[Doc]): The Docs.
        indices (Sequence[int]): The indices of the Docs to group.
        YIELDS (Tuple[Predictor, List[int]]): A predictor for each group, and the indices of its Docs. Docs
            without labels are left out.
        """
        if self.label_reader is None:
            yield predictor, list(indices)
            return
        groups: Dict[Tuple[str, ...], List[int]] = {}
        for i in indices:
            labels = doc_labels(self.name, docs[i])
            groups.setdefault(self.labels if labels is None else tuple(labels), []).append(i)
        for wanted, chosen in groups.items():
            if wanted:
                yield self.for_labels(predictor, wanted), chosen

    def for_labels(self, predictor: Predictor, labels: Sequence[str]) -> Predictor:
        """Get a predictor that finds other labels. The component's labels stay as they are.

        predictor (Predictor): The predictor with the component's labels.
        labels (Sequence[str]): The labels: any words.
        RETURNS (Predictor): The predictor for these labels.
        RAISES (LLMNERError): If a label is not a word, or if the model is not EmberMatch.
        """
        if self.label_reader is None:
            raise LLMNERError(Errors.E149.format(name=self.name, model=self.model.name))
        wanted = self._check_labels(labels)
        if wanted == self.labels:
            return predictor
        probe = self.module.with_labels(self._read_labels(wanted))
        return replace(predictor, probe=probe, labels=wanted, judge=self.judge(wanted))

    def judge(self, labels: Sequence[str]) -> Optional[LabelJudge]:
        """RETURNS (Optional[LabelJudge]): Lets the LLM choose a label; None without `ask_llm`."""
        if self.label_reader is None or not self.label_reader.settings.ask_llm:
            return None
        return self.label_reader.judge(self.shared_llm(), labels, self.max_batch_tokens)

    def _check_labels(self, labels: Iterable[str]) -> Tuple[str, ...]:
        """RETURNS (Tuple[str, ...]): The labels, without duplicates."""
        checked = check_labels(self.name, labels)
        if not checked:
            raise wrong("labels", self.name, checked, "at least one label")
        return tuple(checked)

    def expect_labels(self, labels: Iterable[str]) -> None:
        """Note labels that will be asked for, so that there is no warning about unused words for them.

        labels (Iterable[str]): The labels.
        """
        if self.label_reader is not None:
            self.label_reader.expect(labels)

    def start_from_words(self) -> None:
        """With EmberMatch, create the probe for the labels' words, unless there is one already."""
        if self.module is None and self.label_reader is not None and self.labels:
            with _BUILDING:
                if self.module is None:
                    llm = self.adopt_settings()
                    self.module = self.label_reader.build(llm, self.dims, self.labels)

    def fine_tune(self, examples: Sequence[Example]) -> None:
        """Train the probe on a few sentences, starting from the labels' words. If this is interrupted, the
        component stays as it was.

        examples (Sequence[Example]): The sentences.
        RAISES (LLMNERError): If they have no entities.
        """
        assert self.label_reader is not None
        self.check_trainable()
        if not any(eg.reference.ents for eg in examples):
            raise LLMNERError(Errors.E152.format(name=self.name))
        module, cfg = self.module, dict(self.cfg)
        self.module = self._optimizer = None
        try:
            self.adopt_labels(examples, None)
            llm = self.adopt_settings()
            probe = self.label_reader.build(llm, self.dims, self.labels)
            docs = [eg.predicted for eg in examples]
            gold = [self.gold_spans(eg) for eg in examples]
            fine_tune(probe, self.read_finite(docs), [surface(doc) for doc in docs], gold)
        except BaseException:  # also Ctrl-C
            self.module = module
            self.cfg.update(cfg)
            raise
        self.module = probe

    def check_trainable(self) -> None:
        """RAISES (LLMNERError): If the component finds mentions of any kind, which can't be trained."""
        if self.label_reader is not None and self.label_reader.settings.mentions:
            raise LLMNERError(Errors.E198.format(name=self.name))

    def adopt_settings(self) -> LoadedLLM:
        """RETURNS (LoadedLLM): The LLM that the component is trained on from now on."""
        self.cfg["calibration"] = list(platt_scaling.IDENTITY)
        self.cfg["trained_with"] = self.trained_with()
        return self.adopt_llm()

    def gold_spans(self, eg: Example) -> GoldSpans:
        """RETURNS (GoldSpans): The annotation of an example."""
        raise NotImplementedError

    def read_finite(self, docs: Sequence[Doc]) -> List[WordFeatures]:
        """RETURNS (List[WordFeatures]): The features of the words of some Docs."""
        raise NotImplementedError

    def _read_labels(self, labels: Sequence[str]) -> List[Label]:
        assert self.label_reader is not None
        layers = self.word_reader.layers
        return self.label_reader.read(self.shared_llm(), layers, labels, self.labels)
