"""Metrics in the text format of Prometheus."""

import time
from types import SimpleNamespace
from typing import Dict, List

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import Metric
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .limits import Slots

# The metrics of one server. Each has a name and its samples.
Families = List[Metric]

SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)


class Metrics:
    """The metrics of one server. They contain no texts and no labels.

    slots (Slots): The answers that are written at once.
    """

    def __init__(self, slots: Slots) -> None:
        self.registry = CollectorRegistry()
        running = Gauge("llmner_streams_running", "Running streams", registry=self.registry)
        running.set_function(lambda: slots.running)
        waiting = Gauge("llmner_streams_waiting", "Waiting requests", registry=self.registry)
        waiting.set_function(lambda: slots.waiting)
        self.requests = Counter(
            "llmner_requests", "Requests", ["path", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "llmner_request_seconds",
            "Time until the end of the response",
            ["path"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.answers = Counter(
            "llmner_answers", "Answers by how they ended", ["ended"], registry=self.registry
        )
        self.tokens = Counter("llmner_answer_tokens", "Tokens of answers", registry=self.registry)
        self.texts = Counter("llmner_ner_texts", "Texts sent to /ner", registry=self.registry)
        self.batches = Counter("llmner_ner_batches", "Batches of these", registry=self.registry)

    def text(self) -> bytes:
        """RETURNS (bytes): All metrics."""
        return generate_latest(self.registry)

    def families(self) -> Families:
        """RETURNS (Families): All metrics, for `merged`."""
        return list(self.registry.collect())


def merged(servers: Dict[str, Families]) -> bytes:
    """Merge the metrics of several servers.

    servers (Dict[str, Families]): The metrics by the name of the server.
    RETURNS (bytes): All metrics. Each sample has the label `replica`, with the name of its server.
    """
    all_of_them: Dict[str, Metric] = {}
    for name, families in servers.items():
        for one in families:
            metric = all_of_them.setdefault(one.name, Metric(one.name, one.documentation, one.type))
            samples = [s._replace(labels={**s.labels, "replica": name}) for s in one.samples]
            metric.samples += samples
    return generate_latest(SimpleNamespace(collect=all_of_them.values))  # type: ignore[arg-type]


class CountRequests:
    """Middleware that counts requests.

    app (ASGIApp): The application.
    metrics (Metrics): Where to count.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begin, status = time.monotonic(), "disconnected"

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
            await send(message)

        try:
            await self.app(scope, receive, watched)
        finally:
            # Other paths are the files of the page, or don't exist. They share one name, since clients
            # could make up any number of paths.
            path = getattr(scope.get("route"), "path", None) or "other"
            self.metrics.requests.labels(path, status).inc()
            self.metrics.seconds.labels(path).observe(time.monotonic() - begin)
