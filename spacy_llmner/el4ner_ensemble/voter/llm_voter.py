"""Voters that are LLMs with their own prompts, and the LLMs' residency in memory."""

import math
from contextlib import nullcontext
from numbers import Real
from pathlib import Path
from threading import RLock
from typing import (
    Any,
    ContextManager,
    Dict,
    List,
    Mapping,
    NamedTuple,
    Optional,
    Sequence,
    Tuple,
    Union,
)

from ...decoding.engine import DecodingEngine
from ...errors import Errors, LLMMismatchError, LLMNERError, LLMNotFoundError, wrong
from ...llm.loading import LoadedLLM
from ...llm.registry import LLM, as_llm, make_llm
from ...llm.tokenization import LLMTokenizer
from ...llm.word_tokens import word_tokens
from ...util import CharSpan
from ..interfaces import LabelSet, Task
from .prompt_files import AUTO, Prompts, parse_prompts, read_prompts
from .prompt_tokens import VoterPromptEncoder
from .saved_adapter import SavedAdapter
from .session import LLMSession

# The voters of an ensemble whose config has none. `spacy llmner download` downloads these LLMs.
DEFAULT_LLMS = {"gemma": "gemma-3-270m", "smollm2": "smollm2-135m-instruct"}


class LLMLimits(NamedTuple):
    """The properties of an LLM that are needed while it is not in memory.

    tokenizer (LLMTokenizer): The LLM's tokenizer.
    max_length (int): The number of positions of the LLM.
    """

    tokenizer: LLMTokenizer
    max_length: int


