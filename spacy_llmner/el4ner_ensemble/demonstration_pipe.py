"""DemonstrationPipe: base class of `el4ner_ensemble` that chooses demonstrations."""

import warnings
from threading import Lock
from typing import Any, Optional, Sequence, Tuple

from spacy.tokens import Doc

from ..errors import Warnings
from .demonstrations.fill import uses_demonstrations
from .demonstrations.retrieve import Demonstrator, add_demonstrations
from .interfaces import LabelSet
from .pos_weights import check_weights
from .serialization import SavedEnsemble
from .stages import Ensemble, EnsembleSettings, union_of
from .task_windows import DocTasks, read_tasks, tasks_of
from .voter.llm_voter import ModelResidency

_RESIDENCY_LOCK = Lock()


class DemonstrationPipe(SavedEnsemble):
    """Base class of `el4ner_ensemble`: creates the ensemble from the settings, and chooses demonstrations
    for Docs.

    resident (Optional[int]): Maximum number of LLMs in memory. None for all.
    max_batch_tokens (int): Maximum number of tokens in memory at the same time, for each LLM.
    """

    resident: Optional[int]
    max_batch_tokens: int
    _residency: Optional[ModelResidency] = None
    _demonstrator: Optional[Tuple[Any, Demonstrator]] = None
    _warned = False
    # Whether the voters were compared after their LLMs were loaded.
    _compared = False

    @property
    def label_set(self) -> LabelSet:
        """RETURNS (LabelSet): The labels that are requested from the voters."""
        words = self.cfg["label_words"]
        return LabelSet({label: words.get(label, label) for label in self.labels}, self.cfg["lang"])

    @property
    def residency(self) -> ModelResidency:
        """RETURNS (ModelResidency): Decides which LLMs are in memory."""
        with _RESIDENCY_LOCK:  # all threads share one object
            self._residency = self._residency or ModelResidency(
                list(self.voters.values()), self.resident
            )
            return self._residency

    def reset_pool(self) -> None:
        super().reset_pool()
        self._demonstrator = None
        self._warned = False
        self._compared = False

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
            new = Demonstrator(self.pool, self.cfg["retrieval"], self.cfg["k"], self.labels)
            self._demonstrator = key, new
        demonstrator = self._demonstrator[1]
        if uses_demonstrations(self.cfg) and not demonstrator.is_active and not self._warned:
            warnings.warn(Warnings.W010.format(name=self.name), stacklevel=2)
            self._warned = True
        return demonstrator

    def _demonstrate(self, ensemble: Ensemble, docs_tasks: Sequence[DocTasks]) -> None:
        tasks = tasks_of(docs_tasks)
        demonstrator = self._demonstrations()
        found = ensemble.pre_extract(tasks) if demonstrator.by_spans else [{} for _ in tasks]
        spans = [union_of(by_voter) for by_voter in found]
        pos_weights = check_weights(self.name, self.cfg["pos_weights"])
        add_demonstrations(demonstrator, docs_tasks, spans, pos_weights)
