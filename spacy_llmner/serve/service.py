"""What the endpoints of one server share."""

import time
from typing import Any, Dict, Optional, Set

from spacy.language import Language

from ..ember_probe.component import EmberProbe
from ..ember_probe.streaming.pool import StreamPool
from ..errors import Errors, LLMNERError
from .limits import Slot, Slots
from .metrics import Metrics
from .ner import NerBatcher
from .request_errors import RequestError
from .settings import ServeSettings


class Service:
    """The pipeline, and what runs on it.

    nlp (Language): The pipeline.
    model (str): Name by which clients know it.
    settings (ServeSettings): Settings and limits.

    ember is its first ember_probe, if there is one. If that can't find entities in a text while it is
    written, `refusal` says why.
    """

    def __init__(self, nlp: Language, model: str, settings: ServeSettings) -> None:
        self.nlp = nlp
        self.model = model
        self.settings = settings
        self.slots = Slots(settings.max_streams, settings.max_waiting)
        self.metrics = Metrics(self.slots)
        self.ner = NerBatcher(nlp, settings, self.metrics)
        self.answers: Set[Any] = set()
        self.stopping = False
        self.streams: Optional[StreamPool] = None
        self.refusal: Optional[str] = None
        self.upstream: Any = None
        # The Replica that this service belongs to, if there are several.
        self.replica: Any = None
        probes = [pipe for _, pipe in nlp.pipeline if isinstance(pipe, EmberProbe)]
        self.ember: Any = probes[0] if probes else None
        if self.ember is None:
            known = ", ".join(nlp.pipe_names) or "no components"
            self.refusal = Errors.E155.format(name=model, known=known)
            return
        try:
            # This also loads the LLM, so that the first request doesn't wait for it.
            self.streams = self.ember.streams(settings.max_streams)
            self.ember.shared_llm()
        except LLMNERError as e:
            self.refusal = str(e)

    def check_can_write(self) -> None:
        """RAISES (RequestError): If no text can be written or followed."""
        if self.refusal is not None:
            raise RequestError(self.refusal, 501, "not_implemented")

    def labels(self) -> Dict[str, Any]:
        """RETURNS (Dict[str, Any]): The known labels, whether requests can choose other words, and why no
        text can be written or followed, or None.
        """
        if self.ember is not None and self.refusal is None:
            labels = list(self.ember.labels)
            any_labels = self.ember.label_reader is not None
        else:
            labels, any_labels = self.ner.labels(), self.ner.takes_any_labels()
        return {"labels": labels, "any_labels": any_labels, "refusal": self.refusal}

    def deadline(self) -> float:
        """RETURNS (float): When a request that comes now must end, on the clock of `time.monotonic`."""
        return time.monotonic() + self.settings.max_seconds

    async def take_slot(self, deadline: float) -> Slot:
        """Wait for a free slot. See Slots.take."""
        if self.stopping:
            raise RequestError(Errors.E163, 503, "shutting_down")
        slot = await self.slots.take(deadline)
        if self.stopping:
            slot.free()
            raise RequestError(Errors.E163, 503, "shutting_down")
        return slot

    def shut_down(self) -> None:
        """End all answers, and begin no new ones."""
        self.stopping = True
        for answer in list(self.answers):
            answer.shut_down()

    def close(self) -> None:
        """Free what the streams use."""
        if self.streams is not None:
            self.streams.close()