class LLMVoter:
    """A voter that uses an LLM. See `Voter`. The LLM is loaded at first use.

    llm (LLM): A handle on the shared LLM.
    prompts (str): "auto", the name of a prompt file of the package, or the path of a prompt file.
    chat (Optional[bool]): Use the LLM's chat template. None uses it if the LLM has one.
    weight (float): The weight of the vote.
    adapter (Optional[str]): The folder of a component whose adapter is used on the LLM.
    """

    def __init__(
        self,
        llm: LLM,
        prompts: str = AUTO,
        chat: Optional[bool] = None,
        weight: float = 1.0,
        adapter: Optional[str] = None,
    ) -> None:
        self.llm = llm
        self.adapter = None if adapter is None else SavedAdapter(adapter)
        self.prompts = prompts
        self.chat = chat
        self.weight = weight
        self.name = "voter"
        self.component = "el4ner_ensemble"
        self.max_batch_tokens = 1024
        self._saved: Dict[str, Any] = {}
        self._limits: Optional[LLMLimits] = None
        self._prompt_encoders: Dict[Any, VoterPromptEncoder] = {}

    @property
    def llm_key(self) -> Any:
        return self.llm.key

    @property
    def identity(self) -> Any:
        try:
            llm = self.llm_key
        except LLMNERError:  # the LLM's device doesn't exist
            llm = self.llm.spec
        adapter = self.adapter and self.adapter.resolved_folder
        for prompt_encoder in self._prompt_encoders.values():  # it is known what "auto" means
            return llm, adapter, prompt_encoder.prompts, prompt_encoder.chat
        return llm, adapter, self.prompts, self.chat

    def register(self, name: str, max_batch_tokens: int, component: str) -> None:
        self.name = name
        self.component = component
        self.max_batch_tokens = max_batch_tokens

    def prepare(self, label_set: LabelSet) -> Dict[str, Any]:
        self._saved = {}
        llm = self._load()
        _, adapter = self._attached(llm)
        self._prompt_encoders = {}
        self._prompt_encoder(label_set)
        return {
            "llm": self.llm.spec.name,
            "fingerprint": llm.fingerprint,
            "prompts": self._prompt_text(label_set.lang, self._uses_chat),
            "settings": self._settings,
            "adapter": adapter,
        }

    def restore(self, saved: Mapping[str, Any]) -> None:
        self._saved = dict(saved)
        if self._saved.get("settings", self._settings) != self._settings:
            # The config was overridden when the pipeline was loaded, so the saved prompts don't apply.
            self._saved.pop("prompts", None)
        self._prompt_encoders = {}

    def word_lengths(self, text: str, words: Sequence[CharSpan]) -> List[int]:
        encoded = word_tokens(self.limits.tokenizer, text, words, inside=True)
        ends = [-1, *encoded.last.tolist()]
        return [end - before for before, end in zip(ends, ends[1:])]

    def capacity(self, label_set: LabelSet) -> int:
        # The words of a text can occur three times: in the text, in the list of spans, and in a question
        # about a span.
        overhead, max_length = self._prompt_encoder(label_set).overhead(), self.limits.max_length
        capacity = (max_length - overhead) // 3
        if capacity < 1:
            raise LLMNERError(
                Errors.E066.format(name=self.name, tokens=overhead, max_length=max_length)
            )
        return capacity

    def count_tokens(self, task: Task, label_set: LabelSet) -> int:
        prompt_encoder = self._prompt_encoder(label_set)
        # The instruction is not counted, because all tasks share it.
        return len(prompt_encoder.shared_prompt(task.window_text, task.demonstrations)) - len(
            prompt_encoder.instruction.ids
        )

    def session(self, tasks: Sequence[Task], label_set: LabelSet, *, keep: bool) -> LLMSession:
        prompt_encoder = self._prompt_encoder(label_set)
        engine = self._make_engine(
            prefix=prompt_encoder.instruction, max_slots=self.max_batch_tokens
        )
        return LLMSession(engine, prompt_encoder, tasks, keep=keep)

    def unload(self) -> None:
        self.llm.unload()

    @property
    def limits(self) -> LLMLimits:
        """RETURNS (LLMLimits): The LLM's tokenizer and number of positions. Loads the LLM at first use."""
        if self._limits is None:
            self._load()
        assert self._limits is not None
        return self._limits

    def _make_engine(self, **settings: Any) -> DecodingEngine:
        llm = self._load()
        return DecodingEngine(llm, self._attached(llm)[0], **settings)

    def _attached(self, llm: LoadedLLM) -> Tuple[Any, Optional[str]]:
        """Get the LLM's decoder with the adapter, if there is one.

        RETURNS (Tuple[nn.Module, Optional[str]]): The decoder, and the fingerprint of the adapter.
        RAISES (LLMNERError): If the adapter can't be used, or is not the one used at initialization.
        """
        if self.adapter is None:
            return llm.decoder, None
        name = f"'{self.name}' of '{self.component}'"
        view, fingerprint = self.adapter.attach(llm, name)
        if self._saved.get("adapter", fingerprint) != fingerprint:
            reason = "it is not the adapter used at initialization: initialize again to use it"
            path = self.adapter.folder
            raise LLMMismatchError(Errors.E075.format(path=path, name=name, reason=reason))
        return view, fingerprint

    def _load(self) -> LoadedLLM:
        """Load the LLM.

        RETURNS (LoadedLLM): The LLM.
        RAISES (LLMNERError): If it doesn't exist, or is not the one used at initialization.
        """
        if not self.llm.spec.name:
            raise LLMNotFoundError(
                Errors.E001.format(component=f"{self.component}.llms.{self.name}")
            )
        if self._limits is None and self.prompts != AUTO:
            # Raises an error if the prompt file is not valid, before the LLM is loaded for minutes.
            self._prompts(self._prompt_text())
        llm = self.llm.load()
        known = self._saved.get("fingerprint", llm.fingerprint)
        if not llm.has_fingerprint(known, self.name):
            raise LLMMismatchError(
                Errors.E067.format(
                    name=self.name,
                    component=self.component,
                    known=self._saved["llm"],
                    known_print=known,
                    given=self.llm.spec.name,
                    given_print=llm.fingerprint,
                )
            )
        self._limits = LLMLimits(llm.tokenizer, llm.max_length)
        return llm

    def _prompt_encoder(self, label_set: LabelSet) -> VoterPromptEncoder:
        key = (tuple(label_set.types.items()), label_set.lang)
        if key not in self._prompt_encoders:
            prompts = self._prompts(self._prompt_text(label_set.lang, self._uses_chat))
            tokenizer = self.limits.tokenizer
            encoder = VoterPromptEncoder(prompts, tokenizer, label_set, self._uses_chat, self.name)
            self._prompt_encoders = {key: encoder}
        return self._prompt_encoders[key]

    @property
    def _uses_chat(self) -> bool:
        has_template = bool(self.limits.tokenizer.hf.chat_template)
        if self.chat and not has_template:
            raise LLMNERError(Errors.E068.format(name=self.name, llm=self.llm.spec.name))
        return has_template if self.chat is None else self.chat

    @property
    def _settings(self) -> Dict[str, Any]:
        return {"prompts": self.prompts, "chat": self.chat}

    def _prompts(self, text: str) -> Prompts:
        return parse_prompts(f"prompts of '{self.name}' ({self.prompts})", text)

    def _prompt_text(self, lang: str = "en", chat: bool = False) -> str:
        # The prompts are saved with the pipeline, because the file may not exist where it is loaded.
        if "prompts" in self._saved:
            return self._saved["prompts"]
        return read_prompts(self.prompts, lang, chat)

    def __repr__(self) -> str:
        return f"LLMVoter({self.llm.spec.name!r}, prompts={self.prompts!r}, weight={self.weight})"

    def __getstate__(self) -> Dict[str, Any]:
        return {**self.__dict__, "_limits": None, "_prompt_encoders": {}}


