"""Save and load an ensemble: its settings and the pool of labelled texts, without the LLMs' weights."""

from pathlib import Path
from typing import Any, Dict, Iterable, List

import srsly
from spacy.util import ensure_path

from ..errors import Errors, LLMNERError
from ..pipeline.base import LLMNERPipe
from ..pipeline.loading import llms_of
from ..pipeline.model_card import UsedModel, encoder_model, update_card
from ..pipeline.settings import check_cfg
from .config import check_saved
from .demonstrations.fill import uses_demonstrations
from .demonstrations.pool import DemonstrationPool
from .interfaces import Voter

POOL = "pool"


class SavedEnsemble(LLMNERPipe):
    """Base class of a component with a pool of labelled texts and without a trained part.

    pool (DemonstrationPool): The labelled texts.
    voters (Dict[str, Voter]): The voters of the config. The values saved for them are in `cfg["voters"]`.
    """

    pool: DemonstrationPool
    voters: Dict[str, Voter]

    def reset_pool(self) -> None:
        """Delete the labelled texts, everything computed from them, and the values saved for the voters."""
        self.pool.clear()
        self.cfg.update(voters={}, factors={}, weights={})

    def models_used(self) -> List[UsedModel]:
        models = []
        for key, voter in self.voters.items():
            for llm in llms_of([voter]):
                saved, use = self.cfg["voters"].get(key, {}), f"LLM of the voter '{key}'"
                name, revision = llm.spec.name, llm.spec.revision
                models.append(UsedModel(use, name, revision, saved.get("fingerprint")))
        encoder = encoder_model(self.pool.encoder)
        if not uses_demonstrations(self.cfg) or any(m.name == encoder.name for m in models):
            return models
        return [*models, encoder]

    def to_bytes(self, *, exclude: Iterable[str] = ()) -> bytes:
        """Serialize the settings and the pool, without the LLMs' weights.

        exclude (Iterable[str]): What to leave out: "vocab".
        RETURNS (bytes): The serialized component.
        """
        state: Dict[str, Any] = {"cfg": srsly.json_dumps(self.cfg), POOL: self.pool.to_bytes()}
        if "vocab" not in exclude:
            state["vocab"] = self.vocab.to_bytes(exclude=exclude)
        return srsly.msgpack_dumps(state)

    def from_bytes(self, bytes_data: bytes, *, exclude: Iterable[str] = ()) -> "SavedEnsemble":
        """Load a serialized component.

        bytes_data (bytes): The result of `to_bytes`.
        exclude (Iterable[str]): What to leave out: "vocab".
        RETURNS (SavedEnsemble): This component.
        RAISES (LLMNERError): If the bytes are not a serialized ensemble.
        """
        with self._restoring("the given bytes"):
            state = srsly.msgpack_loads(bytes_data)
            cfg = self._checked(srsly.json_loads(state["cfg"]))
            pool = DemonstrationPool(self.pool.encoder).from_bytes(state[POOL])
            if "vocab" not in exclude and "vocab" in state:
                self.vocab.from_bytes(state["vocab"], exclude=exclude)
        self._replace(cfg, pool)
        return self

    def to_disk(self, path: Any, *, exclude: Iterable[str] = ()) -> None:
        """Save the file `cfg` and the folder `pool`, without the LLMs' weights.

        path (Union[str, Path]): The folder to save to. It is created if it doesn't exist.
        """
        folder = ensure_path(path)
        folder.mkdir(parents=True, exist_ok=True)
        srsly.write_json(folder / "cfg", self.cfg)
        self.pool.to_disk(folder / POOL)
        update_card(folder, self.factory, self.models_used(), self.cfg["corpus"])

    def from_disk(self, path: Any, *, exclude: Iterable[str] = ()) -> "SavedEnsemble":
        """Load a saved component.

        path (Union[str, Path]): A folder from `to_disk`.
        RETURNS (SavedEnsemble): This component.
        RAISES (LLMNERError): If the folder is incomplete or damaged.
        """
        folder = Path(path)
        for file in ("cfg", POOL):
            if not (folder / file).exists():
                reason = f"no {file}"
                raise LLMNERError(Errors.E030.format(path=folder, name=self.name, reason=reason))
        with self._restoring(folder):
            cfg = self._checked(srsly.read_json(folder / "cfg"))
            pool = DemonstrationPool(self.pool.encoder).from_disk(folder / POOL)
        self._replace(cfg, pool)
        return self

    def _checked(self, cfg: Any) -> Dict[str, Any]:
        verifier = check_saved(cfg)["verifier"]
        check_cfg(self.name, {**self.cfg, **cfg})
        if verifier is not None and verifier not in self.voters:
            known = ", ".join(self.voters)
            raise LLMNERError(Errors.E074.format(name=self.name, verifier=verifier, known=known))
        return cfg

    def _replace(self, cfg: Dict[str, Any], pool: DemonstrationPool) -> None:
        """Replace the state of the component, after everything was read without an error."""
        self.reset_pool()
        self.pool = pool
        self.cfg.update(cfg)
        for label in self.labels:
            self.vocab.strings.add(label)
        for key, saved in self.cfg["voters"].items():
            if key in self.voters:
                self.voters[key].restore(saved)
