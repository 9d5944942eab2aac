"""The same server as a deployment of Ray Serve: several replicas, with an LLM in each."""

import logging
import os
import signal
import socket
import sys
import threading
from contextlib import suppress
from typing import Any, Callable, Dict, List, Tuple

import torch
from fastapi import FastAPI
from spacy.language import Language

from ..errors import Errors, LLMNERError
from .app import make_app
from .metrics import Families, merged
from .request_errors import log_requests
from .server import GRACE
from .service import Service
from .settings import ServeSettings

APP = "spacy-llmner"
# Ray lets a replica have this many requests at once. The limits of each replica are lower.
MAX_REQUESTS = 1000


def run_replicas(
    load: Callable[[], Language], model: str, settings: ServeSettings, n_replicas: int
) -> None:
    """Serve a pipeline until SIGINT or SIGTERM.

    load (Callable[[], Language]): Loads the pipeline. It is called in the process of each replica.
    model (str): Name by which clients know the pipeline.
    settings (ServeSettings): Settings and limits of each replica.
    n_replicas (int): Number of replicas. They share the CPUs. If there are GPUs, each gets one.
    RAISES (LLMNERError): If Ray Serve isn't installed, if there are too few GPUs, if the address can't be
        used, or if a replica can't be started.
    """
    ray, serve = _import_ray()
    n_gpus = torch.cuda.device_count()
    if 0 < n_gpus < n_replicas:
        raise LLMNERError(Errors.E120.format(replicas=n_replicas, gpus=n_gpus))
    port = _free_port(settings.host, settings.port)
    threads = max(torch.get_num_threads() // n_replicas, 1)
    ray.init("local", num_cpus=n_replicas * threads, include_dashboard=False, logging_level="error")
    try:
        # Ray's own handler for SIGTERM would end this process at once.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        quiet = {"log_level": "WARNING", "enable_access_log": False}
        address = {"host": settings.host, "port": port}
        serve.start(proxy_location="HeadOnly", http_options=address, logging_config=quiet)
        deployment = serve.deployment(
            serve.ingress()(Replica),
            name=APP,
            num_replicas=n_replicas,
            ray_actor_options={"num_cpus": threads, "num_gpus": int(n_gpus > 0)},
            max_ongoing_requests=MAX_REQUESTS,
            max_constructor_retry_count=1,
            graceful_shutdown_timeout_s=GRACE,
            graceful_shutdown_wait_loop_s=0.1,
            logging_config=quiet,
        )
        try:
            app = deployment.bind(load, model, settings, threads)
            handle = serve.run(app, name=APP, logging_config=quiet)
        except RuntimeError as e:
            raise LLMNERError(Errors.E119.format(reason=e)) from None
        url = f"http://{settings.host}:{port}"
        print(f"{n_replicas} replicas running on {url} (Press CTRL+C to quit)", file=sys.stderr)
        with suppress(KeyboardInterrupt):
            threading.Event().wait()
        handle.broadcast("shut_down").results(timeout_s=GRACE, return_exceptions=True)
    finally:
        serve.shutdown()
        ray.shutdown()


class Replica:
    """One replica: the application of a server, and what Ray and the other replicas ask it.

    load (Callable[[], Language]): Loads the pipeline.
    model (str): Name by which clients know it.
    settings (ServeSettings): Settings and limits.
    threads (int): Number of CPU threads.
    """

    def __init__(
        self,
        load: Callable[[], Language],
        model: str,
        settings: ServeSettings,
        threads: int,
    ) -> None:
        _, serve = _import_ray()
        torch.set_num_threads(threads)
        if settings.log_prompts:
            log_requests()
        self.name: str = serve.get_replica_context().replica_id.unique_id
        self.web = make_app(load(), model, settings)
        service: Service = self.web.state.service
        service.replica = self

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Called by Ray."""
        return self.web

    async def shut_down(self) -> None:
        """End all answers, and begin no new ones."""
        self.web.state.service.shut_down()

    async def own_metrics(self) -> Tuple[str, Families]:
        """RETURNS (Tuple[str, Families]): The replica's name and its metrics."""
        return self.name, self.web.state.service.metrics.families()

    async def metrics(self) -> bytes:
        """RETURNS (bytes): The metrics of all replicas. The label `replica` tells them apart."""
        _, serve = _import_ray()
        asked = serve.get_deployment_handle(APP, APP).broadcast("own_metrics")
        # A replica that has just ended has no metrics.
        answers = await asked.results_async(timeout_s=GRACE, return_exceptions=True)
        found: List[Tuple[str, Families]] = [a for a in answers if not isinstance(a, Exception)]
        return merged(dict(found))


def _import_ray() -> Tuple[Any, Any]:
    # Ray sends statistics about its use to its developers, unless it is told not to.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        from ray import serve
    except ImportError as e:
        details: Dict[str, str] = {"what": "--replicas", "package": "ray[serve]", "extra": "ray"}
        raise LLMNERError(Errors.E177.format(**details)) from e
    return ray, serve


def _free_port(host: str, port: int) -> int:
    """RETURNS (int): The port, or any free one instead of 0.
    RAISES (LLMNERError): If it can't be used. Ray would only say so in its logs.
    """
    try:
        with socket.create_server((host, port)) as free:
            return int(free.getsockname()[1])
    except OSError as e:
        raise LLMNERError(Errors.E121.format(host=host, port=port, reason=e)) from None
