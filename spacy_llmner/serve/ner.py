"""POST /ner: entities of finished texts, with any pipeline."""

import asyncio
from typing import Any, Dict, List, NamedTuple, Optional, Set

from fastapi import APIRouter, Body, Request
from spacy.language import Language
from spacy.tokens import Doc, Span
from starlette.concurrency import run_in_threadpool

from ..ember_probe.component import EmberProbe
from ..errors import Errors, LLMNERError
from .entities import check_known
from .limits import RETRY_AFTER, check_size
from .metrics import Metrics
from .protocol import NerRequest, parse
from .request_errors import RequestError, internal_error, logger
from .settings import ServeSettings

router = APIRouter()


class Job(NamedTuple):
    """The texts of one request.

    texts (List[str]): The texts.
    labels (Optional[List[str]]): Labels in words.
    done (Future): Gets the Docs, or an error.
    """

    texts: List[str]
    labels: Optional[List[str]]
    done: "asyncio.Future[List[Doc]]"


class NerBatcher:
    """Sends the texts of requests that arrive at about the same time through the pipeline together.

    nlp (Language): The pipeline.
    settings (ServeSettings): Settings and limits.
    metrics (Metrics): Where to count.
    """

    def __init__(self, nlp: Language, settings: ServeSettings, metrics: Metrics) -> None:
        self.nlp = nlp
        self.settings = settings
        self.metrics = metrics
        self._jobs: List[Job] = []
        self._worker: Optional[asyncio.Task[None]] = None

    def labels(self) -> List[str]:
        """RETURNS (List[str]): The labels of the pipeline's components."""
        found: Set[str] = set()
        for _, pipe in self.nlp.pipeline:
            found.update(getattr(pipe, "labels", ()))
        return sorted(found)

    def takes_any_labels(self) -> bool:
        """RETURNS (bool): Whether a component finds the labels in `doc._.llmner_labels`."""
        return any(
            pipe.label_reader is not None
            if isinstance(pipe, EmberProbe)
            else self.nlp.get_pipe_meta(name).factory == "ra_it_ner"
            for name, pipe in self.nlp.pipeline
        )

    async def find(self, texts: List[str], labels: Optional[List[str]]) -> List[Doc]:
        """Run the pipeline.

        texts (List[str]): The texts of one request.
        labels (Optional[List[str]]): Labels in words, if a component takes them.
        RETURNS (List[Doc]): The Docs.
        RAISES (RequestError): If too many requests wait.
        """
        if len(self._jobs) >= self.settings.max_waiting:
            message = Errors.E159.format(running=1, waiting=len(self._jobs))
            raise RequestError(message, 429, "server_busy", retry_after=RETRY_AFTER)
        job = Job(texts, labels, asyncio.get_running_loop().create_future())
        self._jobs.append(job)
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        return await job.done

    async def _work(self) -> None:
        while self._jobs:
            await asyncio.sleep(self.settings.batch_seconds)
            jobs, self._jobs = self._jobs, []
            # A client can have gone away.
            jobs = [job for job in jobs if not job.done.done()]
            results = await run_in_threadpool(self._run, jobs)
            for job, result in zip(jobs, results):
                if job.done.done():
                    continue
                if isinstance(result, Exception):
                    job.done.set_exception(result)
                else:
                    job.done.set_result(result)

    def _run(self, jobs: List[Job]) -> List[Any]:
        """RETURNS (List[Union[List[Doc], Exception]]): The Docs of each job, or an error."""
        self.metrics.batches.inc()
        self.metrics.texts.inc(sum(len(job.texts) for job in jobs))
        try:
            docs = iter(self._pipe(jobs))
            return [[next(docs) for _ in job.texts] for job in jobs]
        except Exception as e:
            if len(jobs) == 1:
                return [e]
            # One request must not disturb the others.
            return [result for job in jobs for result in self._run([job])]

    def _pipe(self, jobs: List[Job]) -> List[Doc]:
        docs = []
        for job in jobs:
            for text in job.texts:
                doc = self.nlp.make_doc(text)
                if job.labels is not None:
                    doc._.llmner_labels = job.labels
                docs.append(doc)
        return list(self.nlp.pipe(docs))


@router.post("/ner")
async def find_entities(request: Request, fields: Dict[str, Any] = Body()) -> Dict[str, Any]:
    """Find entities in texts."""
    service = request.app.state.service
    body = parse(NerRequest, fields)
    settings: ServeSettings = service.settings
    check_size(len(body.texts), "texts", settings.max_texts, "texts")
    check_size(sum(map(len, body.texts)), "characters", settings.max_chars, "texts")
    check_size(len(body.labels or ()), "labels", settings.max_labels, "labels")
    batcher: NerBatcher = service.ner
    in_words = body.labels if batcher.takes_any_labels() else None
    if body.labels is not None and in_words is None:
        check_known(body.labels, batcher.labels(), "labels")
    if settings.log_prompts:
        logger.info("Texts: %s", body.texts)
    try:
        async with asyncio.timeout(settings.max_seconds):
            docs = await batcher.find(body.texts, in_words)
    except TimeoutError:
        message = Errors.E162.format(seconds=settings.max_seconds)
        raise RequestError(message, 504, "timeout") from None
    except LLMNERError as e:
        raise RequestError(str(e), 400, "invalid_value") from e
    except RequestError:
        raise
    except Exception as e:
        raise internal_error(e) from None
    return {"model": service.model, "results": [as_result(doc, body) for doc in docs]}


def as_result(doc: Doc, body: NerRequest) -> Dict[str, Any]:
    """RETURNS (Dict[str, Any]): The entities of a Doc, and all spans found if they were asked for."""
    result = {"entities": [as_entity(ent, score_of(ent)) for ent in doc.ents]}
    if body.spans:
        scored = {
            (span.start_char, span.end_char, span.label_): as_entity(span, score)
            for group in doc.spans.values()
            for span, score in zip(group, group.attrs.get("scores", [None] * len(group)))
        }
        result["spans"] = [scored[key] for key in sorted(scored)]
    if body.labels is not None:
        labels = {label.strip() for label in body.labels}
        result = {key: [x for x in found if x["label"] in labels] for key, found in result.items()}
    return result


def as_entity(span: Span, score: Optional[float]) -> Dict[str, Any]:
    """RETURNS (Dict[str, Any]): A span as it is sent."""
    return {
        "start": span.start_char,
        "end": span.end_char,
        "label": span.label_,
        "score": None if score is None else round(float(score), 4),
        "text": span.text,
    }


def score_of(ent: Span) -> Optional[float]:
    """RETURNS (Optional[float]): The score of an entity, if its component gives scores."""
    return ent._.llmner_score if Span.has_extension("llmner_score") else None
