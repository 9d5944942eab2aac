"""A voter that caches its answers, so that other ways to count the same votes cost next to nothing."""

from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence

from spacy_llmner.el4ner_ensemble.interfaces import Claim, LabelSet, Session, Task, Voter
from spacy_llmner.util import CharSpan


class CachingVoter:
    """A Voter that asks another voter each question once and repeats its answer afterwards.

    voter (Voter): The voter that is asked.
    """

    def __init__(self, voter: Voter) -> None:
        self._voter = voter
        self._answers: Dict[Any, Any] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._voter, name)

    def session(
        self, tasks: Sequence[Task], label_set: LabelSet, *, keep: bool
    ) -> "_CachingSession":
        return _CachingSession(
            self._answers,
            lambda: self._voter.session(tasks, label_set, keep=keep),
            tasks,
            label_set,
        )


class _CachingSession:
    """A Session that opens a session of the other voter when the cache lacks an answer.

    answers (Dict[Any, Any]): The cache.
    begin (Callable[[], Session]): Opens a session of the other voter.
    """

    def __init__(
        self,
        answers: Dict[Any, Any],
        begin: Callable[[], Session],
        tasks: Sequence[Task],
        label_set: LabelSet,
    ) -> None:
        self.answers = answers
        self.begin = begin
        types = label_set.lang, tuple(label_set.types.items())
        self.keys = [(types, t.text, t.start, tuple(t.demonstrations)) for t in tasks]
        self._session: Optional[Session] = None

    @property
    def passes(self) -> int:
        return 0 if self._session is None else self._session.passes

    @property
    def tokens(self) -> int:
        return 0 if self._session is None else self._session.tokens

    def extract(self) -> List[Sequence[CharSpan]]:
        return self._cached(list(self.keys), lambda session: session.extract())

    def classify(self, spans: Sequence[Sequence[CharSpan]]) -> List[Sequence[Mapping[str, float]]]:
        keys = [(*key, tuple(of_task)) for key, of_task in zip(self.keys, spans)]
        return self._cached(keys, lambda session: session.classify(spans))

    def verify(
        self, spans: Sequence[Sequence[CharSpan]], claims: Sequence[Sequence[Claim]]
    ) -> List[List[float]]:
        keys = [(*key, tuple(of_task)) for key, of_task in zip(self.keys, spans)]
        new = [
            [claim for claim in of_task if (*key, claim) not in self.answers]
            for key, of_task in zip(keys, claims)
        ]
        if any(new):
            for key, of_task, answer in zip(keys, new, self._open().verify(spans, new)):
                self.answers.update(((*key, claim), p) for claim, p in zip(of_task, answer))
        return [[self.answers[(*key, claim)] for claim in c] for key, c in zip(keys, claims)]

    def close(self) -> None:
        if self._session is not None:
            self._session.close()

    def _cached(self, keys: List[Any], ask: Callable[[Session], Sequence[Any]]) -> List[Any]:
        if any(key not in self.answers for key in keys):
            self.answers.update(zip(keys, ask(self._open())))
        return [self.answers[key] for key in keys]

    def _open(self) -> Session:
        self._session = self._session or self.begin()
        return self._session
