"""`el4ner_ensemble`: several small LLMs find demonstrations, extract, vote and verify
(EL4NER, arXiv 2505.23038)."""

import logging
import warnings
from threading import Lock
from typing import Any, Callable, Dict, Iterable, List, Mapping, Optional, Sequence, Set, Tuple

from spacy.language import Language
from spacy.tokens import Doc
from spacy.training import Example, validate_examples, validate_get_examples
from thinc.api import Optimizer

from ..errors import Errors, LLMNERError, Warnings
from ..llm.registry import make_llm
from ..pipeline.base import FACTORY_META, settings_model
from ..pipeline.labels import check_labels
from ..pipeline.predictions import Prediction
from ..pipeline.settings import fill_settings
from ..pipeline.spans import Mention, filter_overlapping, token_spans
from ..retrieval.encoder import SentenceEncoder
from .call_counts import CallCounts
from .config import DEFAULT_CONFIG, check_different, check_settings, check_verifier, check_voters
from .demonstrations.fill import fill_pool, shows_any
from .demonstrations.pool import DemonstrationPool, pool_texts
from .demonstrations.retrieve import Demonstrator, demonstrate
from .interfaces import LabelSet, Task
from .pos_weights import check_weights
from .provenance import TracedPrediction, failures, rejected, trace
from .serialization import SavedEnsemble
from .stages import Decision, Ensemble, EnsembleSettings, union_of
from .task_windows import DocTasks, read_tasks
from .vote_calibration import VoteCalibration, VotedText, fit
from .voter.llm_voter import ModelResidency, default_voters, make_voter

logger = logging.getLogger("spacy_llmner")
_MAKING = Lock()


@Language.factory("el4ner_ensemble", default_config=DEFAULT_CONFIG, **FACTORY_META)
def make_el4ner_ensemble_pipe(
    nlp: Language,
    name: str,
    llms: Dict[str, Any],
    encoder: SentenceEncoder,
    labels: Optional[List[str]],
    label_words: Dict[str, str],
    k: int,
    pool_size: int,
    retrieval: str,
    pre_extract: str,
    pos_weights: Dict[str, float],
    vote: str,
    verify: bool,
    verifier: Optional[str],
    verify_threshold: float,
    skip_unanimous: bool,
    resident: Optional[int],
    spans_key: str,
    overwrite: bool,
    provenance: bool,
    window: int,
    max_batch_tokens: int,
    scorer: Optional[Callable],
) -> "EL4NER":
    """Build an `el4ner_ensemble`; nothing is loaded.

    llms (Dict[str, Union[str, Voter]]): The voters by name: the name of an LLM, or a block
        (`@misc = "spacy_llmner.Voter.v1"`). Without any, Gemma 3 270M and SmolLM2-135M-Instruct vote.
    encoder (SentenceEncoder): Compares spans and texts (`@misc = "spacy_llmner.SentenceEncoder.v1"`).
    labels (Optional[List[str]]): What to find; None takes the labels of the examples at initialization.
    label_words (Dict[str, str]): What a label is called in the prompts; others go by their own name.
    k (int): Demonstrations in front of a text.
    pool_size (int): Labelled texts that are kept to choose them from.
    retrieval (str): How they are chosen: "span" by the similarity of spans, as published, "sentence" by
        that of the texts, "random", or "none".
    pre_extract (str): The spans of the labelled texts are what the LLMs find in them without
        demonstrations, as published ("llm"), or their entities ("gold"), which takes no LLM.
    pos_weights (Dict[str, float]): What a span weighs whose head is a "propn", "noun", "pron", or "other":
        as published 4, 2, 1, 0.
    vote (str): "majority" or "probability", see votes.count_votes.
    verify (bool): Let one voter check every entity.
    verifier (Optional[str]): Its name; None takes the first by name.
    verify_threshold (float): Entities that it takes for less likely are dropped.
    skip_unanimous (bool): It need not check what all voters agree about.
    resident (Optional[int]): LLMs that are in memory at once: with fewer than there are, they take turns
        stage by stage. None keeps all.
    spans_key (str): Key of doc.spans for all spans found, with `attrs["scores"]`.
    overwrite (bool): Replace entities that are already on the Doc.
    provenance (bool): Say in `span._.el4ner` who proposed a span, how each voted, and what the verifier
        said.
    window (int): Tokens of text that are read at once; fewer if an LLM can't read so many. Longer texts are
        cut between sentences.
    max_batch_tokens (int): Tokens that are kept in memory at once, for each LLM.
    scorer (Optional[Callable]): The scoring method.
    """
    return EL4NER(
        nlp,
        llms,
        encoder,
        name,
        labels=labels,
        label_words=label_words,
        k=k,
        pool_size=pool_size,
        retrieval=retrieval,
        pre_extract=pre_extract,
        pos_weights=pos_weights,
        vote=vote,
        verify=verify,
        verifier=verifier,
        verify_threshold=verify_threshold,
        skip_unanimous=skip_unanimous,
        resident=resident,
        spans_key=spans_key,
        overwrite=overwrite,
        provenance=provenance,
        window=window,
        max_batch_tokens=max_batch_tokens,
        scorer=scorer,
    )


