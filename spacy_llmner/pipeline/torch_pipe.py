"""TorchPipe: base class of pipes whose trained part is a torch module."""

import json
import random
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, Optional, Tuple

import srsly
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from spacy.pipeline import TrainablePipe
from spacy.util import ensure_path
from thinc.api import Optimizer

from ..errors import Errors, LLMNERError
from .parallel import sum_gradients
from .settings import Settings, check_cfg

TENSORS = "model.safetensors"


class TorchPipe(TrainablePipe):
    """Base class of a pipe with settings in `cfg` and a torch module. It updates the weights of the module,
    saves it, and loads it.

    A subclass creates the module with `build`.
    """

    # The trained part, a torch.nn.Module; None before training.
    module: Any
    cfg: Settings
    _optimizer: Optional[torch.optim.Optimizer]

    def finish_update(self, sgd: Optimizer) -> None:
        """Update the weights with the gradients accumulated since the last update.

        Learning rate, betas, eps, weight decay, clipping and averaging are those of thinc's
        optimizer, so the schedule in `[training.optimizer]` is used. The update itself is always made
        by torch's AdamW, whichever optimizer the config names, since AdamW needs no CuPy on a GPU.

        sgd (thinc.api.Optimizer): The optimizer of the training loop.
        """
        if self.module is None:
            return
        sum_gradients(p for p in self.module.parameters() if p.requires_grad)
        parameters = [p for p in self.module.parameters() if p.grad is not None]
        if not parameters:
            return
        if self._optimizer is None:
            trained = [p for p in self.module.parameters() if p.requires_grad]
            # No weight decay for gains and biases.
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
        """Update the moving averages of the weights as thinc does, and store them where the training loop
        expects them.
        """
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
        """Replace the weights by averaged ones, and restore them at the next step of the generator.

        This is a plain generator, as `Language.use_params` expects: the training loop evaluates and
        saves between the two steps.

        params (Dict[Tuple[int, str], Any]): The averaged weights, by model ID and parameter name.
        """
        replaced = {}
        if self.module is not None and params:
            for name, p in self.module.named_parameters():
                if (self.model.id, name) in params:
                    replaced[name] = p.detach().clone()
                    p.detach().copy_(params[(self.model.id, name)])
        try:
            yield
        finally:
            for name, p in self.module.named_parameters() if self.module is not None else []:
                if name in replaced:
                    p.detach().copy_(replaced[name])

    def trained_with(self) -> Dict[str, Any]:
        """RETURNS (Dict[str, Any]): The settings of `model` that the trained part depends on, by name."""
        return {}

    def build(self) -> torch.nn.Module:
        """RETURNS (torch.nn.Module): The trained part for the settings in `cfg`, without trained
        weights.
        """
        raise NotImplementedError

    def to_bytes(self, *, exclude: Iterable[str] = ()) -> bytes:
        """RETURNS (bytes): The settings and the trained part, without the LLM's weights."""
        state: Dict[str, Any] = {"cfg": json.dumps(self.cfg)}
        if "vocab" not in exclude:
            state["vocab"] = self.vocab.to_bytes(exclude=exclude)
        return srsly.msgpack_dumps({**state, "tensors": self._tensors()})

    def from_bytes(self, bytes_data: bytes, *, exclude: Iterable[str] = ()) -> "TorchPipe":
        """Load the component from the result of `to_bytes`.

        RETURNS (TorchPipe): The component itself.
        RAISES (LLMNERError): If the bytes are incomplete or belong to something else.
        """
        with self._restoring("the given bytes"):
            state = srsly.msgpack_loads(bytes_data)
            cfg, tensors = json.loads(state["cfg"]), state["tensors"]
            if "vocab" not in exclude and "vocab" in state:
                self.vocab.from_bytes(state["vocab"], exclude=exclude)
            self._restore(cfg, tensors)
        return self

    def to_disk(self, path: Any, *, exclude: Iterable[str] = ()) -> None:
        """Save `cfg` and `model.safetensors` to a directory, without the LLM's weights."""
        folder = ensure_path(path)
        folder.mkdir(parents=True, exist_ok=True)
        srsly.write_json(folder / "cfg", self.cfg)
        (folder / TENSORS).write_bytes(self._tensors())

    def from_disk(self, path: Any, *, exclude: Iterable[str] = ()) -> "TorchPipe":
        """Load the component from a directory.

        RETURNS (TorchPipe): The component itself.
        RAISES (LLMNERError): If the directory is incomplete or broken.
        """
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
        self.check_cfg()
        state = load_tensors(tensors)
        self._optimizer = None
        self.module = None
        if state:
            self._check_model()
            self._check_shapes(state)
            # Otherwise a pipeline that is loaded in inference mode could not be trained later.
            with torch.inference_mode(False):
                self.module = self.build()
                self.module.load_state_dict(state)
            self.module.eval()
        for label in self.labels:
            self.vocab.strings.add(label)

    def check_cfg(self) -> None:
        """Validate the settings that no other method validates. Users can edit them in a saved pipeline.

        RAISES (LLMNERError): For the first invalid value.
        """
        check_cfg(self.name, self.cfg)

    def _check_shapes(self, state: Dict[str, torch.Tensor]) -> None:
        """Compare the saved tensors with the settings, before memory is allocated for these sizes."""
        if self.cfg["llm"] is None:
            raise ValueError("`llm` in `cfg` is null, but there are trained tensors")
        with torch.device("meta"):
            expected = self.build().state_dict()
        for key in expected.keys() & state.keys():
            shape, saved = tuple(expected[key].shape), tuple(state[key].shape)
            # The number of vectors that a few-shot probe stores isn't known in advance.
            first = 1 if shape[:1] == (0,) else 0
            if saved[first:] != shape[first:]:
                raise ValueError(f"the shape of '{key}' is {saved}, but `cfg` needs {shape}")

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
    """Seed torch for new weights, and restore the state of its generators afterwards.

    The seed is drawn from Python's `random`, which spaCy seeds.

    device (torch.device): The device that the weights are created on.
    """
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(random.getrandbits(31))
        yield
