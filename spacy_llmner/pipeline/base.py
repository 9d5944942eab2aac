"""LLMNERPipe: base class of the entity components."""

import warnings
import weakref
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, Iterator, List, Optional, Sequence, Tuple, Union

import torch
from spacy.language import Language
from spacy.tokens import Doc
from spacy.training import Example
from spacy.util import minibatch
from thinc.api import Model, noop

from ..errors import (
    DocumentError,
    Errors,
    LLMMismatchError,
    LLMNERError,
    LLMNotFoundError,
    Warnings,
    wrong,
)
from ..llm.loading import LoadedLLM
from ..llm.registry import LLM, as_llm
from ..llm.spec import is_forked
from .extensions import set_extensions, warn_about_taken_names
from .gold import trim_mentions
from .model_card import UsedModel, update_card
from .predictions import Prediction, write_prediction
from .settings import Settings
from .torch_pipe import TorchPipe

# Metadata of the factories.
FACTORY_META: Dict[str, Any] = {
    "assigns": ["doc.ents", "doc.spans", "token.ent_iob", "token.ent_type"],
    "default_score_weights": {
        "ents_f": 1.0,
        "ents_p": 0.0,
        "ents_r": 0.0,
        "ents_per_type": None,
        "ents_ece": None,
    },
}


