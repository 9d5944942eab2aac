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
)

from ...decoding.engine import Decoder
from ...errors import Errors, LLMMismatchError, LLMNERError, LLMNotFoundError, wrong
from ...llm.loading import LoadedLLM
from ...llm.registry import LLM, make_llm
from ...llm.tokenization import LLMTokenizer
from ...llm.word_tokens import word_tokens
from ..interfaces import Asked, Chars, Task
from .prompt_files import AUTO, Prompts, parse_prompts, read_prompts
from .prompt_tokens import Wording
from .saved_adapter import SavedAdapter
from .session import LLMSession

# Those of an ensemble whose config names none: what `spacy llmner download` has.
DEFAULT_LLMS = {"gemma": "gemma-3-270m", "smollm2": "smollm2-135m-instruct"}


class Facts(NamedTuple):
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
        self._facts: Optional[Facts] = None
        self._wordings: Dict[Any, Wording] = {}

    @property
    def memory(self) -> Any:
        return self.llm.key

    @property
    def manner(self) -> Any:
        try:
            llm = self.memory
        except LLMNERError:  # of a device that is not there
            llm = self.llm.spec
        adapter = self.adapter and self.adapter.place
        for wording in self._wordings.values():  # then it is known what "auto" means
            return llm, adapter, wording.prompts, wording.chat
        return llm, adapter, self.prompts, self.chat

    def join(self, name: str, max_batch_tokens: int, component: str) -> None:
        self.name = name
        self.component = component
        self.max_batch_tokens = max_batch_tokens

    def describe(self, asked: Asked) -> Dict[str, Any]:
        self._saved = {}
        llm = self._load()
        _, adapter = self._attached(llm)
        self._wordings = {}
        self._wording(asked)
        return {
            "llm": self.llm.spec.name,
            "fingerprint": llm.fingerprint,
            "prompts": self._prompt_text(asked.lang, self._chats),
            "settings": self._settings,
            "adapter": adapter,
        }

    def restore(self, saved: Mapping[str, Any]) -> None:
        self._saved = dict(saved)
        if self._saved.get("settings", self._settings) != self._settings:
            # Others were given when the pipeline was loaded.
            self._saved.pop("prompts", None)
        self._wordings = {}

    def lengths(self, text: str, words: Sequence[Chars]) -> List[int]:
        encoded = word_tokens(self.facts.tokenizer, text, words, inside=True)
        ends = [-1, *encoded.last.tolist()]
        return [end - before for before, end in zip(ends, ends[1:])]

    def room(self, asked: Asked) -> int:
        # The text stands there once, then the list of its spans and a question about one of them.
        around, max_length = self._wording(asked).longest(), self.facts.max_length
        room = (max_length - around) // 3
        if room < 1:
            raise LLMNERError(
                Errors.E066.format(name=self.name, tokens=around, max_length=max_length)
            )
        return room

    def size(self, task: Task, asked: Asked) -> int:
        wording = self._wording(asked)
        # The instruction is there once for all.
        return len(wording.stem(task.shown, task.demonstrations)) - len(wording.instruction.ids)

    def session(self, tasks: Sequence[Task], asked: Asked, *, keep: bool) -> LLMSession:
        wording = self._wording(asked)
        decoder = self._decoder(prefix=wording.instruction, max_slots=self.max_batch_tokens)
        return LLMSession(decoder, wording, tasks, keep=keep)

    def unload(self) -> None:
        self.llm.unload()

    @property
    def facts(self) -> Facts:
        if self._facts is None:
            self._load()
        assert self._facts is not None
        return self._facts

    def _decoder(self, **settings: Any) -> Decoder:
        llm = self._load()
        return Decoder(llm, self._attached(llm)[0], **settings)

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
        if self._facts is None and self.prompts != AUTO:
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
        self._facts = Facts(llm.tokenizer, llm.max_length)
        return llm

    def _wording(self, asked: Asked) -> Wording:
        key = (tuple(asked.types.items()), asked.lang)
        if key not in self._wordings:
            prompts = self._prompts(self._prompt_text(asked.lang, self._chats))
            made = Wording(prompts, self.facts.tokenizer, asked, self._chats, self.name)
            self._wordings = {key: made}
        return self._wordings[key]

    @property
    def _chats(self) -> bool:
        has_template = bool(self.facts.tokenizer.hf.chat_template)
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

    def __getstate__(self) -> Dict[str, Any]:
        return {**self.__dict__, "_facts": None, "_wordings": {}}


def make_voter(
    llm: Optional[LLM] = None,
    prompts: str = AUTO,
    chat: Optional[bool] = None,
    weight: float = 1.0,
    adapter: Optional[str] = None,
) -> LLMVoter:
    """Registered as `spacy_llmner.Voter.v1` in `@misc`: one member of `el4ner_ensemble`.

    llm (Optional[LLM]): Its LLM (`@misc = "spacy_llmner.LLM.v1"`).
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
    return LLMVoter(llm or make_llm(), prompts, chat, weight, adapter)


def default_voters() -> Dict[str, LLMVoter]:
    """RETURNS (Dict[str, LLMVoter]): The voters of an ensemble whose config names none."""
    return {key: make_voter(make_llm(name)) for key, name in DEFAULT_LLMS.items()}


class Turns:
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

    def alone(self) -> ContextManager[Any]:
        """RETURNS (ContextManager): Lets one thread at a time ask the voters, unless all LLMs fit: another
        one would send away the LLM that is being asked."""
        return nullcontext() if self.all_fit else self._lock

    def take(self, voter: Any) -> None:
        """Make room for the LLM of a voter: the one that waited longest goes."""
        key = voter.memory
        if self.all_fit or key is None:
            return
        with self.alone():
            if key in self._present:
                self._present.remove(key)
            elif len(self._present) >= self.resident:
                oldest = self._present.pop(0)
                next(other for other in self.voters if other.memory == oldest).unload()
            self._present.append(key)

    def present_first(self) -> List[Any]:
        """RETURNS (List[Any]): The voters, those first that nothing has to be loaded for."""
        return sorted(self.voters, key=lambda voter: voter.memory not in self._present)

    def meet(self, voter: Any) -> None:
        """Make room if the voter was never asked anything: it has to load its LLM once to know its
        tokenizer."""
        if voter.name not in self._met:
            self.take(voter)
            self._met.add(voter.name)

    def forget(self, voter: Any) -> None:
        """Take back `meet`: its LLM could not be loaded."""
        self._met.discard(voter.name)
