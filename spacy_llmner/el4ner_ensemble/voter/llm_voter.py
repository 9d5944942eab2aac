"""The members of the ensemble: an LLM of the shared pool with prompts of its own."""

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
from ..interfaces import Chars, LabelSet, Task
from .prompt_files import AUTO, Prompts, parse_prompts, read_prompts
from .prompt_tokens import VoterPromptEncoder
from .saved_adapter import SavedAdapter
from .session import LLMSession

# Those of an ensemble whose config names none: what `spacy llmner download` has.
DEFAULT_LLMS = {"gemma": "gemma-3-270m", "smollm2": "smollm2-135m-instruct"}


class LLMLimits(NamedTuple):
    """What stays known of an LLM while another one takes its place in memory."""

    tokenizer: LLMTokenizer
    max_length: int


class LLMVoter:
    """See Voter. Nothing is loaded before first use.

    llm (LLM): Handle on the shared LLM.
    prompts (str): "auto", a name of the package's prompts, or a file.
    chat (Optional[bool]): Ask by the LLM's chat template; None if it has one.
    weight (float): What its vote counts.
    adapter (Optional[str]): Folder of a component whose adapter is used.
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
    def memory(self) -> Any:
        return self.llm.key

    @property
    def identity(self) -> Any:
        try:
            llm = self.memory
        except LLMNERError:  # of a device that is not there
            llm = self.llm.spec
        adapter = self.adapter and self.adapter.place
        for prompt_encoder in self._prompt_encoders.values():  # then it is known what "auto" means
            return llm, adapter, prompt_encoder.prompts, prompt_encoder.chat
        return llm, adapter, self.prompts, self.chat

    def join(self, name: str, max_batch_tokens: int, component: str) -> None:
        self.name = name
        self.component = component
        self.max_batch_tokens = max_batch_tokens

    def describe(self, label_set: LabelSet) -> Dict[str, Any]:
        self._saved = {}
        llm = self._load()
        _, adapter = self._attached(llm)
        self._prompt_encoders = {}
        self._prompt_encoder(label_set)
        return {
            "llm": self.llm.spec.name,
            "fingerprint": llm.fingerprint,
            "prompts": self._prompt_text(label_set.lang, self._chats),
            "settings": self._settings,
            "adapter": adapter,
        }

    def restore(self, saved: Mapping[str, Any]) -> None:
        self._saved = dict(saved)
        if self._saved.get("settings", self._settings) != self._settings:
            # Others were given when the pipeline was loaded.
            self._saved.pop("prompts", None)
        self._prompt_encoders = {}

    def lengths(self, text: str, words: Sequence[Chars]) -> List[int]:
        encoded = word_tokens(self.limits.tokenizer, text, words, inside=True)
        ends = [-1, *encoded.last.tolist()]
        return [end - before for before, end in zip(ends, ends[1:])]

    def capacity(self, label_set: LabelSet) -> int:
        # The text stands there once, then the list of its spans and a question about one of them.
        around, max_length = self._prompt_encoder(label_set).longest(), self.limits.max_length
        capacity = (max_length - around) // 3
        if capacity < 1:
            raise LLMNERError(
                Errors.E066.format(name=self.name, tokens=around, max_length=max_length)
            )
        return capacity

    def size(self, task: Task, label_set: LabelSet) -> int:
        prompt_encoder = self._prompt_encoder(label_set)
        # The instruction is there once for all.
        return len(prompt_encoder.stem(task.shown, task.demonstrations)) - len(
            prompt_encoder.instruction.ids
        )

    def session(self, tasks: Sequence[Task], label_set: LabelSet, *, keep: bool) -> LLMSession:
        prompt_encoder = self._prompt_encoder(label_set)
        decoder = self._decoder(prefix=prompt_encoder.instruction, max_slots=self.max_batch_tokens)
        return LLMSession(decoder, prompt_encoder, tasks, keep=keep)

    def unload(self) -> None:
        self.llm.unload()

    @property
    def limits(self) -> LLMLimits:
        if self._limits is None:
            self._load()
        assert self._limits is not None
        return self._limits

    def _decoder(self, **settings: Any) -> DecodingEngine:
        llm = self._load()
        return DecodingEngine(llm, self._attached(llm)[0], **settings)

    def _attached(self, llm: LoadedLLM) -> Tuple[Any, Optional[str]]:
        """RETURNS (Tuple[Any, Optional[str]]): The LLM's decoder with the adapter, and what identifies it.
        RAISES (LLMNERError): If it can't be used, or is another one than at initialization."""
        if self.adapter is None:
            return llm.decoder, None
        name = f"'{self.name}' of '{self.component}'"
        view, known = self.adapter.attach(llm, name)
        if self._saved.get("adapter", known) != known:
            reason = "it is another one than at initialization: initialize again to use it"
            path = self.adapter.folder
            raise LLMMismatchError(Errors.E075.format(path=path, name=name, reason=reason))
        return view, known

    def _load(self) -> LoadedLLM:
        """RAISES (LLMNERError): If the LLM isn't there, or is another one than at initialization."""
        if not self.llm.spec.name:
            raise LLMNotFoundError(
                Errors.E001.format(component=f"{self.component}.llms.{self.name}")
            )
        if self._limits is None and self.prompts != AUTO:
            # What is wrong with a file is told before minutes of loading.
            self._prompts(self._prompt_text())
        llm = self.llm.load()
        known = self._saved.get("fingerprint", llm.fingerprint)
        if known != llm.fingerprint:
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
            prompts = self._prompts(self._prompt_text(label_set.lang, self._chats))
            made = VoterPromptEncoder(
                prompts, self.limits.tokenizer, label_set, self._chats, self.name
            )
            self._prompt_encoders = {key: made}
        return self._prompt_encoders[key]

    @property
    def _chats(self) -> bool:
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
        """The file may be gone where the pipeline is used: what was read is saved."""
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
    """Registered as `spacy_llmner.Voter.v1` in `@misc`: one member of `el4ner_ensemble`.

    llm (Optional[Union[str, LLM]]): Its LLM: a name, or a block (`@misc = "spacy_llmner.LLM.v1"`).
    prompts (str): "auto" goes by the pipeline's language and by whether the LLM is asked as in a chat;
        "en_chat", "en_base", "zh_chat" or "zh_base"; or the path of a file like these.
    chat (Optional[bool]): Ask by the LLM's chat template (true), or line by line as a base model (false);
        null by the chat template if it has one.
    weight (float): What its vote counts.
    adapter (Optional[str]): Folder of a trained padellm_ner or ra_it_ner in a saved pipeline, whose adapter
        is used on the LLM; the LLM's weights are still held once.
    RETURNS (LLMVoter): Nothing is loaded.
    RAISES (LLMNERError): If the weight is not above 0, or if prompts lack something. That there is no such
        file is told at first use: a saved pipeline does without.
    """
    if Path(prompts).is_file():
        parse_prompts(f"prompts '{prompts}'", read_prompts(prompts, "en", False))
    if not (isinstance(weight, Real) and 0.0 < float(weight) < math.inf):
        raise wrong("llms.weight", "el4ner_ensemble", weight, "a number above 0")
    return LLMVoter(as_llm(llm or ""), prompts, chat, weight, adapter)