class LLMNERPipe(TorchPipe):
    """Base class of a pipe that predicts entities and their scores with a shared LLM.

    A Doc that can't be processed doesn't affect the other Docs of its batch. The trained part is
    small, and is saved without the LLM's weights.

    A subclass stores its trained part in `module` and creates it with `build`. It implements
    `predict`, `update`, `get_loss` and `initialize`.

    factory (str): The name of the factory.
    """

    factory: str

    def __init__(
        self,
        nlp: Language,
        llm: Union[str, LLM],
        model: Model,
        name: str,
        *,
        scorer: Optional[Callable],
        **cfg: Any,
    ) -> None:
        """Create the component.

        nlp (Language): The pipeline.
        llm (Union[str, LLM]): A handle on the shared LLM, or its name. It is loaded at first use.
        model (thinc.api.Model): Contains the settings of the trained part.
        name (str): The name of the component instance. Losses are recorded under this name.
        scorer (Optional[Callable]): The scoring method.
        cfg: Settings that are saved with the component, including `spans_key` and `overwrite`.
        """
        self.vocab = nlp.vocab
        self._pipeline = PipelineReference(nlp, nlp.tokenizer)
        self.llm = as_llm(llm)
        self.model = model
        self.name = name
        self.scorer = scorer
        known = {"labels": [], "llm": None, "trained_with": {}, "corpus": None, **cfg}
        self.cfg = Settings(name, known)
        self.module = None
        self._optimizer = None
        self._averages: Dict[Tuple[str, str], torch.Tensor] = {}
        self._has_warned = False

    def __repr__(self) -> str:
        labels = ", ".join(self.labels[:5]) + (", ..." if len(self.labels) > 5 else "")
        state = "not trained" if self.module is None else "trained"
        kind, llm = type(self).__name__, self.llm.spec.name
        return f"{kind}(name={self.name!r}, llm={llm!r}, labels=[{labels}], {state})"

    @property
    def tokenizer(self) -> Callable[[str], Doc]:
        """The present tokenizer of the pipeline that the component was created in."""
        return self._pipeline.tokenizer

    @property
    def labels(self) -> Tuple[str, ...]:
        """The labels that can be found."""
        return tuple(self.cfg["labels"])

    @property
    def label_data(self) -> List[str]:
        """The labels in the format that `spacy init labels` writes and `initialize` reads."""
        return list(self.cfg["labels"])

    def add_label(self, label: str) -> int:
        """Add a label. Only possible before training, since the trained part has one output for each
        label.

        label (str): The label.
        RETURNS (int): 1 if the label is new, else 0.
        RAISES (LLMNERError): If the component is already trained.
        """
        if label in self.cfg["labels"]:
            return 0
        if self.module is not None:
            must = "set before training, since the trained part has one output for each label"
            raise wrong("labels", self.name, label, must)
        self.cfg["labels"].append(label)
        self.vocab.strings.add(label)
        return 1

    def adopt_labels(self, examples: Iterable[Example], labels: Optional[List[str]]) -> None:
        """Set the labels for training: the given ones, or else those of the examples. Labels that were
        added before are kept, as in spaCy's own components.

        examples (Iterable[Example]): The training examples.
        labels (Optional[List[str]]): The labels. None uses those of the examples.
        RAISES (LLMNERError): If there are no labels, or if the examples have other labels.
        """
        seen = sorted({label for eg in examples for label in self.labels_of(eg)})
        if labels is None and not self.labels and not seen:
            raise LLMNERError(Errors.E023.format(name=self.name))
        for label in seen if labels is None else labels:
            self.add_label(label)
        if not self.labels:
            raise LLMNERError(Errors.E020.format(name=self.name))
        unknown = [label for label in seen if label not in self.labels]
        if unknown:
            raise self.unknown_labels(unknown)

    def labels_of(self, eg: Example) -> List[str]:
        """RETURNS (List[str]): The labels of the entities in a training example."""
        return [ent.label_ for ent in trim_mentions(eg.reference).ents]

    def unknown_labels(self, unknown: Sequence[str]) -> LLMNERError:
        """RETURNS (LLMNERError): The error for labels in the data that the component doesn't have."""
        known = ", ".join(self.labels)
        message = Errors.E021.format(unknown=", ".join(unknown), name=self.name, known=known)
        return LLMNERError(message)

    def record_corpus(self, examples: Sequence[Example], nlp: Optional[Language] = None) -> None:
        """Record the size of the training data for the model card. If the corpus is a stream
        (`max_epochs = -1`), its size is not known.

        examples (Sequence[Example]): The training examples.
        nlp (Optional[Language]): The pipeline that is trained.
        """
        is_stream = nlp is not None and nlp.config["training"].get("max_epochs") == -1
        self.cfg["corpus"] = (
            None
            if is_stream
            else {
                "texts": len(examples),
                "tokens": sum(len(eg.reference) for eg in examples),
                "entities": sum(len(self.labels_of(eg)) for eg in examples),
            }
        )

    def models_used(self) -> List[UsedModel]:
        """RETURNS (List[UsedModel]): The models that are not saved with the component."""
        spec, trained = self.llm.spec, self.cfg["llm"] or {}
        if not spec.name:
            return []
        return [UsedModel("LLM", spec.name, spec.revision, trained.get("fingerprint"))]

    def to_disk(self, path: Any, *, exclude: Iterable[str] = ()) -> None:
        """Save the component, and write what it is into the meta.json of its pipeline."""
        super().to_disk(path, exclude=exclude)
        update_card(Path(path), self.factory, self.models_used(), self.cfg["corpus"])

    def adopt_llm(self) -> LoadedLLM:
        """Load the LLM and record which weights the component is trained on.

        RETURNS (LoadedLLM): The shared LLM.
        RAISES (LLMNERError): If the LLM can't be found.
        """
        self.cfg["llm"] = None
        llm = self.shared_llm()
        self.cfg["llm"] = {
            "name": self.llm.spec.name,  # other components can refer to the same LLM by another name
            "fingerprint": llm.fingerprint,
            "dtype": str(llm.model.dtype).removeprefix("torch."),
            "quantization": llm.quantization,
            "n_layers": llm.n_layers,
            "width": llm.width,
            "n_heads": llm.n_heads,
        }
        return llm

    def shared_llm(self) -> LoadedLLM:
        """Load the LLM and check that it is the one the component was trained on.

        RETURNS (LoadedLLM): The shared LLM.
        RAISES (LLMNERError): If it can't be found, or is not the one the component was trained on.
        """
        if not self.llm.spec.name:
            raise LLMNotFoundError(Errors.E001.format(component=self.name))
        self.check_cfg()
        llm = self.llm.load()
        trained = self.cfg["llm"]
        if not trained:
            return llm
        self._compare_quantization(trained, llm)
        if trained["fingerprint"] == llm.fingerprint:
            return llm
        if not llm.has_fingerprint(trained["fingerprint"], self.name):
            raise LLMMismatchError(
                Errors.E008.format(
                    name=self.name,
                    trained=f"'{trained['name']}'",
                    trained_print=trained["fingerprint"],
                    given=f"'{self.llm.spec.name}'",
                    given_print=llm.fingerprint,
                )
            )
        # If the pipeline is saved again, the current fingerprint is saved.
        self.cfg["llm"] = {**trained, "fingerprint": llm.fingerprint}
        return llm

    def _compare_quantization(self, trained: Dict[str, Any], llm: LoadedLLM) -> None:
        """Warn once if the LLM is quantized in another way than in training, with the same fingerprint."""
        # Earlier versions saved no quantization.
        if self._has_warned or trained.get("quantization", llm.quantization) == llm.quantization:
            return
        self._has_warned = True
        dtype = str(llm.model.dtype).removeprefix("torch.")
        before = _precision(trained.get("dtype"), trained["quantization"])
        now = _precision(dtype, llm.quantization)
        warnings.warn(Warnings.W022.format(name=self.name, trained=before, given=now), stacklevel=2)

    def pipe(self, stream: Iterable[Doc], *, batch_size: int = 128) -> Iterator[Doc]:
        """Annotate a stream of Docs.

        If a batch fails, it is halved until the failing Doc is found, and only this Doc is passed to
        the error handler. Running out of memory is handled in the same way.

        stream (Iterable[Doc]): The Docs.
        batch_size (int): The number of Docs in a batch.
        YIELDS (Doc): The Docs in order, without those that failed.
        RAISES (LLMNERError): If something is wrong with the setup and not with a single Doc. Such errors
            are not passed to the error handler.
        """
        if is_forked():
            # torch's thread pool does not survive a fork: a second thread would wait forever.
            torch.set_num_threads(1)
        for docs in minibatch(stream, size=batch_size):
            yield from self._annotate(list(docs))

    def _annotate(self, docs: List[Doc]) -> List[Doc]:
        try:
            self.set_annotations(docs, self.predict(docs))
            return docs
        except Exception as e:
            if isinstance(e, LLMNERError) and not isinstance(e, DocumentError):
                raise
            if len(docs) == 1:
                self.get_error_handler()(self.name, self, docs, e)
                return []
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        half = len(docs) // 2
        return self._annotate(docs[:half]) + self._annotate(docs[half:])

    def set_annotations(self, docs: Iterable[Doc], scores: Sequence[Prediction]) -> None:
        """Set the entities and spans: all spans with their scores in doc.spans, the best ones in
        doc.ents.

        docs (Iterable[Doc]): The Docs, modified in place.
        scores (Sequence[Prediction]): The predictions from `predict`.
        """
        warn_about_taken_names()
        for doc, found in zip(docs, scores):
            write_prediction(doc, found, self.cfg["spans_key"], self.cfg["overwrite"], self.name)


