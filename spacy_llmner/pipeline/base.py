"""LLMNERPipe: what the entity components share as spaCy pipes."""

import json
import random
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, Iterator, List, Optional, Sequence, Tuple, Union

import srsly
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from spacy.language import Language
from spacy.pipeline import TrainablePipe
from spacy.tokens import Doc
from spacy.training import Example
from spacy.util import ensure_path, minibatch
from thinc.api import Model, Optimizer, noop

from ..errors import DocumentError, Errors, LLMMismatchError, LLMNERError, LLMNotFoundError, wrong
from ..llm.loading import LoadedLLM
from ..llm.registry import LLM, as_llm
from ..llm.spec import is_forked
from .extensions import set_extensions
from .predictions import Prediction, write_prediction
from .settings import Settings

TENSORS = "model.safetensors"

# What every component tells spaCy about itself.
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


class LLMNERPipe(TrainablePipe):
    """Base class: one shared LLM, entities with scores, errors kept to their document, and small
    trained parts that are saved without the LLM's weights.

    A component says what it trains with `module` and `build`, and implements `predict`, `update`,
    `get_loss` and `initialize`.
    """

    # The trained part, a torch.nn.Module; None until there is one.
    module: Any

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
        """
        nlp (Language): The pipeline.
        llm (Union[str, LLM]): Handle on the shared LLM, or its name; nothing is loaded before first use.
        model (thinc.api.Model): Carries the settings of the trained part.
        name (str): Name of the instance; losses are recorded under it.
        scorer (Optional[Callable]): The scoring method.
        cfg: Settings that are saved, with `spans_key` and `overwrite` among them.
        """
        self.vocab = nlp.vocab
        self.llm = as_llm(llm)
        self.model = model
        self.name = name
        self.scorer = scorer
        known = {"labels": [], "llm": None, "trained_with": {}, **cfg}
        self.cfg = Settings(name, known)
        self.module = None
        self._optimizer: Optional[torch.optim.Optimizer] = None
        self._averages: Dict[Tuple[str, str], torch.Tensor] = {}

    def __repr__(self) -> str:
        labels = ", ".join(self.labels[:5]) + (", ..." if len(self.labels) > 5 else "")
        state = "not trained" if self.module is None else "trained"
        kind, llm = type(self).__name__, self.llm.spec.name
        return f"{kind}(name={self.name!r}, llm={llm!r}, labels=[{labels}], {state})"

    @property
    def labels(self) -> Tuple[str, ...]:
        """RETURNS (Tuple[str]): The labels that can be found."""
        return tuple(self.cfg["labels"])

    @property
    def label_data(self) -> List[str]:
        """RETURNS (List[str]): What `spacy init labels` writes and `initialize` reads."""
        return list(self.cfg["labels"])

    def add_label(self, label: str) -> int:
        """Add a label. Only before training: the trained part has one output for each.

        RETURNS (int): 1 if it is new, else 0.
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
        """Take the labels of a training run: those that are given, else those of the examples besides
        those that were added before, as spaCy's own components do.

        RAISES (LLMNERError): Without labels, or if the examples have others than those given.
        """
        seen = sorted({label for eg in examples for label in self.labels_of(eg)})
        if labels is None and not self.labels and not seen:
            raise LLMNERError(Errors.E023.format(name=self.name))
        for label in seen if labels is None else labels:
            self.add_label(label)
        if not self.labels:
            raise LLMNERError(Errors.E020.format(name=self.name))
        strange = [label for label in seen if label not in self.labels]
        if strange:
            raise self.unknown_labels(strange)

    def labels_of(self, eg: Example) -> List[str]:
        """RETURNS (List[str]): The labels in a training example."""
        return [ent.label_ for ent in eg.reference.ents]

    def unknown_labels(self, strange: Sequence[str]) -> LLMNERError:
        """RETURNS (LLMNERError): About labels in the data that the component does not know."""
        known = ", ".join(self.labels)
        message = Errors.E021.format(unknown=", ".join(strange), name=self.name, known=known)
        return LLMNERError(message)

    def adopt_llm(self) -> LoadedLLM:
        """Load the LLM and note which weights the component is trained on.

        RETURNS (LoadedLLM): The shared weights.
        """
        self.cfg["llm"] = None
        llm = self.shared_llm()
        self.cfg["llm"] = {
            "name": self.llm.spec.name,  # another component may call it otherwise
            "fingerprint": llm.fingerprint,
            "n_layers": llm.n_layers,
            "width": llm.width,
            "n_heads": llm.n_heads,
        }
        return llm

    def shared_llm(self) -> LoadedLLM:
        """Get the LLM, and make sure that it is the one the component was trained on.

        RETURNS (LoadedLLM): The shared weights.
        RAISES (LLMNERError): If it isn't there, or is another one.
        """
        if not self.llm.spec.name:
            raise LLMNotFoundError(Errors.E001.format(component=self.name))
        llm = self.llm.load()
        trained = self.cfg["llm"]
        if trained and trained["fingerprint"] != llm.fingerprint:
            raise LLMMismatchError(
                Errors.E008.format(
                    name=self.name,
                    trained=f"'{trained['name']}'",
                    trained_print=trained["fingerprint"],
                    given=f"'{self.llm.spec.name}'",
                    given_print=llm.fingerprint,
                )
            )
        return llm

    def pipe(self, stream: Iterable[Doc], *, batch_size: int = 128) -> Iterator[Doc]:
        """Annotate a stream of Docs. A failing batch is halved down to the failing Doc, and only
        that one goes to the error handler; running out of memory is mended in the same way.

        YIELDS (Doc): The Docs in order, without failed ones.
        RAISES (LLMNERError): If the set-up is at fault, whatever the error handler is.
        """
        if is_forked():
            # torch's thread pool does not survive a fork: a second thread would wait for ever.
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
        """Write what was found: everything with its score to doc.spans, the best to doc.ents.

        docs (Iterable[Doc]): The Docs, modified in place.
        scores (Sequence[Prediction]): From `predict`.
        """
        for doc, found in zip(docs, scores):
            write_prediction(doc, found, self.cfg["spans_key"], self.cfg["overwrite"], self.name)

    def finish_update(self, sgd: Optimizer) -> None:
        """Make one step with the gradients gathered since the last.

        Learning rate, betas, eps, weight decay, clipping and averaging follow thinc's optimizer, so the
        schedule of `[training.optimizer]` holds. The step itself is torch's AdamW, whichever optimizer
        is named there: it needs no CuPy on a GPU.
        sgd (thinc.api.Optimizer): The optimizer of the training loop.
        """
        if self.module is None:
            return
        parameters = [p for p in self.module.parameters() if p.grad is not None]
        if not parameters:
            return
        if self._optimizer is None:
            trained = [p for p in self.module.parameters() if p.requires_grad]
            # Gains and biases are not decayed.
            groups = [{"params": [p for p in trained if p.dim() > 1]}]
            groups.append({"params": [p for p in trained if p.dim() <= 1]})
            self._optimizer = torch.optim.AdamW(groups, lr=sgd.learn_rate, fused=True)
        for k, group in enumerate(self._optimizer.param_groups):
            group["lr"] = sgd.learn_rate
            group["betas"] = (sgd.b1, sgd.b2)
            group["eps"] = sgd.eps
            group["weight_decay"] = sgd.L2 if k == 0 and sgd.L2_is_weight_decay else 0.0
        if sgd.grad_clip:
            torch.nn.utils.clip_grad_norm_(parameters, sgd.grad_clip)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        if sgd.averages is not None:
            self._average(sgd)

    def _average(self, sgd: Optimizer) -> None:
        """Follow thinc's moving average of the weights, kept where the training loop looks."""
        assert self.module is not None
        averages: Any = sgd.averages
        sgd.nr_update[(self.model.id, "")] += 1
        t = sgd.nr_update[(self.model.id, "")]
        decay = min((1 + t) / (10 + t), 0.9999)
        for name, p in self.module.named_parameters():
            key = (self.model.id, name)
            if key not in averages:
                averages[key] = p.detach().clone()
            else:
                averages[key].lerp_(p.detach(), 1 - decay)

    def use_params(self, params: Dict[Tuple[int, str], Any]) -> Iterator[None]:
        """Put averaged weights in place, and at the next step the others back.

        A plain generator, as `Language.use_params` expects: the training loop evaluates and saves
        between the two steps.
        """
        mine = {}
        if self.module is not None and params:
            for name, p in self.module.named_parameters():
                if (self.model.id, name) in params:
                    mine[name] = p.detach().clone()
                    p.data.copy_(params[(self.model.id, name)])
        try:
            yield
        finally:
            for name, p in self.module.named_parameters() if self.module is not None else []:
                if name in mine:
                    p.data.copy_(mine[name])

    def trained_with(self) -> Dict[str, Any]:
        """RETURNS (Dict[str, Any]): The settings of `model` that what is learnt fits, by name."""
        return {}

    def build(self) -> torch.nn.Module:
        """RETURNS (torch.nn.Module): The trained part, for the settings in `cfg`, without weights."""
        raise NotImplementedError

    def to_bytes(self, *, exclude: Iterable[str] = ()) -> bytes:
        """RETURNS (bytes): Settings and trained part; never the LLM's weights."""
        state: Dict[str, Any] = {"cfg": json.dumps(self.cfg)}
        if "vocab" not in exclude:
            state["vocab"] = self.vocab.to_bytes(exclude=exclude)
        return srsly.msgpack_dumps({**state, "tensors": self._tensors()})

    def from_bytes(self, bytes_data: bytes, *, exclude: Iterable[str] = ()) -> "LLMNERPipe":
        """Load what `to_bytes` gave. RETURNS (LLMNERPipe): The component itself.
        RAISES (LLMNERError): If the bytes are of something else."""
        with self._restoring("The given bytes"):
            state = srsly.msgpack_loads(bytes_data)
            cfg, tensors = json.loads(state["cfg"]), state["tensors"]
            if "vocab" not in exclude and "vocab" in state:
                self.vocab.from_bytes(state["vocab"], exclude=exclude)
            self._restore(cfg, tensors)
        return self

    def to_disk(self, path: Any, *, exclude: Iterable[str] = ()) -> None:
        """Write `cfg` and `model.safetensors` to a folder; never the LLM's weights."""
        folder = ensure_path(path)
        folder.mkdir(parents=True, exist_ok=True)
        srsly.write_json(folder / "cfg", self.cfg)
        (folder / TENSORS).write_bytes(self._tensors())

    def from_disk(self, path: Any, *, exclude: Iterable[str] = ()) -> "LLMNERPipe":
        """Load a folder. RETURNS (LLMNERPipe): The component itself.
        RAISES (LLMNERError): If it is incomplete or broken."""
        folder = Path(path)
        with self._restoring(folder):
            self._restore(srsly.read_json(folder / "cfg"), (folder / TENSORS).read_bytes())
        return self

    @contextmanager
    def _restoring(self, path: Any) -> Iterator[None]:
        try:
            yield
        except LLMNERError:
            raise
        except Exception as e:
            reason = f"{type(e).__name__}: {e}"
            raise LLMNERError(Errors.E030.format(path=path, name=self.name, reason=reason)) from e

    def _tensors(self) -> bytes:
        state = {} if self.module is None else self.module.state_dict()
        return save_tensors({k: v.detach().cpu().contiguous() for k, v in state.items()})

    def _restore(self, cfg: Dict[str, Any], tensors: bytes) -> None:
        self.cfg.restore(cfg)
        state = load_tensors(tensors)
        self._optimizer = None
        self.module = None
        if state:
            self._check_model()
            self.module = self.build()
            self.module.load_state_dict(state)
            self.module.eval()
        for label in self.labels:
            self.vocab.strings.add(label)

    def _check_model(self) -> None:
        given = json.loads(json.dumps(self.trained_with()))
        for setting, value in self.cfg.get("trained_with", {}).items():
            if given.get(setting) != value:
                raise LLMNERError(
                    Errors.E039.format(
                        setting=setting, name=self.name, trained=value, given=given.get(setting)
                    )
                )


@contextmanager
def isolated_seed(device: torch.device) -> Iterator[None]:
    """Draw new weights by a seed from `random`, which spaCy seeds, and leave torch's generators alone."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(random.getrandbits(31))
        yield


def settings_model(name: str, settings: Any) -> Model:
    """Put settings into a thinc Model that does nothing.

    The trained part itself is a torch module that the component owns, since its sizes are known only
    when the labels and the LLM are.
    """
    model: Model = noop()
    model.name = name
    model.attrs["settings"] = settings
    return model


# Not by a component: one that is unpickled in another process needs them too.
set_extensions()
