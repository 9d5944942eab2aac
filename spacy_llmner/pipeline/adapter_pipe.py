"""AdapterPipe: base class of the components that train an adapter on the LLM and prompt it."""

import math
from dataclasses import asdict
from threading import RLock
from typing import Any, Dict, Iterable, List, NamedTuple, Optional, Tuple
from weakref import WeakKeyDictionary

import torch
from spacy.tokens import Doc
from spacy.training import Example, validate_examples
from thinc.api import Optimizer

from ..errors import Errors, LLMNERError, check_values, is_at_least, wrong
from ..llm.loading import LoadedLLM
from ..llm.lora import Adapter, AdapterSettings, new_adapter
from ..llm.packing import Packed, target_logits
from .base import LLMNERPipe
from .gold import gold_mentions, warn_about_white_space
from .parallel import total
from .torch_pipe import isolated_seed
from .training import batches_by_tokens, cross_entropy, training_windows, warn_about_skipped
from .windows import Window

# Maximum number of tokens in a training pass on a CPU. Larger passes need more memory and save no time.
CPU_TRAINING_TOKENS = 512


class AdaptedLLM(NamedTuple):
    """The shared LLM with a component's adapter.

    llm (LoadedLLM): The shared LLM.
    view (nn.Module): A view of the LLM's decoder that includes the adapter.
    prompt_encoder (Any): The component's prompt encoder for this LLM.
    """

    llm: LoadedLLM
    view: Any
    prompt_encoder: Any


class AdapterCache:
    """Caches the view and the prompt encoder for each LLM, as long as the LLM is in memory. The cache
    doesn't keep `unload` from freeing the LLM's weights. A copy of a component starts with an empty cache.
    """

    def __init__(self) -> None:
        self.by_llm: WeakKeyDictionary[LoadedLLM, Tuple[Any, Any]] = WeakKeyDictionary()
        self.lock = RLock()

    def __reduce__(self):
        return AdapterCache, ()


