"""Build a matcher for labels in words, and change its labels."""

from typing import Dict, Iterable, List, Sequence, Set

import torch

from ...errors import Errors, LLMNERError
from ...llm.loading import LoadedLLM
from ...pipeline.labels import warn_about_unused
from ..probes.base import Dims
from ..probes.match import Label, MatchProbe, MatchSettings
from .answers import LabelJudge, usual_log_probs
from .corpora import ANYTHING
from .label_states import phrases_of, read_phrases
from .weights import OUTPUT, load_matcher

# Phrases whose states are kept. With SmolLM2, each takes 9 KB.
MAX_PHRASES = 10_000
# Stands for entities of any kind, in MentionProbe. No label is empty.
ANY_KIND = ""


class LabelReader:
    """Reads labels' words with the LLM. Each phrase is read once, unless there are too many.

    name (str): Name of the component, for error messages.
    settings (MatchSettings): Words and descriptions of the labels.
    """

    def __init__(self, name: str, settings: MatchSettings) -> None:
        self.name = name
        self.settings = settings
        self._states: Dict[str, torch.Tensor] = {}
        self._usual: Dict[str, float] = {}
        self._expected: Set[str] = set()
        self._warned = False

    def expect(self, labels: Iterable[str]) -> None:
        """Note labels that will be asked for, before the first words are read.

        labels (Iterable[str]): The labels. They are validated when they are used.
        """
        if not self._warned and isinstance(labels, Iterable):
            self._expected.update(label for label in labels if isinstance(label, str))

    def read(
        self, llm: LoadedLLM, layers: Sequence[int], labels: Sequence[str], present: Sequence[str]
    ) -> List[Label]:
        """llm (LoadedLLM): The LLM.
        layers (Sequence[int]): The layers that the probe reads.
        labels (Sequence[str]): The labels.
        present (Sequence[str]): The labels that the probe has already.
        RETURNS (List[Label]): The labels for `MatchProbe.set_labels`; for MentionProbe, "entities of any
            kind" is the first.
        RAISES (LLMNERError): If the words of a label are not valid.
        """
        if not self._warned:
            # Only once: other labels can be asked for with each text.
            self._warned = True
            known = list(dict.fromkeys([*present, *labels, *sorted(self._expected)]))
            words, descriptions = self.settings.label_words, self.settings.label_descriptions
            warn_about_unused(self.name, "model.label_words", words, known)
            warn_about_unused(self.name, "model.label_descriptions", descriptions, known)
        if self.settings.mentions:
            labels = [ANY_KIND, *labels]
            present = [ANY_KIND, *present] if present else []
        old = {label: k for k, label in enumerate(present)}
        phrases = {label: self._phrases(label) for label in labels if label not in old}
        wanted = {phrase for of_label in phrases.values() for phrase in of_label}
        states = self._states
        new = sorted(wanted - states.keys())
        if new:
            # A server gets new labels all the time.
            is_full = len(states) + len(new) > MAX_PHRASES
            kept = {phrase: states[phrase] for phrase in wanted & states.keys()}
            read = dict(zip(new, read_phrases(llm, layers, new)))
            # Another thread may use the old dictionary.
            states = self._states = {**(kept if is_full else states), **read}
        return [
            torch.stack([states[phrase] for phrase in phrases[label]])
            if label in phrases
            else old[label]
            for label in labels
        ]

    def judge(self, llm: LoadedLLM, labels: Sequence[str], max_batch_tokens: int) -> LabelJudge:
        """llm (LoadedLLM): The LLM.
        labels (Sequence[str]): The labels. Their words are asked for, without descriptions.
        max_batch_tokens (int): Tokens per forward pass.
        RETURNS (LabelJudge): Lets the LLM choose among the labels.
        """
        if len(labels) < 2:
            return LabelJudge(llm, [], {}, max_batch_tokens)
        phrases = [phrases_of(self.name, la, self.settings.label_words, {}) for la in labels]
        wanted = {phrase for of_label in phrases for phrase in of_label}
        usual = self._usual
        new = sorted(wanted - usual.keys())
        if new:
            kept = {phrase: usual[phrase] for phrase in wanted & usual.keys()}
            is_full = len(usual) + len(new) > MAX_PHRASES
            found = usual_log_probs(llm, new, max_batch_tokens)
            usual = self._usual = {**(kept if is_full else usual), **found}
        return LabelJudge(llm, phrases, usual, max_batch_tokens, self.settings.mentions)

    def _phrases(self, label: str) -> List[str]:
        if label == ANY_KIND:
            return list(ANYTHING)
        settings = self.settings
        return phrases_of(self.name, label, settings.label_words, settings.label_descriptions)

    def build(self, llm: LoadedLLM, dims: Dims, labels: Sequence[str]) -> MatchProbe:
        """Create a probe with trained weights.

        dims (Dims): Sizes of the LLM.
        labels (Sequence[str]): The labels.
        RETURNS (MatchProbe): The probe, on the LLM's device.
        RAISES (LLMNERError): If no weights for the LLM can be found, or if the file is incomplete.
        """
        path, weights = load_matcher(self.name, llm, self.settings)
        # A pipeline that is used first in inference mode can still be trained later.
        with torch.inference_mode(False):
            probe = self.settings.build(dims)
            missing = probe.load_state_dict(weights, strict=False).missing_keys
            if any(not key.startswith(OUTPUT) for key in missing):
                raise LLMNERError(Errors.E145.format(name=self.name, path=path))
            layers = self.settings.reader(dims).layers
            probe.set_labels(self.read(llm, layers, labels, []))
        return probe.to(llm.device).eval()
