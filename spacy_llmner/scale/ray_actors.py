"""Annotate shards with actors of a Ray cluster. This process reads and writes all files, so the machines of
the cluster need no shared disk for them."""

import os
import re
import socket
from typing import Any, Dict, Generator, Iterable, Optional, Tuple

from ..errors import Errors, LLMNERError, wrong
from .shards import Shard, ShardAnnotator, ShardResult
from .workers import RETRIES, answer_to

# Seconds to wait for an answer from the address of a cluster. Ray itself would try for minutes.
TIMEOUT = 10.0


def annotate_on_ray(
    annotate: ShardAnnotator,
    shards: Iterable[Shard],
    address: str,
    n_actors: int,
    threads: int,
    use_gpus: bool,
) -> Generator[ShardResult, None, None]:
    """Annotate shards on a Ray cluster.

    annotate (ShardAnnotator): Annotates a shard. The pipeline and its LLM must be on all machines.
    shards (Iterable[Shard]): The shards.
    address (str): The address of the cluster. "auto" finds the one of this machine, "local" starts one.
    n_actors (int): The number of actors.
    threads (int): The number of CPUs of each actor.
    use_gpus (bool): Give each actor a GPU.
    YIELDS (ShardResult): The annotated shards, as they are finished.
    RAISES (LLMNERError): If the cluster can't be reached, an actor can't work, or two actors died with the
        same shard.
    """
    ray = _import_ray()
    stream = iter(shards)
    upcoming = next(stream, None)
    if upcoming is None:
        return
    is_connected = ray.is_initialized()
    if not is_connected:
        _connect(ray, address, n_actors * threads)
    resources = {"num_cpus": threads, "num_gpus": int(use_gpus)}
    actor_class = ray.remote(**resources)(_Actor)
    # The actor, the shard and how often it was tried, by the reference of the result.
    running: Dict[Any, Tuple[int, Shard, int]] = {}
    try:
        _check_resources(ray, n_actors, resources)
        actors = [actor_class.remote(annotate, threads) for _ in range(n_actors)]

        def submit(i: int, shard: Optional[Shard], n_tries: int = 0) -> None:
            if shard is not None:
                running[actors[i].run.remote(shard)] = (i, shard, n_tries)

        for i in range(n_actors):
            submit(i, upcoming)
            upcoming = next(stream, None)
        while running:
            done, _ = ray.wait(list(running), num_returns=1)
            i, shard, n_tries = running.pop(done[0])
            try:
                answer = ray.get(done[0])
            except ray.exceptions.RayActorError as e:
                if n_tries >= RETRIES:
                    raise LLMNERError(Errors.E175.format(code=_reason(e), where=shard)) from e
                actors[i] = actor_class.remote(annotate, threads)
                submit(i, shard, n_tries + 1)
                continue
            if isinstance(answer, LLMNERError):
                raise answer
            submit(i, upcoming)  # don't let it wait until its result is written
            yield answer
            upcoming = next(stream, None)
    finally:
        if not is_connected:
            ray.shutdown()


class _Actor:
    """Annotates shards on a machine of the cluster.

    annotate (ShardAnnotator): Annotates a shard.
    threads (int): The number of CPU threads.
    """

    def __init__(self, annotate: ShardAnnotator, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self.annotate = annotate

    def run(self, shard: Shard) -> Any:
        """RETURNS (Any): The ShardResult, or an LLMNERError."""
        return answer_to(self.annotate, shard)


def _import_ray() -> Any:
    # Ray sends statistics about its use to its developers, unless it is told not to.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as e:
        raise LLMNERError(Errors.E177.format(what="--ray", package="ray", extra="ray")) from e
    return ray


def _connect(ray: Any, address: str, n_cpus: int) -> None:
    settings: Dict[str, Any] = {"address": address, "log_to_driver": False}
    if address == "local":
        settings |= {"num_cpus": n_cpus, "include_dashboard": False}
    try:
        if match := re.fullmatch(r"(?:ray://)?(.+):(\d+)", address):
            with socket.create_connection((match[1], int(match[2])), TIMEOUT):
                pass
        ray.init(**settings, logging_level="warning")
    except (OSError, OverflowError, RuntimeError, ValueError) as e:
        raise LLMNERError(Errors.E181.format(address=address, reason=e)) from e


def _check_resources(ray: Any, n_actors: int, resources: Dict[str, int]) -> None:
    """Ray would wait for ever for resources that the cluster doesn't have."""
    for kind, needed in (("CPU", resources["num_cpus"]), ("GPU", resources["num_gpus"])):
        available = int(ray.cluster_resources().get(kind, 0))
        if needed * n_actors > available:
            setting = "gpus" if resources["num_gpus"] else "workers"
            must = (
                f"at most {available // needed}: the Ray cluster has {available} {kind}s, and each "
            )
            raise wrong(setting, "annotate", n_actors, f"{must}worker needs {needed}")


def _reason(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
