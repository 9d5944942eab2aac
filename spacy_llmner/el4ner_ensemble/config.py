"""The settings of `el4ner_ensemble`: default values and validation."""

from numbers import Real
from typing import Any, Callable, Dict, Mapping, Optional

from thinc.api import Config

from ..errors import Errors, LLMNERError, check_values, is_at_least, wrong
from ..pipeline.labels import encodable
from .demonstrations.retrieve import RETRIEVAL
from .interfaces import Voter
from .voting import VOTES

default_config = """
[el4ner_ensemble]
labels = null
k = 5
pool_size = 200
retrieval = "span"
pre_extract = "llm"
vote = "majority"
verify = true
verifier = null
verify_threshold = 0.5
skip_unanimous = false
resident = null
spans_key = "llmner"
overwrite = true
provenance = false
window = 256
max_batch_tokens = 2048

[el4ner_ensemble.llms]

[el4ner_ensemble.label_words]

[el4ner_ensemble.pos_weights]

[el4ner_ensemble.encoder]
@misc = "spacy_llmner.SentenceEncoder.v1"

[el4ner_ensemble.scorer]
@scorers = "spacy_llmner.ner_scorer.v1"
"""

DEFAULT_CONFIG = Config().from_str(default_config)["el4ner_ensemble"]
CHOICES = {"retrieval": RETRIEVAL, "pre_extract": ("llm", "gold"), "vote": VOTES}
FLAGS = ("verify", "skip_unanimous", "overwrite", "provenance")
METHODS = (
    "register",
    "prepare",
    "restore",
    "word_lengths",
    "capacity",
    "count_tokens",
    "session",
    "unload",
)
ATTRIBUTES = ("weight", "llm_key", "identity")


def check_settings(name: str, resident: Optional[int], **settings: Any) -> None:
    """Validate settings of the component.

    name (str): The name of the component.
    resident (Optional[int]): Maximum number of LLMs in memory.
    settings: The other settings, by name.
    RAISES (LLMNERError): For the first setting with a value that is not valid.
    """
    least = {"k": 0, "pool_size": 0, "window": 1, "max_batch_tokens": 1}
    check_values(
        name, settings, choices=CHOICES, shares=("verify_threshold",), least=least, flags=FLAGS
    )
    for setting, fits in SAVED.items():
        if setting in settings and not fits(settings[setting]):
            raise wrong(setting, name, settings[setting], "of the type that the config expects")
    if resident is not None and not is_at_least(1, resident):
        raise wrong("resident", name, resident, "positive, or null for all LLMs")


def check_voters(name: str, voters: Mapping[str, Any], verifier: Optional[str]) -> Dict[str, Voter]:
    """Validate the voters, and sort them.

    name (str): The name of the component.
    voters (Mapping[str, Any]): The voters, by name.
    verifier (Optional[str]): The name of the verifier.
    RETURNS (Dict[str, Voter]): The voters, in the order of their names. (A config is sorted when it is
        saved, so the original order would be lost.)
    RAISES (LLMNERError): If an object is not a voter, if two voters are the same, or if the verifier is not
        one of them.
    """
    for key in sorted(voters):
        missing = [x for x in (*METHODS, *ATTRIBUTES) if not _has(voters[key], x)]
        if missing:
            given, listed = type(voters[key]).__name__, ", ".join(missing)
            message = Errors.E071.format(voter=key, name=name, given=given, missing=listed)
            raise LLMNERError(message)
    check_different(name, voters)
    check_verifier(name, voters, verifier)
    return {key: voters[key] for key in sorted(voters)}


def check_verifier(name: str, voters: Mapping[str, Any], verifier: Optional[str]) -> None:
    """RAISES (LLMNERError): If the verifier is not one of the voters."""
    if verifier is not None and verifier not in voters:
        known = ", ".join(sorted(voters))
        raise LLMNERError(Errors.E061.format(verifier=verifier, name=name, known=known))


def check_different(name: str, voters: Mapping[str, Any]) -> None:
    """Check that no two voters are the same.

    This can be called again after the LLMs were loaded, since only then it is known what "auto" means.

    RAISES (LLMNERError): If two voters have equal identities.
    """
    known: Dict[Any, str] = {}
    for key in sorted(voters):
        other = known.setdefault(voters[key].identity, key)
        if other != key:
            raise LLMNERError(Errors.E060.format(voter=key, name=name, other=other))


def check_saved(cfg: Any) -> Dict[str, Any]:
    """Check the types of saved settings. Most values are validated only when they are used.

    cfg (Any): The content of a saved `cfg`.
    RETURNS (Dict[str, Any]): The same.
    RAISES (ValueError): If it is damaged.
    """
    if not isinstance(cfg, dict):
        raise ValueError(f"cfg is {cfg!r:.40}")
    for setting, fits in SAVED.items():
        if setting in ALWAYS_SAVED and setting not in cfg:
            raise ValueError(f"cfg has no '{setting}'")
        if setting in cfg and not fits(cfg[setting]):
            raise ValueError(f"'{setting}' in cfg is {cfg[setting]!r:.40}")
    return cfg


def _is_string_list(values: Any) -> bool:
    strings = isinstance(values, list) and all(isinstance(x, str) for x in values)
    return strings and encodable(values)


def _is_dict_of(values: Any, kind: Any) -> bool:
    return isinstance(values, dict) and all(isinstance(x, kind) for x in values.values())


SAVED: Dict[str, Callable[[Any], bool]] = {
    "labels": _is_string_list,
    "read_labels": _is_string_list,
    "lang": lambda x: isinstance(x, str),
    "verifier": lambda x: x is None or isinstance(x, str),
    "label_words": lambda x: _is_dict_of(x, str),
    "pos_weights": lambda x: _is_dict_of(x, Real),
    "voters": lambda x: _is_dict_of(x, dict),
    "factors": lambda x: _is_dict_of(x, dict) and all(_is_dict_of(of, Real) for of in x.values()),
    "weights": lambda x: _is_dict_of(x, Real),
}
ALWAYS_SAVED = ("labels", "lang", "verifier", "voters")


def _has(voter: Any, attribute: str) -> bool:
    try:
        return hasattr(voter, attribute)
    except LLMNERError:  # the attribute exists, but the LLM's device doesn't
        return True
