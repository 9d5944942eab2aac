"""ExamplePipe: base class of components that retrieve annotated examples and are saved with them."""

from pathlib import Path
from typing import Any, Callable, Iterable, List, Optional, Sequence, Union

import srsly
from spacy.language import Language
from spacy.tokens import Doc
from spacy.training import Example, validate_examples
from spacy.util import minibatch
from thinc.api import Model

from ..errors import Errors, LLMNERError
from ..llm.registry import LLM
from ..pipeline.adapter_pipe import AdapterPipe
from ..pipeline.model_card import UsedModel, encoder_model
from ..retrieval.encoder import Encoder
from ..retrieval.index import ExampleIndex, incomplete_pool
from ..retrieval.strategies import Strategy
from .example_selection import ExampleSelector, PredictionWithExamples
from .example_threshold import best_threshold, texts_to_measure
from .prompts import labelled_passages

POOL = "pool"
# Texts per call of `predict`, as in nlp.pipe.
CALIBRATION_BATCH = 128


class ExamplePipe(AdapterPipe):
    """Base class: an AdapterPipe with an index of examples.

    index (ExampleIndex): The examples.
    selector (ExampleSelector): Selects the examples that are put before a text.
    """

    def __init__(
        self,
        nlp: Language,
        llm: Union[str, LLM],
        model: Model,
        encoder: Encoder,
        retrieval: Strategy,
        name: str,
        *,
        scorer: Optional[Callable],
        **cfg: Any,
    ) -> None:
        """Create the component. See `LLMNERPipe`, and `make_ra_it_ner_pipe` for `encoder` and
        `retrieval`.
        """
        super().__init__(nlp, llm, model, name, scorer=scorer, **cfg)
        self.encoder = encoder
        self.retrieval = retrieval
        self.set_index(ExampleIndex(encoder))

    def set_index(self, index: ExampleIndex) -> None:
        """Replace the index of examples.

        index (ExampleIndex): The new index. It must have been created with the component's own
            encoder.
        """
        self.index = index
        self.selector = ExampleSelector(index, self.retrieval, self.settings.label_words)

    def add_examples(self, docs: Iterable[Doc], *, progress: bool = False) -> int:
        """Add annotated Docs to the examples. Long Docs are split into several examples. Docs, or parts
        of Docs, that are not completely annotated are left out.

        docs (Iterable[Doc]): The annotated Docs.
        progress (bool): Show a progress bar, if standard error is a terminal.
        RETURNS (int): The number of new examples.
        RAISES (LLMNERError): If one of them is not a Doc.
        """
        tokenizer = self.shared_llm().tokenizer
        window, key = self.cfg["window"], self.cfg["train_spans"]
        checked = (self._check_doc(doc) for doc in docs)
        examples = (x for doc in checked for x in labelled_passages(doc, tokenizer, window, key))
        return self.index.add(examples, progress=progress)

    def _check_doc(self, doc: Doc) -> Doc:
        if not isinstance(doc, Doc):
            given, kind = repr(doc)[:60], type(doc).__name__
            raise LLMNERError(Errors.E049.format(name=self.name, given=given, kind=kind))
        return doc

    def calibrate(self, examples: Iterable[Example]) -> float:
        """Set `example_threshold` to the similarity that examples need to improve predictions on
        held-out texts.

        examples (Iterable[Example]): Examples that were held out from training. Those without
            annotation are ignored.
        RETURNS (float): The example threshold: the lowest cosine similarity at which examples improve
            the predictions. 1 if examples never help.
        RAISES (LLMNERError): See `check_calibration`.
        """
        known = self.check_calibration(examples)
        without, with_examples = (
            self._predict_all(known, policy) for policy in ("never", "always")
        )
        threshold = best_threshold(known, without, with_examples, self.cfg["train_spans"])
        self.cfg["example_threshold"] = threshold
        return threshold

    def check_calibration(self, examples: Iterable[Example]) -> List[Example]:
        """Check that `calibrate` can be called with these examples. The LLM is loaded, but reads nothing.

        examples (Iterable[Example]): Examples that were held out from training.
        RETURNS (List[Example]): Those that are annotated.
        RAISES (LLMNERError): If no text has an entity, there are no examples to show, there are no labels,
            or the LLM can't be loaded.
        """
        examples = list(examples)
        validate_examples(examples, "RAIT.calibrate")
        known = texts_to_measure(self.name, examples, self.cfg["train_spans"])
        if not len(self.index) or not self.retrieval.k:
            counts = {"n": len(self.index), "k": self.retrieval.k}
            raise LLMNERError(Errors.E046.format(name=self.name, **counts))
        if not self.labels and any(eg.predicted._.llmner_labels is None for eg in known):
            raise LLMNERError(Errors.E037.format(name=self.name))
        self.shared_llm()
        return known

    def _predict_all(
        self, examples: Sequence[Example], policy: str
    ) -> List[PredictionWithExamples]:
        before = self.cfg["use_examples"]
        self.cfg["use_examples"] = policy
        try:
            batches = minibatch((eg.predicted for eg in examples), CALIBRATION_BATCH)
            return [found for docs in batches for found in self.predict(docs)]
        finally:
            self.cfg["use_examples"] = before

    def models_used(self) -> List[UsedModel]:
        own = super().models_used()
        encoder = encoder_model(self.encoder)
        if not self.retrieval.k or any(model.name == encoder.name for model in own):
            return own
        return [*own, encoder]

    def to_bytes(self, *, exclude: Iterable[str] = ()) -> bytes:
        """RETURNS (bytes): The settings, the adapter and the examples, without the weights of the LLM
        and the encoder.
        """
        pipe = super().to_bytes(exclude=exclude)
        return srsly.msgpack_dumps({"pipe": pipe, POOL: self.index.to_bytes()})

    def from_bytes(self, bytes_data: bytes, *, exclude: Iterable[str] = ()) -> "ExamplePipe":
        """Load the component from the result of `to_bytes`.

        RETURNS (ExamplePipe): The component itself.
        RAISES (LLMNERError): If the bytes are incomplete or belong to something else.
        """
        with self._restoring("the given bytes"):
            state = srsly.msgpack_loads(bytes_data)
            pipe, pool = state["pipe"], state[POOL]
        super().from_bytes(pipe, exclude=exclude)
        try:
            self.set_index(ExampleIndex(self.encoder).from_bytes(pool))
        except LLMNERError as e:
            raise incomplete_pool("the given bytes", e) from e
        return self

    def to_disk(self, path: Any, *, exclude: Iterable[str] = ()) -> None:
        """Save the settings, the adapter and the examples to a directory."""
        super().to_disk(path, exclude=exclude)
        self.index.to_disk(Path(path) / POOL)

    def from_disk(self, path: Any, *, exclude: Iterable[str] = ()) -> "ExamplePipe":
        """Load the component from a directory.

        RETURNS (ExamplePipe): The component itself.
        RAISES (LLMNERError): If the directory is incomplete or broken.
        """
        super().from_disk(path, exclude=exclude)
        try:
            self.set_index(ExampleIndex(self.encoder).from_disk(Path(path) / POOL))
        except LLMNERError as e:
            raise incomplete_pool(Path(path) / POOL, e) from e
        return self