def _precision(dtype: Any, quantization: Optional[str]) -> str:
    return f"in {dtype} without quantization" if quantization is None else f"in {quantization}"


class PipelineReference:
    """A weak reference to a pipeline. A component doesn't store the pipeline itself, since it would keep it
    alive after it was sourced into another one.

    nlp (Optional[Language]): The pipeline.
    tokenizer (Callable[[str], Doc]): Its tokenizer, which is used when the pipeline no longer exists.
    """

    def __init__(self, nlp: Optional[Language], tokenizer: Callable[[str], Doc]) -> None:
        self._nlp: Callable[[], Optional[Language]] = weakref.ref(nlp) if nlp else _no_pipeline
        self._tokenizer = tokenizer

    @property
    def tokenizer(self) -> Callable[[str], Doc]:
        """The present tokenizer of the pipeline, or its last one."""
        nlp = self._nlp()
        if nlp is not None:
            self._tokenizer = nlp.tokenizer
        return self._tokenizer

    def __reduce__(self) -> Tuple[Any, ...]:
        # A copy of a pipeline includes this reference, which then refers to the copy.
        return PipelineReference, (self._nlp(), self.tokenizer)


def _no_pipeline() -> None:
    return None


def settings_model(name: str, settings: Any) -> Model:
    """Wrap settings in a thinc Model that does nothing else.

    The trained part itself is a torch module, which the component creates later: its shapes depend on
    the labels and the LLM, which are not known yet.
    """
    model: Model = noop()
    model.name = name
    model.attrs["settings"] = settings
    return model


# Register them on import, since a component that is unpickled in another process needs them as well.
set_extensions()
