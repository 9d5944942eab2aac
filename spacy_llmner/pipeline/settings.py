"""The settings of a component: a dict that accepts only the names it was created with."""

import warnings
from difflib import SequenceMatcher
from typing import Any, Dict, Iterable, Mapping, Tuple

from ..errors import Errors, LLMNERError, Warnings, check_values, is_at_least, wrong


class Settings(dict):
    """The settings in a component's `cfg`. Values can be changed at any time; a misspelled name is an
    error.

    name (str): The component's name, for messages.
    values (Mapping[str, Any]): The values of all settings.
    """

    def __init__(self, name: str, values: Mapping[str, Any]) -> None:
        super().__init__(values)
        self._name = name

    def __setitem__(self, setting: str, value: Any) -> None:
        """RAISES (LLMNERError): If the setting doesn't exist."""
        if setting not in self:
            raise unknown_setting(self._name, setting, self)
        super().__setitem__(setting, value)

    def update(self, *args: Any, **kwargs: Any) -> None:
        """RAISES (LLMNERError): If one of the settings doesn't exist."""
        for setting, value in dict(*args, **kwargs).items():
            self[setting] = value

    def setdefault(self, setting: str, default: Any = None) -> Any:
        """RAISES (LLMNERError): If the setting doesn't exist."""
        if setting not in self:
            raise unknown_setting(self._name, setting, self)
        return self[setting]

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Set saved values. Settings that don't exist in this version are ignored with a warning.

        saved (Mapping[str, Any]): The saved values.
        RAISES (ValueError): If the saved values are not a dict.
        """
        if not isinstance(saved, dict):
            raise ValueError("the settings are not a dict")
        unknown = sorted(set(saved) - set(self))
        if unknown:
            message = Warnings.W013.format(name=self._name, unknown=", ".join(unknown))
            warnings.warn(message, stacklevel=2)
        self.update({setting: value for setting, value in saved.items() if setting in self})

    def __reduce__(self) -> Tuple[Any, ...]:
        return Settings, (self._name, dict(self))


def check_cfg(name: str, cfg: Mapping[str, Any]) -> None:
    """Validate the settings that all components have. Users can change them in `cfg`, or in the file of a
    saved pipeline.

    name (str): The component's name.
    cfg (Mapping[str, Any]): The settings.
    RAISES (LLMNERError): For the first invalid value.
    """
    if not isinstance(cfg["spans_key"], str):
        raise wrong("spans_key", name, cfg["spans_key"], "a string")
    check_values(name, cfg, flags=("overwrite",))
    labels = cfg["labels"]
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise wrong("labels", name, labels, "a list of strings")
    corpus = cfg["corpus"]
    if corpus is not None and not (isinstance(corpus, dict) and _is_size(corpus)):
        raise wrong(
            "corpus", name, corpus, "null, or the numbers of `texts`, `tokens` and `entities`"
        )
    llm = cfg["llm"]
    if llm is not None and not (isinstance(llm, dict) and _describes_llm(llm)):
        must = "null, or the `name`, `fingerprint`, `n_layers`, `width` and `n_heads` of an LLM"
        raise wrong("llm", name, llm, must)


def _is_size(corpus: Mapping[str, Any]) -> bool:
    return all(is_at_least(0, corpus.get(key)) for key in ("texts", "tokens", "entities"))


def _describes_llm(llm: Mapping[str, Any]) -> bool:
    strings, sizes = ("name", "fingerprint"), ("n_layers", "width", "n_heads")
    return all(isinstance(llm.get(key), str) for key in strings) and all(
        is_at_least(1, llm.get(key)) for key in sizes
    )


def fill_settings(
    name: str, defaults: Mapping[str, Any], given: Mapping[str, Any]
) -> Dict[str, Any]:
    """Complete a component's keyword arguments with default values.

    name (str): The component's name.
    defaults (Mapping[str, Any]): The component's default config. Its blocks, such as `llm`, are not
        settings.
    given (Mapping[str, Any]): The arguments.
    RETURNS (Dict[str, Any]): All settings of the component.
    RAISES (LLMNERError): If one of the arguments is not a setting.
    """
    known = {setting: x for setting, x in defaults.items() if not isinstance(x, dict)}
    for setting in given:
        if setting not in known:
            raise unknown_setting(name, setting, known)
    return {**known, **given}


def unknown_setting(name: str, setting: str, known: Iterable[str]) -> LLMNERError:
    """RETURNS (LLMNERError): The error for a setting that a component doesn't have. It suggests a
    similar name.
    """
    known = sorted(known)
    nearest = max(known, key=lambda other: _similarity(setting, other))
    hint = f"Did you mean `{nearest}`? " if _similarity(setting, nearest)[0] > 0.6 else ""
    return LLMNERError(
        Errors.E081.format(name=name, setting=setting, hint=hint, known=", ".join(known))
    )


def _similarity(setting: str, other: str) -> Tuple[float, float]:
    """RETURNS (Tuple[float, float]): The fraction of the first name's characters that the second name
    contains in the same order, and the fraction of both names' characters that they have in common.
    """
    matcher = SequenceMatcher(None, str(setting), other)
    shared = sum(block.size for block in matcher.get_matching_blocks())
    return shared / max(len(str(setting)), 1), matcher.ratio()
