"""How an ensemble is saved: its settings and the pool, never an LLM's weights."""

from pathlib import Path
from typing import Any, Dict, Iterable

import srsly
from spacy.util import ensure_path

from ..errors import Errors, LLMNERError
from ..pipeline.base import LLMNERPipe
from .config import check_saved
from .demonstrations.pool import DemonstrationPool
from .interfaces import Voter

POOL = "pool"


class SavedEnsemble(LLMNERPipe):
    """Base class: has no trained part, but a pool of labelled texts.

    pool (DemonstrationPool): The labelled texts.
    voters (Dict[str, Voter]): Those of the config; what is saved of them is in `cfg["voters"]`.
    """

    pool: DemonstrationPool
    voters: Dict[str, Voter]

    def new_pool(self) -> None:
        """Forget all that depends on the labelled texts, and what is known of the voters."""
        self.pool.clear()
        self.cfg.update(voters={}, factors={}, weights={})

    def to_bytes(self, *, exclude: Iterable[str] = ()) -> bytes:
        """RETURNS (bytes): Settings and the pool; never an LLM's weights."""
        state: Dict[str, Any] = {"cfg": srsly.json_dumps(self.cfg), POOL: self.pool.to_bytes()}
        if "vocab" not in exclude:
            state["vocab"] = self.vocab.to_bytes(exclude=exclude)
        return srsly.msgpack_dumps(state)

    def from_bytes(self, bytes_data: bytes, *, exclude: Iterable[str] = ()) -> "SavedEnsemble":
        """Load what `to_bytes` gave. RETURNS (SavedEnsemble): The component itself.
        RAISES (LLMNERError): If the bytes are of something else."""
        with self._restoring("The given bytes"):
            state = srsly.msgpack_loads(bytes_data)
            cfg = self._checked(srsly.json_loads(state["cfg"]))
            pool = DemonstrationPool(self.pool.encoder).from_bytes(state[POOL])
            if "vocab" not in exclude and "vocab" in state:
                self.vocab.from_bytes(state["vocab"], exclude=exclude)
        self._take(cfg, pool)
        return self

    def to_disk(self, path: Any, *, exclude: Iterable[str] = ()) -> None:
        """Write `cfg` and the folder `pool`; never an LLM's weights."""
        folder = ensure_path(path)
        folder.mkdir(parents=True, exist_ok=True)
        srsly.write_json(folder / "cfg", self.cfg)
        self.pool.to_disk(folder / POOL)

    def from_disk(self, path: Any, *, exclude: Iterable[str] = ()) -> "SavedEnsemble":
        """Load a folder. RETURNS (SavedEnsemble): The component itself.
        RAISES (LLMNERError): If it is incomplete or broken."""
        folder = Path(path)
        for file in ("cfg", POOL):
            if not (folder / file).exists():
                reason = f"no {file}"
                raise LLMNERError(Errors.E030.format(path=folder, name=self.name, reason=reason))
        with self._restoring(folder):
            cfg = self._checked(srsly.read_json(folder / "cfg"))
            pool = DemonstrationPool(self.pool.encoder).from_disk(folder / POOL)
        self._take(cfg, pool)
        return self

    def _checked(self, cfg: Any) -> Dict[str, Any]:
        verifier = check_saved(cfg)["verifier"]
        if verifier is not None and verifier not in self.voters:
            known = ", ".join(self.voters)
            raise LLMNERError(Errors.E074.format(name=self.name, verifier=verifier, known=known))
        return cfg

    def _take(self, cfg: Dict[str, Any], pool: DemonstrationPool) -> None:
        """Take what was read, once all of it was."""
        self.new_pool()
        self.pool = pool
        self.cfg.update(cfg)
        for label in self.labels:
            self.vocab.strings.add(label)
        for key, saved in self.cfg["voters"].items():
            if key in self.voters:
                self.voters[key].restore(saved)
