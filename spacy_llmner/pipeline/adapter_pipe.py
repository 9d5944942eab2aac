"""AdapterPipe: what the components share that tune the LLM with an adapter and prompt it."""

import math
from dataclasses import asdict
from threading import RLock
from typing import Any, Dict, Iterable, List, NamedTuple, Optional, Tuple
from weakref import WeakKeyDictionary

import torch
from spacy.tokens import Doc
from spacy.training import Example, validate_examples
from thinc.api import Optimizer

from ..errors import Errors, LLMNERError, check_values, wrong
from ..llm.loading import LoadedLLM
from ..llm.lora import Adapter, AdapterSettings, new_adapter
from ..llm.packing import Packed, target_logits
from .base import LLMNERPipe, isolated_seed
from .gold import gold_mentions
from .training import batches_by_tokens, cross_entropy, training_windows, warn_about_skipped
from .windows import Window

# Tokens of one training pass on a CPU, where more take memory and save nothing.
CPU_TRAINING_TOKENS = 512


class AdaptedLLM(NamedTuple):
    """What is made of the shared LLM at first use.

    view (nn.Module): The LLM's decoder with the adapter in it.
    prompt_encoder (Any): The component's prompts in the LLM's tokens.
    """

    llm: LoadedLLM
    view: Any
    prompt_encoder: Any


class AdapterCache:
    """View and wording, as long as the pool holds the LLM: `unload` frees its weights. A copy of the
    component makes its own."""

    def __init__(self) -> None:
        self.by_llm: WeakKeyDictionary[LoadedLLM, Tuple[Any, Any]] = WeakKeyDictionary()
        self.lock = RLock()

    def __reduce__(self):
        return AdapterCache, ()


class AdapterPipe(LLMNERPipe):
    """Base class: learns packed texts with an adapter of its own on the shared LLM.

    A component says what is learnt with `packed`, and how it speaks with `make_prompt_encoder`. Its settings
    (`model.attrs["settings"]`) hold AdapterSettings as `adapter`, and say with `trained_with` what the
    adapter fits; its `cfg` has "shapes" and "train_spans".
    """

    max_batch_tokens: int

    def __init__(self, *args: Any, **cfg: Any) -> None:
        """See LLMNERPipe."""
        super().__init__(*args, **cfg)
        self._adapted = AdapterCache()

    @property
    def settings(self) -> Any:
        """RETURNS (Any): Wording and adapter."""
        return self.model.attrs["settings"]

    def make_training_batch(self, examples: List[Example]) -> List[Packed]:
        """RETURNS (List[Packed]): What is learnt from some examples, text by text."""
        raise NotImplementedError

    def text_windows(self, doc: Doc) -> List[Window]:
        """RETURNS (List[Window]): What is learnt of a Doc, if all of it is known."""
        raise NotImplementedError

    def check_corpus(self, examples: Iterable[Example]) -> None:
        """Warn about what can't be learnt of the training data.

        RAISES (LLMNERError): If it is all of them."""
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
        """RETURNS (Any): The component's prompts in the tokens of an LLM."""
        raise NotImplementedError

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
        """Learn from a batch of Docs and their entities.

        examples (Iterable[Example]): The batch.
        drop (float): Not used: LoRA on a few texts does without.
        sgd (Optional[Optimizer]): If given, a step is made at once.
        losses (Optional[Dict[str, float]]): The loss per token is added under the component's name.
        RETURNS (Dict[str, float]): The losses.
        """
        losses = {} if losses is None else losses
        losses.setdefault(self.name, 0.0)
        examples = list(examples)
        validate_examples(examples, f"{type(self).__name__}.update")
        if self.module is None:
            raise self.not_trained()
        llm, view, _ = self.adapted_llm()
        texts = self.make_training_batch(examples)
        weight = sum(float(packed.weights.sum()) for packed in texts)
        at_once = self.max_batch_tokens
        if llm.device.type == "cpu":
            at_once = min(at_once, CPU_TRAINING_TOKENS)
        for batch in batches_by_tokens(texts, at_once):
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
        """Find the loss of some packed texts and the gradient of their logits.

        batch (Iterable[Packed]): The texts; not Examples, since one of those may be several texts.
        scores (Tensor): Shape (targets, vocabulary).
        RETURNS (Tuple[float, Tensor]): The summed loss and its gradient.
        """
        return cross_entropy(batch, scores)

    def start_adapter(self, llm: LoadedLLM) -> None:
        """Make a new adapter, which changes nothing yet."""
        with isolated_seed(llm.device):
            self.module, self.cfg["shapes"] = new_adapter(llm, self.settings.adapter)
        self.cfg["trained_with"] = self.trained_with()

    def adapted_llm(self) -> AdaptedLLM:
        """RETURNS (AdaptedLLM): The LLM with the adapter; without one, as it is.
        RAISES (LLMNERError): If the LLM is another one than the component was trained on."""
        llm = self.shared_llm()
        with self._adapted.lock:
            made = self._adapted.by_llm
            if llm not in made:
                adapter = self.module
                view = (
                    llm.decoder if adapter is None else adapter.attach(llm, self.settings.adapter)
                )
                made[llm] = view, self.make_prompt_encoder(llm)
            return AdaptedLLM(llm, *made[llm])

    def not_trained(self) -> LLMNERError:
        """RETURNS (LLMNERError): About a component that was never initialized."""
        return LLMNERError((Errors.E024 if self.labels else Errors.E020).format(name=self.name))

    def trained_with(self) -> Dict[str, Any]:
        return {**asdict(self.settings.adapter), **self.settings.trained_with(self.labels)}

    def _restore(self, cfg: Dict[str, Any], tensors: bytes) -> None:
        super()._restore(cfg, tensors)
        self._adapted = AdapterCache()


def make_adapter_settings(
    name: str, rank: int, alpha: int, first_layer: Optional[int]
) -> AdapterSettings:
    """RETURNS (AdapterSettings): Of a component's architecture.
    RAISES (LLMNERError): If one of them makes no sense."""
    settings = {"rank": rank, "alpha": alpha, "first_layer": first_layer or 0}
    check_values(name, settings, least={"rank": 0, "alpha": 1, "first_layer": 0})
    return AdapterSettings(rank, alpha, first_layer)


def qualified(block: str, settings: Any) -> Dict[str, Any]:
    """RETURNS (Dict[str, Any]): The settings in a block of the config, by their full names."""
    return {f"{block}.{setting}": value for setting, value in asdict(settings).items()}


def check_llm(name: str, adapter: AdapterSettings, llm: LoadedLLM) -> None:
    """RAISES (LLMNERError): If an LLM can't end an answer, has fewer layers than the adapter wants, or has
    not the precision to train copies of its weights."""
    if not llm.tokenizer.end:
        raise LLMNERError(Errors.E035.format(name=llm.spec.name))
    if not adapter.rank and llm.model.dtype != torch.float32:
        must = 'above 0, or the LLM\'s `dtype` "float32": copies are trained in full precision'
        raise wrong("rank", name, adapter.rank, must)
    first = adapter.first(llm)
    if first >= llm.n_layers:
        must = f"below {llm.n_layers}, the number of layers of '{llm.spec.name}'"
        raise wrong("first_layer", name, first, must)
