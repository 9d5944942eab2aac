"""ExamplePipe: annotated examples that are kept, found again and saved with a component."""

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
from ..retrieval.encoder import Encoder
from ..retrieval.index import ExampleIndex, incomplete_pool
from ..retrieval.strategies import Strategy
from .example_selection import ExampleSelector, PredictionWithExamples
from .example_threshold import best_threshold, texts_to_measure
from .prompts import labelled_passages

POOL = "pool"
# Texts that are read at once, as by nlp.pipe.
CALIBRATION_BATCH = 128


class ExamplePipe(AdapterPipe):
    """Base class: an AdapterPipe that has an index of examples, and chooses from it.

    index (ExampleIndex): The examples.
    selector (ExampleSelector): Chooses those that stand in front of a text.
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
        """See LLMNERPipe, and make_ra_it_ner_pipe for encoder and retrieval."""
        super().__init__(nlp, llm, model, name, scorer=scorer, **cfg)
        self.encoder = encoder
        self.retrieval = retrieval
        self.set_index(ExampleIndex(encoder))

    def set_index(self, index: ExampleIndex) -> None:
        """Choose from other examples from now on.

        index (ExampleIndex): Made by the component's own encoder.
        """
        self.index = index
        self.selector = ExampleSelector(index, self.retrieval, self.settings.label_words)

    def add_examples(self, docs: Iterable[Doc], *, progress: bool = False) -> int:
        """Add annotated Docs to the examples that can be put in front of a text. Long Docs make several;
        what is not annotated, or in part only, makes none.

        progress (bool): Show a progress bar, if standard error is a terminal.
        RETURNS (int): How many examples were new.
        RAISES (LLMNERError): If one is no Doc.
        """
        tokenizer = self.shared_llm().tokenizer
        window, key = self.cfg["window"], self.cfg["train_spans"]
        known = (self._checked(doc) for doc in docs)
        examples = (x for doc in known for x in labelled_passages(doc, tokenizer, window, key))
        return self.index.add(examples, progress=progress)

    def _checked(self, doc: Doc) -> Doc:
        if not isinstance(doc, Doc):
            given, kind = repr(doc)[:60], type(doc).__name__
            raise LLMNERError(Errors.E049.format(name=self.name, given=given, kind=kind))
        return doc

    def calibrate(self, examples: Iterable[Example]) -> float:
        """Find out from annotated Docs how similar examples must be to help, and set
        `example_threshold` to it.

        examples (Iterable[Example]): Held out from training. Those that are not annotated don't count.
        RETURNS (float): The cosine from which on texts are read better with examples than without; 1
            if examples never help.
        RAISES (LLMNERError): If no text has an entity, or there are no examples to show.
        """
        examples = list(examples)
        validate_examples(examples, "RAIT.calibrate")
        known = texts_to_measure(self.name, examples, self.cfg["train_spans"])
        if not len(self.index) or not self.retrieval.k:
            counts = {"n": len(self.index), "k": self.retrieval.k}
            raise LLMNERError(Errors.E046.format(name=self.name, **counts))
        without, behind = (self._predict_all(known, policy) for policy in ("never", "always"))
        threshold = best_threshold(known, without, behind, self.cfg["train_spans"])
        self.cfg["example_threshold"] = threshold
        return threshold

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

    def to_bytes(self, *, exclude: Iterable[str] = ()) -> bytes:
        """RETURNS (bytes): Settings, adapter and examples; never the LLM's or the encoder's weights."""
        pipe = super().to_bytes(exclude=exclude)
        return srsly.msgpack_dumps({"pipe": pipe, POOL: self.index.to_bytes()})

    def from_bytes(self, bytes_data: bytes, *, exclude: Iterable[str] = ()) -> "ExamplePipe":
        """Load what `to_bytes` gave. RETURNS (ExamplePipe): The component itself."""
        state = srsly.msgpack_loads(bytes_data)
        super().from_bytes(state["pipe"], exclude=exclude)
        try:
            self.set_index(ExampleIndex(self.encoder).from_bytes(state[POOL]))
        except LLMNERError as e:
            raise incomplete_pool("The given bytes", e) from e
        return self

    def to_disk(self, path: Any, *, exclude: Iterable[str] = ()) -> None:
        """Write settings, adapter and examples to a folder."""
        super().to_disk(path, exclude=exclude)
        self.index.to_disk(Path(path) / POOL)

    def from_disk(self, path: Any, *, exclude: Iterable[str] = ()) -> "ExamplePipe":
        """Load a folder. RETURNS (ExamplePipe): The component itself."""
        super().from_disk(path, exclude=exclude)
        try:
            self.set_index(ExampleIndex(self.encoder).from_disk(Path(path) / POOL))
        except LLMNERError as e:
            raise incomplete_pool(Path(path) / POOL, e) from e
        return self