class AdapterPipe(LLMNERPipe):
    """Base class: trains an adapter on the shared LLM with packed texts.

    A subclass implements `make_training_batch`, `text_windows`, `labels_of` and
    `make_prompt_encoder`. Its settings (`model.attrs["settings"]`) have an attribute `adapter` with the
    AdapterSettings, and a method `trained_with` that lists the settings that the adapter depends on.
    Its `cfg` has the settings "shapes" and "train_spans".
    """

    max_batch_tokens: int

    def __init__(self, *args: Any, **cfg: Any) -> None:
        """Create the component. See `LLMNERPipe` for the arguments."""
        super().__init__(*args, **cfg)
        self._adapted = AdapterCache()

    @property
    def settings(self) -> Any:
        """The settings of the prompts and the adapter."""
        return self.model.attrs["settings"]

    def make_training_batch(self, examples: List[Example]) -> List[Packed]:
        """Create the training data for a batch of examples.

        RETURNS (List[Packed]): The packed sequences of each text.
        """
        raise NotImplementedError

    def text_windows(self, doc: Doc) -> List[Window]:
        """RETURNS (List[Window]): The windows of a Doc for training."""
        raise NotImplementedError

    def check_corpus(self, examples: Iterable[Example]) -> None:
        """Warn about windows of the training data that can't be used for training.

        examples (Iterable[Example]): The training data.
        RAISES (LLMNERError): If no window can be used.
        """
        examples = list(examples)
        references = [eg.reference for eg in examples]
        warn_about_white_space(self.name, references, self.cfg["train_spans"])
        parts = (
            part
            for eg in examples
            for part in training_windows(
                eg.predicted,
                self.text_windows(eg.predicted),
                gold_mentions(eg, self.cfg["train_spans"]),
            )
        )
        warn_about_skipped(self.name, parts)

    def make_prompt_encoder(self, llm: LoadedLLM) -> Any:
        """RETURNS (Any): The component's prompt encoder for an LLM."""
        raise NotImplementedError

    def labels_of(self, eg: Example) -> List[str]:
        return [label for _, _, label in gold_mentions(eg, self.cfg["train_spans"])[0]]

    def check_cfg(self) -> None:
        super().check_cfg()
        shapes = self.cfg["shapes"]
        if not isinstance(shapes, dict) or not all(map(_is_shape, shapes.values())):
            raise wrong("shapes", self.name, shapes, "the shapes of the adapter's tensors by name")

    def build(self) -> Adapter:
        return Adapter(self.cfg["shapes"])

    def update(
        self,
        examples: Iterable[Example],
        *,
        drop: float = 0.0,
        sgd: Optional[Optimizer] = None,
        losses: Optional[Dict[str, float]] = None,
    ) -> Dict[str, float]:
        """Train on a batch of examples.

        examples (Iterable[Example]): The batch.
        drop (float): Not used: LoRA on a few texts needs no dropout.
        sgd (Optional[Optimizer]): If given, update the weights after the batch.
        losses (Optional[Dict[str, float]]): The loss per target token is added under the component's
            name.
        RETURNS (Dict[str, float]): The losses.
        RAISES (LLMNERError): If the component is not initialized, or the loss is NaN or infinite.
        """
        losses = {} if losses is None else losses
        losses.setdefault(self.name, 0.0)
        examples = list(examples)
        validate_examples(examples, f"{type(self).__name__}.update")
        if self.module is None:
            raise self.not_trained()
        llm, view, _ = self.adapted_llm()
        texts = self.make_training_batch(examples)
        weight = total(sum(float(packed.weights.sum()) for packed in texts))
        max_tokens = self.max_batch_tokens
        if llm.device.type == "cpu":
            max_tokens = min(max_tokens, CPU_TRAINING_TOKENS)
        for batch in batches_by_tokens(texts, max_tokens):
            if not any(len(packed.rows) for packed in batch):
                continue
            scores = target_logits(llm, view, batch)
            loss, d_scores = self.get_loss(batch, scores)
            if not math.isfinite(loss):
                raise LLMNERError(Errors.E044.format(name=self.name, loss=loss))
            scores.backward(d_scores / weight)
            losses[self.name] += loss / weight
        if sgd is not None:
            self.finish_update(sgd)
        return losses

    def get_loss(self, batch: Iterable[Packed], scores: torch.Tensor) -> Tuple[float, torch.Tensor]:
        """Compute the loss of some packed texts and the gradient of their logits.

        batch (Iterable[Packed]): The packed texts. These are not Examples, since an Example can have
            several windows.
        scores (Tensor): The logits, shape (targets, vocabulary).
        RETURNS (Tuple[float, Tensor]): The summed loss, and its gradient with the shape of `scores`.
        """
        return cross_entropy(batch, scores)

    def start_adapter(self, llm: LoadedLLM) -> None:
        """Create a new adapter, which doesn't change the LLM's outputs before training."""
        with isolated_seed(llm.device):
            self.module, self.cfg["shapes"] = new_adapter(llm, self.settings.adapter)
        self.cfg["trained_with"] = self.trained_with()

    def adapted_llm(self) -> AdaptedLLM:
        """Get the LLM with the adapter. Without an adapter, the LLM's own decoder is used.

        RETURNS (AdaptedLLM): The LLM, its view with the adapter, and the prompt encoder.
        RAISES (LLMNERError): If the LLM is not the one the component was trained on.
        """
        llm = self.shared_llm()
        with self._adapted.lock:
            by_llm = self._adapted.by_llm
            if llm not in by_llm:
                adapter = self.module
                view = (
                    llm.decoder if adapter is None else adapter.attach(llm, self.settings.adapter)
                )
                by_llm[llm] = view, self.make_prompt_encoder(llm)
            return AdaptedLLM(llm, *by_llm[llm])

    def not_trained(self) -> LLMNERError:
        """RETURNS (LLMNERError): The error for a component that was never initialized."""
        return LLMNERError((Errors.E024 if self.labels else Errors.E020).format(name=self.name))

    def trained_with(self) -> Dict[str, Any]:
        return {**asdict(self.settings.adapter), **self.settings.trained_with(self.labels)}

    def _restore(self, cfg: Dict[str, Any], tensors: bytes) -> None:
        super()._restore(cfg, tensors)
        self._adapted = AdapterCache()


def _is_shape(value: Any) -> bool:
    return isinstance(value, list) and all(is_at_least(1, size) for size in value)


def make_adapter_settings(
    name: str, rank: int, alpha: int, first_layer: Optional[int]
) -> AdapterSettings:
    """Create the adapter settings of a component's architecture.

    RETURNS (AdapterSettings): The settings.
    RAISES (LLMNERError): If a value is not valid.
    """
    settings = {"rank": rank, "alpha": alpha, "first_layer": first_layer or 0}
    check_values(name, settings, least={"rank": 0, "alpha": 1, "first_layer": 0})
    return AdapterSettings(rank, alpha, first_layer)


def qualified(block: str, settings: Any) -> Dict[str, Any]:
    """RETURNS (Dict[str, Any]): The settings in a block of the config, by their full names
    ("block.setting").
    """
    return {f"{block}.{setting}": value for setting, value in asdict(settings).items()}


def check_llm(name: str, adapter: AdapterSettings, llm: LoadedLLM) -> None:
    """Check that an LLM can be used with an adapter.

    RAISES (LLMNERError): If the LLM has no end token, has fewer layers than the adapter needs, or is
        not in float32 although copies of its weights are trained.
    """
    if not llm.tokenizer.end:
        raise LLMNERError(Errors.E035.format(name=llm.spec.name))
    if not adapter.rank and llm.model.dtype != torch.float32:
        must = (
            'above 0, or the LLM\'s `dtype` "float32": copies of its weights are trained in float32'
        )
        raise wrong("rank", name, adapter.rank, must)
    first = adapter.first(llm)
    if first >= llm.n_layers:
        must = f"below {llm.n_layers}, the number of layers of '{llm.spec.name}'"
        raise wrong("first_layer", name, first, must)
