"""A voter that is asked nothing twice, so that other ways to count the same votes cost next to nothing."""

from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence

from spacy_llmner.el4ner_ensemble.interfaces import Chars, Claim, LabelSet, Session, Task, Voter


class Remembering:
    """See Voter: it says what another voter said when it was first asked, or what that says now."""

    def __init__(self, voter: Voter) -> None:
        self._voter = voter
        self._known: Dict[Any, Any] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._voter, name)

    def session(self, tasks: Sequence[Task], asked: LabelSet, *, keep: bool) -> "_Session":
        return _Session(
            self._known, lambda: self._voter.session(tasks, asked, keep=keep), tasks, asked
        )


class _Session:
    def __init__(
        self,
        known: Dict[Any, Any],
        begin: Callable[[], Session],
        tasks: Sequence[Task],
        asked: LabelSet,
    ) -> None:
        self.known = known
        self.begin = begin
        types = asked.lang, tuple(asked.types.items())
        self.keys = [(types, t.text, t.start, tuple(t.demonstrations)) for t in tasks]
        self._session: Optional[Session] = None

    @property
    def passes(self) -> int:
        return 0 if self._session is None else self._session.passes

    @property
    def tokens(self) -> int:
        return 0 if self._session is None else self._session.tokens

    def extract(self) -> List[Sequence[Chars]]:
        return self._of_each(list(self.keys), lambda session: session.extract())

    def classify(self, spans: Sequence[Sequence[Chars]]) -> List[Sequence[Mapping[str, float]]]:
        keys = [(*key, tuple(of_task)) for key, of_task in zip(self.keys, spans)]
        return self._of_each(keys, lambda session: session.classify(spans))

    def verify(
        self, spans: Sequence[Sequence[Chars]], claims: Sequence[Sequence[Claim]]
    ) -> List[List[float]]:
        keys = [(*key, tuple(of_task)) for key, of_task in zip(self.keys, spans)]
        new = [
            [claim for claim in of_task if (*key, claim) not in self.known]
            for key, of_task in zip(keys, claims)
        ]
        if any(new):
            for key, of_task, answer in zip(keys, new, self._open().verify(spans, new)):
                self.known.update(((*key, claim), p) for claim, p in zip(of_task, answer))
        return [[self.known[(*key, claim)] for claim in c] for key, c in zip(keys, claims)]

    def close(self) -> None:
        if self._session is not None:
            self._session.close()

    def _of_each(self, keys: List[Any], ask: Callable[[Session], Sequence[Any]]) -> List[Any]:
        if any(key not in self.known for key in keys):
            self.known.update(zip(keys, ask(self._open())))
        return [self.known[key] for key in keys]

    def _open(self) -> Session:
        self._session = self._session or self.begin()
        return self._session
