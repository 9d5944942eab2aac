"""Settings of `el4ner_ensemble` that make no sense are said when it is built."""

from typing import Any, Dict, Mapping, Optional

from ..errors import Errors, LLMNERError, wrong
from .demonstrate import RETRIEVAL
from .tasks import Voter
from .votes import VOTES

CHOICES = {"retrieval": RETRIEVAL, "pre_extract": ("llm", "gold"), "vote": VOTES}
METHODS = ("join", "describe", "restore", "lengths", "room", "size", "session", "unload")


def check_settings(name: str, resident: Optional[int], **settings: Any) -> None:
    """RAISES (LLMNERError): About the first setting with a value that makes no sense."""
    for setting, known in CHOICES.items():
        if settings[setting] not in known:
            raise wrong(setting, name, settings[setting], f"one of {', '.join(known)}")
    if not 0.0 <= settings["verify_threshold"] <= 1.0:
        raise wrong("verify_threshold", name, settings["verify_threshold"], "between 0 and 1")
    for setting in ("k", "pool_size"):
        if settings[setting] < 0:
            raise wrong(setting, name, settings[setting], "0 or more")
    for setting in ("window", "max_batch_tokens"):
        if settings[setting] < 1:
            raise wrong(setting, name, settings[setting], "positive")
    if resident is not None and resident < 1:
        raise wrong("resident", name, resident, "positive, or null for all LLMs")


def check_voters(name: str, voters: Mapping[str, Any], verifier: Optional[str]) -> Dict[str, Voter]:
    """RETURNS (Dict[str, Voter]): The voters in the order of their names: that of a config file gets lost.
    RAISES (LLMNERError): If one is no voter, if two are the same, or if the verifier is none of them."""
    known: Dict[Any, str] = {}
    for key in sorted(voters):
        voter = voters[key]
        if not all(hasattr(voter, method) for method in METHODS):
            given = type(voter).__name__
            raise LLMNERError(Errors.E071.format(voter=key, name=name, given=given))
        other = known.setdefault(voter.manner, key)
        if other != key:
            raise LLMNERError(Errors.E060.format(voter=key, name=name, other=other))
    if verifier is not None and verifier not in voters:
        listed = ", ".join(sorted(voters))
        raise LLMNERError(Errors.E061.format(verifier=verifier, name=name, known=listed))
    return {key: voters[key] for key in sorted(voters)}