def make_voter(
    llm: Optional[Union[str, LLM]] = None,
    prompts: str = AUTO,
    chat: Optional[bool] = None,
    weight: float = 1.0,
    adapter: Optional[str] = None,
) -> LLMVoter:
    """Create a voter of `el4ner_ensemble`. Registered as `spacy_llmner.Voter.v1` in `@misc`.

    llm (Optional[Union[str, LLM]]): The LLM: its name, or a handle on it (`@misc =
        "spacy_llmner.LLM.v1"`).
    prompts (str): A prompt file: "en_chat", "en_base", "zh_chat" or "zh_base" from the package, the path of
        your own file, or "auto" (default), which chooses a file of the package by the language of the
        pipeline and by whether the chat template is used.
    chat (Optional[bool]): Use the LLM's chat template (True), or prompt it line by line like a base model
        (False). None (default) uses the chat template if the LLM has one.
    weight (float): The weight of the vote, above 0. Default 1.
    adapter (Optional[str]): The folder of a trained padellm_ner or ra_it_ner in a saved pipeline. Its
        adapter is used on the LLM, whose weights stay shared. Default None.
    RETURNS (LLMVoter): The voter. The LLM is loaded at first use.
    RAISES (LLMNERError): If the weight is not above 0, or the prompt file is not valid. A missing prompt
        file raises an error only at first use, because a saved pipeline doesn't need it.
    """
    if Path(prompts).is_file():
        parse_prompts(f"prompts '{prompts}'", read_prompts(prompts, "en", False))
    if not (isinstance(weight, Real) and 0.0 < float(weight) < math.inf):
        raise wrong("llms.weight", "el4ner_ensemble", weight, "a number above 0")
    return LLMVoter(as_llm(llm or ""), prompts, chat, weight, adapter)


def default_voters() -> Dict[str, LLMVoter]:
    """RETURNS (Dict[str, LLMVoter]): The voters of an ensemble whose config has none, by name."""
    return {key: make_voter(make_llm(name)) for key, name in DEFAULT_LLMS.items()}


class ModelResidency:
    """Decides which LLMs are in memory.

    voters (Sequence[Voter]): All voters of the ensemble.
    resident (Optional[int]): Maximum number of LLMs in memory at the same time. None for all.
    all_fit (bool): Whether all LLMs can be in memory at the same time.
    """

    def __init__(self, voters: Sequence[Any], resident: Optional[int]) -> None:
        self.voters = list(voters)
        n_llms = len({voter.llm_key for voter in voters if voter.llm_key is not None})
        self.resident = n_llms if resident is None else min(resident, n_llms)
        self.all_fit = self.resident >= n_llms
        # The keys of the LLMs in memory, the least recently used one first.
        self._loaded: List[Any] = []
        # The names of the voters that have loaded their LLM at least once.
        self._known: set = set()
        self._lock = RLock()

    def __getstate__(self) -> Dict[str, Any]:
        # In another process, no LLM is in memory, and no voter has its tokenizer.
        state = {**self.__dict__, "_loaded": [], "_known": set()}
        del state["_lock"]
        return state

    def __setstate__(self, state: Dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = RLock()

    def exclusive(self) -> ContextManager[Any]:
        """RETURNS (ContextManager): Lets only one thread at a time ask the voters, unless all LLMs fit into
        memory. Otherwise a thread could unload the LLM that another thread is using."""
        return nullcontext() if self.all_fit else self._lock

    def reserve(self, voter: Any) -> None:
        """Reserve memory for the LLM of a voter, which the voter then loads itself. If too many LLMs are in
        memory, the least recently used one is unloaded.

        voter (Voter): The voter.
        """
        key = voter.llm_key
        if self.all_fit or key is None:
            return
        with self.exclusive():
            if key in self._loaded:
                self._loaded.remove(key)
            elif len(self._loaded) >= self.resident:
                oldest = self._loaded.pop(0)
                next(other for other in self.voters if other.llm_key == oldest).unload()
            self._loaded.append(key)

    def loaded_first(self) -> List[Any]:
        """RETURNS (List[Voter]): The voters, beginning with those whose LLM is in memory."""
        return sorted(self.voters, key=lambda voter: voter.llm_key not in self._loaded)

    def reserve_once(self, voter: Any) -> None:
        """Reserve memory for the LLM of a voter that has not loaded it yet. A voter has to load its LLM
        once to get its tokenizer.

        voter (Voter): The voter.
        """
        if voter.name not in self._known:
            self.reserve(voter)
            self._known.add(voter.name)

    def forget(self, voter: Any) -> None:
        """Undo `reserve_once`, because the LLM of a voter could not be loaded.

        voter (Voter): The voter.
        """
        self._known.discard(voter.name)