def default_voters() -> Dict[str, LLMVoter]:
    """RETURNS (Dict[str, LLMVoter]): The voters of an ensemble whose config names none."""
    return {key: make_voter(make_llm(name)) for key, name in DEFAULT_LLMS.items()}


class ModelResidency:
    """Which LLMs are in memory.

    voters (Sequence[Any]): All of them.
    resident (Optional[int]): So many LLMs may be there at once; None for all.
    """

    def __init__(self, voters: Sequence[Any], resident: Optional[int]) -> None:
        self.voters = list(voters)
        n_llms = len({voter.memory for voter in voters if voter.memory is not None})
        self.resident = n_llms if resident is None else min(resident, n_llms)
        self.all_fit = self.resident >= n_llms
        self._present: List[Any] = []
        self._met: set = set()
        self._lock = RLock()

    def __getstate__(self) -> Dict[str, Any]:
        """Elsewhere no LLM is in memory, and no voter knows its tokenizer."""
        state = {**self.__dict__, "_present": [], "_met": set()}
        del state["_lock"]
        return state

    def __setstate__(self, state: Dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = RLock()

    def exclusive(self) -> ContextManager[Any]:
        """RETURNS (ContextManager): Lets one thread at a time ask the voters, unless all LLMs fit: another
        one would send away the LLM that is being asked."""
        return nullcontext() if self.all_fit else self._lock

    def load(self, voter: Any) -> None:
        """Make room for the LLM of a voter: the one that waited longest goes."""
        key = voter.memory
        if self.all_fit or key is None:
            return
        with self.exclusive():
            if key in self._present:
                self._present.remove(key)
            elif len(self._present) >= self.resident:
                oldest = self._present.pop(0)
                next(other for other in self.voters if other.memory == oldest).unload()
            self._present.append(key)

    def loaded_first(self) -> List[Any]:
        """RETURNS (List[Any]): The voters, those first that nothing has to be loaded for."""
        return sorted(self.voters, key=lambda voter: voter.memory not in self._present)

    def introduce(self, voter: Any) -> None:
        """Make room if the voter was never asked anything: it has to load its LLM once to know its
        tokenizer."""
        if voter.name not in self._met:
            self.load(voter)
            self._met.add(voter.name)

    def forget(self, voter: Any) -> None:
        """Take back `introduce`: its LLM could not be loaded."""
        self._met.discard(voter.name)