class EL4NER(SavedEnsemble):
    """Several LLMs vote. Nothing is trained: `initialize` takes labelled texts to show to them."""

    def __init__(
        self,
        nlp: Language,
        llms: Mapping[str, Any],
        encoder: SentenceEncoder,
        name: str = "el4ner_ensemble",
        *,
        label_words: Optional[Mapping[str, str]] = None,
        pos_weights: Optional[Mapping[str, float]] = None,
        scorer: Optional[Callable] = None,
        **settings: Any,
    ) -> None:
        """
        settings: Those of make_el4ner_ensemble_pipe; what is not given has the default of `DEFAULT_CONFIG`.
        RAISES (LLMNERError): If a setting is unknown, or its value is not valid.
        """
        settings = fill_settings(name, DEFAULT_CONFIG, settings)
        labels, verifier = settings.pop("labels"), settings["verifier"]
        check_settings(name, **settings)
        self.resident = settings.pop("resident")
        self.max_batch_tokens = settings.pop("max_batch_tokens")
        # Every voter has an LLM of its own; there is none of the component's.
        super().__init__(
            nlp,
            make_llm(),
            settings_model("el4ner", None),
            name,
            scorer=scorer,
            label_words=dict(label_words or {}),
            pos_weights=check_weights(name, pos_weights or {}),
            voters={},
            read_labels=[],
            factors={},
            weights={},
            # Kept where the component is added to a pipeline of another language.
            lang=nlp.lang or "en",
            **settings,
        )
        voters = {key: make_voter(x) if isinstance(x, str) else x for key, x in llms.items()}
        self.voters = check_voters(name, voters or default_voters(), verifier)
        for key, voter in self.voters.items():
            voter.join(key, self.max_batch_tokens, name)
        self.pool = DemonstrationPool(encoder)
        self.call_counts = CallCounts()
        self._residency: Optional[ModelResidency] = None
        self._demonstrator: Optional[Tuple[Any, Demonstrator]] = None
        self._warned = False
        self._compared = False
        self.set_labels([] if labels is None else labels)

    def __repr__(self) -> str:
        llms = ", ".join(f"{key}={voter!r}" for key, voter in self.voters.items())
        labels, n = ", ".join(self.labels), len(self.pool)
        return f"EL4NER(name={self.name!r}, llms=[{llms}], labels=[{labels}], {n} labelled texts)"

    def set_labels(self, labels: Iterable[str]) -> None:
        """Find other entities from now on: any words will do. RAISES (LLMNERError): If they are none."""
        kept = check_labels(self.name, labels)
        for label in kept:
            self.vocab.strings.add(label)
        self.cfg["labels"], self.cfg["read_labels"] = kept, []

    @property
    def label_set(self) -> LabelSet:
        """RETURNS (LabelSet): What the voters are asked for."""
        words = self.cfg["label_words"]
        return LabelSet({label: words.get(label, label) for label in self.labels}, self.cfg["lang"])

    @property
    def residency(self) -> ModelResidency:
        """RETURNS (ModelResidency): Which LLMs are in memory."""
        with _MAKING:  # threads share one
            self._residency = self._residency or ModelResidency(
                list(self.voters.values()), self.resident
            )
            return self._residency

    def predict(self, docs: Iterable[Doc]) -> List[Prediction]:
        """Find entities, without changing the Docs.

        docs (Iterable[Doc]): The Docs.
        RETURNS (List[Prediction]): For each Doc.
        RAISES (LLMNERError): Without labels, if a setting in `cfg` makes no sense, if a voter's LLM is not
            the one it had, or if all voters failed.
        """
        self._ready()
        with self.residency.exclusive():
            docs_tasks = [self._read(doc) for doc in docs]
            if not self._compared:  # now it is known what "auto" means
                check_different(self.name, self.voters)
                self._compared = True
            ensemble = self._ensemble()
            try:
                decisions = iter(self._decide(ensemble, docs_tasks))
            finally:  # what was in vain was work, too
                self.call_counts.add(ensemble.call_counts)
                ensemble.call_counts.log(self.name, len(docs_tasks))
        for r in docs_tasks:
            calls = sum(task.calls for task in r.tasks)
            logger.debug("%s: %d LLM calls for the text %r", self.name, calls, r.doc.text[:40])
        return [self._found(r, [d for _ in r.tasks for d in next(decisions)]) for r in docs_tasks]

    def _check_cfg(self) -> None:
        """Settings may be changed in `cfg` at any time."""
        check_settings(self.name, self.resident, max_batch_tokens=self.max_batch_tokens, **self.cfg)
        check_weights(self.name, self.cfg["pos_weights"])
        check_verifier(self.name, self.voters, self.cfg["verifier"])

    def _ready(self) -> None:
        self._check_cfg()
        if not self.labels:
            raise LLMNERError(Errors.E073.format(name=self.name))

    def _decide(self, ensemble: Ensemble, docs_tasks: Sequence[DocTasks]) -> List[List[Decision]]:
        self._demonstrate(ensemble, docs_tasks)
        return ensemble.decide(_tasks(docs_tasks))

    def _demonstrate(self, ensemble: Ensemble, docs_tasks: Sequence[DocTasks]) -> None:
        tasks = _tasks(docs_tasks)
        demonstrator = self._demonstrations()
        found = ensemble.pre_extract(tasks) if demonstrator.by_spans else [{} for _ in tasks]
        spans = [union_of(by_voter) for by_voter in found]
        pos_weights = check_weights(self.name, self.cfg["pos_weights"])
        demonstrate(demonstrator, docs_tasks, spans, pos_weights)

    def set_annotations(self, docs: Iterable[Doc], scores: Sequence[Prediction]) -> None:
        """Write what was found, which voters failed, and where it came from if that is asked for."""
        docs = list(docs)
        super().set_annotations(docs, scores)
        for doc, found in zip(docs, scores):
            if isinstance(found, TracedPrediction):
                found.note(doc, self.cfg["spans_key"])

    def _found(self, doc_tasks: DocTasks, decisions: Sequence[Decision]) -> TracedPrediction:
        kept = [d for d in decisions if d.kept]
        mentions = [Mention(d.start, d.end, d.label, d.score) for d in kept]
        ents, spans = (
            token_spans(doc_tasks.doc, found) for found in (filter_overlapping(mentions), mentions)
        )
        if not self.cfg["provenance"]:
            return TracedPrediction(ents, spans, failures(doc_tasks.tasks))
        traces = {(d.start, d.end): trace(d) for d in kept}
        others = [rejected(d) for d in decisions if not d.kept]
        return TracedPrediction(ents, spans, failures(doc_tasks.tasks), traces, others)

    def _read(self, doc: Doc) -> DocTasks:
        voters = list(self.voters.values())
        return DocTasks(
            doc, read_tasks(doc, voters, self.residency, self.label_set, self.cfg["window"])
        )

    def _ensemble(self) -> Ensemble:
        verifier = self.cfg["verifier"] or next(iter(self.voters))
        settings = EnsembleSettings(
            self.cfg["vote"],
            verifier if self.cfg["verify"] else None,
            self.cfg["verify_threshold"],
            self.cfg["skip_unanimous"],
            self.cfg["factors"],
            self.cfg["weights"],
        )
        voters = list(self.voters.values())
        return Ensemble(
            voters, self.residency, self.label_set, settings, self.max_batch_tokens, self.name
        )

    def _demonstrations(self) -> Demonstrator:
        key = (self.labels, self.cfg["retrieval"], self.cfg["k"])
        if self._demonstrator is None or self._demonstrator[0] != key:
            made = Demonstrator(self.pool, self.cfg["retrieval"], self.cfg["k"], self.labels)
            self._demonstrator = key, made
        demonstrator = self._demonstrator[1]
        if shows_any(self.cfg) and not demonstrator.shows and not self._warned:
            warnings.warn(Warnings.W010.format(name=self.name), stacklevel=2)
            self._warned = True
        return demonstrator

    def initialize(
        self,
        get_examples: Callable[[], Iterable[Example]],
        *,
        nlp: Optional[Language] = None,
        labels: Optional[List[str]] = None,
    ) -> None:
        """Take labelled texts to show to the LLMs, and let these find the spans in them.

        get_examples (Callable[[], Iterable[Example]]): Gives the training examples.
        nlp (Optional[Language]): The pipeline.
        labels (Optional[List[str]]): The labels; None takes those of the config or of `set_labels`, and
            without any those of the examples.
        RAISES (LLMNERError): Without labels.
        """
        validate_get_examples(get_examples, "EL4NER.initialize")
        self._check_cfg()
        texts = list(pool_texts(eg.reference for eg in get_examples()))
        with self.residency.exclusive():
            if labels is not None:
                self.set_labels(labels)
            else:
                self._read_labels({x for t in texts for _, _, x in t.example.entities})
            if not self.labels:
                raise LLMNERError(Errors.E023.format(name=self.name))
            self.new_pool()
            if shows_any(self.cfg):  # a missing encoder is told before LLMs have read for an hour
                logger.debug("labelled texts are encoded by %s", self.pool.encoder.fingerprint)
            for key, voter in self.voters.items():
                self.residency.load(voter)
                self.cfg["voters"][key] = voter.describe(self.label_set)
            check_different(self.name, self.voters)
            fill_pool(self.pool, texts, self._ensemble(), self.name, self.cfg)

    def _read_labels(self, seen: Set[str]) -> None:
        """Take the labels of a corpus, in place of those of the corpus before, unless others were given."""
        before = set(self.cfg["read_labels"])
        given = [label for label in self.labels if label not in before]
        if seen and (before or not given):
            self.set_labels([*given, *sorted(seen.difference(given))])
            self.cfg["read_labels"] = sorted(seen.difference(given))

    def new_pool(self) -> None:
        super().new_pool()
        self._demonstrator = None
        self._warned = False
        self._compared = False

    def calibrate(self, examples: Iterable[Example]) -> VoteCalibration:
        """Fit what each voter counts, and what corrects its likings for types, see calibration: on held-out
        texts, such as those of the dev corpus, which are read once. It is kept in `cfg`.

        examples (Iterable[Example]): Texts as they come to the component, and their entities.
        RETURNS (VoteCalibration): By voter and label, where "" stands for no entity; and F1 before and after.
        RAISES (LLMNERError): As predict does, or if no text has an entity.
        """
        given = list(examples)
        validate_examples(given, "EL4NER.calibrate")
        examples = [eg for eg in given if eg.reference.has_annotation("ENT_IOB")]
        n = sum(1 for eg in examples if eg.reference.ents)
        if not n:
            counts = {"total": len(given), "annotated": len(examples), "n": n}
            raise LLMNERError(Errors.E045.format(name=self.name, **counts))
        self._ready()
        with self.residency.exclusive():
            docs_tasks = [self._read(eg.predicted) for eg in examples]
            ensemble = self._ensemble()
            self._demonstrate(ensemble, docs_tasks)
            said = iter(ensemble.poll(_tasks(docs_tasks)))
            ensemble.call_counts.log(f"{self.name}, calibration", len(docs_tasks))
        polled = []
        for eg, doc_tasks in zip(examples, docs_tasks):
            gold = {(ent.start_char, ent.end_char): ent.label_ for ent in eg.reference.ents}
            polled.append(
                VotedText({k: v for _ in doc_tasks.tasks for k, v in next(said).items()}, gold)
            )
        weights = {name: voter.weight for name, voter in self.voters.items()}
        fitted = fit(polled, weights, self.labels, self.cfg["vote"])
        self.cfg.update(factors=fitted.factors, weights=fitted.weights)
        return fitted

    def update(
        self,
        examples: Iterable[Example],
        *,
        drop: float = 0.0,
        sgd: Optional[Optimizer] = None,
        losses: Optional[Dict[str, float]] = None,
    ) -> Dict[str, float]:
        """Do nothing: all that is learnt is the pool of labelled texts, which `initialize` took.

        RETURNS (Dict[str, float]): The losses, with 0.0 for this component.
        """
        losses = {} if losses is None else losses
        losses.setdefault(self.name, 0.0)
        validate_examples(examples, "EL4NER.update")
        logger.debug("'%s' is not trained: its LLMs learn from what initialize took", self.name)
        return losses

    def get_loss(self, examples: Iterable[Example], scores: Any) -> Tuple[float, None]:
        """RETURNS (Tuple[float, None]): 0: nothing is trained."""
        return 0.0, None


def _tasks(docs_tasks: Sequence[DocTasks]) -> List[Task]:
    return [task for doc_tasks in docs_tasks for task in doc_tasks.tasks]
