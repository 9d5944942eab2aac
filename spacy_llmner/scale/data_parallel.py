"""Train a pipeline in several processes, which torchrun starts. spaCy's own training loop runs in each.

Every process has the same batches, and trains on its share of each. The gradients are summed before the
weights are updated, so that all processes have the same weights at any time. The first process evaluates
and saves.
"""

import os
import sys
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, Optional

from spacy.cli._util import show_validation_error
from spacy.language import Language
from spacy.training import Example
from spacy.training.initialize import init_nlp
from spacy.training.loop import train as train_nlp
from spacy.util import load_config
from torch import distributed

from ..errors import Errors, LLMNERError
from ..pipeline import parallel
from ..pipeline.torch_pipe import TorchPipe

# An evaluation can take long, and the other processes wait for it.
TIMEOUT = timedelta(days=7)


def train(
    config_path: Path, output: Optional[Path], use_gpu: bool, overrides: Dict[str, Any]
) -> None:
    """Train a pipeline in the processes of torchrun.

    config_path (Path): The training config.
    output (Optional[Path]): The folder for `model-best` and `model-last`.
    use_gpu (bool): Whether each process uses a GPU of its own.
    overrides (Dict[str, Any]): Values that replace those of the config.
    RAISES (LLMNERError): If torchrun did not start this process, if a component can't be trained in
        parallel, or if another process ended.
    """
    if "RANK" not in os.environ:
        raise LLMNERError(Errors.E190)
    with process_group(use_gpu):
        gpu = 0 if use_gpu else -1
        with show_validation_error(config_path):
            config = load_config(config_path, overrides=overrides, interpolate=False)
        with show_validation_error(config_path, hint_fill=False):
            nlp = init_nlp(config, use_gpu=gpu)
        prepare(nlp, frozen=nlp.config["training"]["frozen_components"])
        first = parallel.is_first()
        if output is not None:
            output.mkdir(parents=True, exist_ok=True)
        with open(os.devnull, "w", encoding="utf8") as nowhere:
            train_nlp(
                nlp,
                output if first else None,
                use_gpu=gpu,
                stdout=sys.stdout if first else nowhere,
                stderr=sys.stderr if first else nowhere,
            )
        parallel.wait_for_all()


@contextmanager
def process_group(use_gpu: bool) -> Iterator[None]:
    """Connect the processes of torchrun inside the `with` block."""
    if use_gpu:
        # Each process sees only its own GPU.
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        rank = int(os.environ["LOCAL_RANK"])
        os.environ["CUDA_VISIBLE_DEVICES"] = visible.split(",")[rank] if visible else str(rank)
    distributed.init_process_group("nccl" if use_gpu else "gloo", timeout=TIMEOUT)
    try:
        yield
    except distributed.DistBackendError as e:
        raise LLMNERError(Errors.E191.format(reason=e)) from e
    except RuntimeError as e:
        if "gloo" in str(e).lower() or "connection" in str(e).lower():
            raise LLMNERError(Errors.E191.format(reason=e)) from e
        raise
    finally:
        distributed.destroy_process_group()


def prepare(nlp: Language, frozen: Iterable[str]) -> None:
    """Make an initialized pipeline train on this process's share of each batch.

    nlp (Language): The pipeline.
    frozen (Iterable[str]): The components that are not trained.
    RAISES (LLMNERError): If the gradients of a component can't be summed.
    """
    trained = []
    for name, pipe in nlp.pipeline:
        if name in frozen or not getattr(pipe, "is_trainable", False):
            continue
        if not isinstance(pipe, TorchPipe):
            raise LLMNERError(Errors.E192.format(name=name))
        trained.append(pipe)
    for pipe in trained:
        parallel.copy_from_first(pipe.module)
    update, evaluate = nlp.update, nlp.evaluate

    def update_on_share(examples: Iterable[Example], *args: Any, **kwargs: Any) -> Any:
        mine = parallel.share(list(examples))
        if mine:
            return update(mine, *args, **kwargs)
        # The other processes count on this one, since they add up numbers.
        losses = {} if kwargs.get("losses") is None else kwargs["losses"]
        for pipe in trained:
            pipe.update([], losses=losses)
        return losses

    def evaluate_once(examples: Iterable[Example], **kwargs: Any) -> Dict[str, Any]:
        scores = evaluate(examples, **kwargs) if parallel.is_first() else None
        return parallel.from_first(scores)

    nlp.update = update_on_share  # type: ignore[method-assign]
    nlp.evaluate = evaluate_once  # type: ignore[method-assign]
