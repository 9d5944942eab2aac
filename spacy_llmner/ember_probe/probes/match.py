"""The probe that finds labels given in words, without training.

It compares the vector of a span with the vector of a label's words. Both come from the same frozen LLM. The
comparison is trained once, on corpora with many labels (`spacy llmner pretrain-matcher`), and then works
for labels that it never saw. For a fixed set of labels it is linear in the span's vector, so it becomes the
output layer of the default probe. Streaming, decoding and further training are therefore those of the
default probe.
"""

import copy
from dataclasses import dataclass, field, replace
from typing import Dict, List, Mapping, Optional, Sequence, Tuple, Union

import numpy as np
import torch
import torch.nn.functional as F
from thinc.api import Model
from torch import nn

from ...errors import Errors, LLMNERError
from ...pipeline.base import settings_model
from ..features.batch import WordBatch
from ..features.words import WordFeatures, WordReader
from .base import Dims
from .segmentation import IMPOSSIBLE
from .structured import PREFIX, StructuredProbe, StructuredSettings, make_ember_probe
from .structured_stream import StructuredStream

# Dimensions of the space in which spans and labels are compared.
COMPARED = 96
# Principal components of the label vectors that are used.
COMPONENTS = 128
# Mentions from the training corpora with which the labels are calibrated.
STORED_MENTIONS = 700
# Standardized states of a label's words are clipped to -CLIP and CLIP.
CLIP = 8.0
# Added to the score of a span as an entity of any kind, which is too low if no label is named. It is the
# log-odds of a threshold of 0.15, which is best on sentences of this project and of CoNLL-2003 (dev).
MENTION_BIAS = 1.73

# The words for a label, or several phrases whose vectors are averaged.
Words = Union[str, Sequence[str]]
# The states of a label's phrases, or the index of a label that a probe already has.
Label = Union[torch.Tensor, int]


@dataclass(frozen=True)
class MatchSettings:
    """See make_ember_match."""

    probe: StructuredSettings
    weights: Optional[str] = None
    label_words: Mapping[str, Words] = field(default_factory=dict)
    label_descriptions: Mapping[str, str] = field(default_factory=dict)
    ask_llm: bool = False
    mentions: bool = False

    @property
    def streams(self) -> bool:
        return self.probe.streams and not self.ask_llm

    @property
    def max_words(self) -> int:
        return self.probe.max_words

    def reader(self, dims: Dims, max_batch_tokens: int = 2048) -> WordReader:
        """RETURNS (WordReader): See StructuredSettings."""
        return self.probe.reader(dims, max_batch_tokens)

    def build(self, dims: Dims) -> "MatchProbe":
        n_layers = len(self.reader(dims).layers)
        if self.mentions:
            return MentionProbe(self.probe, dims, n_layers, only_best=not self.ask_llm)
        return MatchProbe(self.probe, dims, n_layers)


def make_ember_match(
    weights: Optional[str] = None,
    label_words: Optional[Dict[str, Union[str, List[str]]]] = None,
    label_descriptions: Optional[Dict[str, str]] = None,
    layers: Optional[List[int]] = None,
    width: int = 256,
    max_words: int = 8,
    prefix: str = PREFIX,
) -> Model:
    """Create the settings of a probe for labels in words.

    Registered as `spacy_llmner.EmberMatch.v1` in `@architectures`.

    weights (Optional[str]): A folder that `spacy llmner pretrain-matcher` has written; None for the weights
        that come with the package for the LLMs of the catalogue.
    label_words (Optional[Dict[str, Union[str, List[str]]]]): The words that stand for a label, such as
        {"PER": "person"}, or several synonyms. A label without an entry stands for itself, and common
        abbreviations such as "PER" are known.
    label_descriptions (Optional[Dict[str, str]]): Descriptions of labels, which the LLM reads after the
        label's words.
    layers (Optional[List[int]]): See make_ember_probe. This setting and those below must be the ones with
        which the weights were made.
    width (int): Width of the probe's own layers.
    max_words (int): See make_ember_probe.
    prefix (str): See make_ember_probe.
    RETURNS (Model): Carries the settings.
    RAISES (LLMNERError): If a setting is invalid.
    """
    made = make_ember_probe(layers, width, max_words, prefix=prefix)
    settings = MatchSettings(
        made.attrs["settings"],
        weights,
        dict(label_words or {}),
        dict(label_descriptions or {}),
    )
    return settings_model("ember_match", settings)


def model_for(
    name: str, model: Model, labels: Optional[Sequence[str]], mode: str, ask_llm: bool
) -> Model:
    """Choose the model of a component.

    name (str): Name of the component, for error messages.
    model (Model): The model in the config.
    labels (Optional[Sequence[str]]): The labels in the config.
    mode (str): "labels", or "mentions" to find entities of any kind.
    ask_llm (bool): The LLM chooses among the labels.
    RETURNS (Model): EmberMatch if labels, mentions or the LLM's choice are asked for with the default
        model, otherwise the model itself.
    RAISES (LLMNERError): If they are asked for with another model.
    """
    mentions = mode == "mentions"
    if not labels and not mentions and not ask_llm:
        return model
    if model.attrs["settings"] == make_ember_probe().attrs["settings"]:
        model = make_ember_match()
    settings = model.attrs["settings"]
    if not isinstance(settings, MatchSettings):
        raise LLMNERError(Errors.E149.format(name=name, model=model.name))
    return settings_model("ember_match", replace(settings, mentions=mentions, ask_llm=ask_llm))


class Matcher(nn.Module):
    """Compares span vectors with label vectors.

    head (int): Length of a span vector.
    states (int): Numbers that describe a label: layers times width.
    """

    label_mean: torch.Tensor
    label_std: torch.Tensor
    label_center: torch.Tensor
    components: torch.Tensor
    mentions: torch.Tensor
    bias: torch.Tensor

    def __init__(self, head: int, states: int) -> None:
        super().__init__()
        self.mention = nn.Linear(head, 1)
        self.span = nn.Linear(head, COMPARED)
        self.label = nn.Linear(COMPONENTS, COMPARED)
        self.sharpness = nn.Parameter(torch.tensor(1.0))
        self.register_buffer("label_mean", torch.zeros(states))
        self.register_buffer("label_std", torch.ones(states))
        self.register_buffer("label_center", torch.zeros(states))
        self.register_buffer("components", torch.zeros(states, COMPONENTS))
        # Span vectors of mentions of the training corpora.
        self.register_buffer("mentions", torch.zeros(STORED_MENTIONS, head))
        # Added to all scores. Chosen on types that were held out in training.
        self.register_buffer("bias", torch.zeros(()))

    def reduce(self, states: torch.Tensor) -> torch.Tensor:
        """states (Tensor): Hidden states of labels' words, shape (labels, layers * width).
        RETURNS (Tensor): Their principal components, scaled to length sqrt(COMPONENTS), shape (labels,
            COMPONENTS).
        """
        x = ((states - self.label_mean) / self.label_std).clamp(-CLIP, CLIP)
        reduced = (F.normalize(x, dim=-1) - self.label_center) @ self.components
        return F.normalize(reduced, dim=-1) * COMPONENTS**0.5

    def fit_reduction(self, states: torch.Tensor) -> None:
        """Compute the principal components of the label vectors of a large vocabulary.

        states (Tensor): Shape (labels, layers * width).
        """
        self.label_mean.copy_(states.mean(0))
        self.label_std.copy_(states.std(0) + 1e-3)
        x = ((states - self.label_mean) / self.label_std).clamp(-CLIP, CLIP)
        x = F.normalize(x, dim=-1)
        self.label_center.copy_(x.mean(0))
        centered = x - self.label_center
        _, directions = torch.linalg.eigh(centered.T @ centered)  # ascending eigenvalues
        found = directions.flip(1)[:, :COMPONENTS]
        self.components.zero_()[:, : found.shape[1]] = found

    def forward(self, spans: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """spans (Tensor): Shape (..., head).
        labels (Tensor): From `compared_labels`, shape (labels, COMPARED).
        RETURNS (Tensor): How well each label matches each span, shape (..., labels).
        """
        return self.span(spans) @ labels.T * (self.sharpness / COMPARED**0.5)

    def compared_labels(self, reduced: torch.Tensor) -> torch.Tensor:
        """reduced (Tensor): From `reduce`.
        RETURNS (Tensor): Shape (labels, COMPARED), of length sqrt(COMPARED).
        """
        return F.normalize(self.label(reduced), dim=-1) * COMPARED**0.5

    @torch.no_grad()
    def output_layer(self, reduced: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
        """Convert labels to a linear layer that scores spans.

        The match with a label is calibrated with its mean and its standard deviation over the stored
        mentions. Without this, general labels would win over specific ones.

        reduced (Tensor): From `reduce`, shape (labels, COMPONENTS).
        RETURNS (Tuple[Tensor, Tensor]): Weight, shape (labels, head), and bias, shape (labels,).
        """
        labels = self.compared_labels(reduced)
        matches = self(self.mentions, labels)
        scale = 1 / matches.std(0).clamp(min=1e-3).sqrt()
        weight = labels @ self.span.weight * (self.sharpness / COMPARED**0.5)
        bias = labels @ self.span.bias * (self.sharpness / COMPARED**0.5) - matches.mean(0)
        return (
            weight * scale[:, None] + self.mention.weight,
            bias * scale + self.mention.bias + self.bias,
        )


class MatchProbe(StructuredProbe):
    """The default probe, with an output layer that is computed from the labels' words.

    settings (StructuredSettings): Sizes and direction.
    dims (Dims): Sizes of the LLM, and the number of labels.
    n_layers (int): Number of layers that are read.
    """

    def __init__(self, settings: StructuredSettings, dims: Dims, n_layers: int) -> None:
        super().__init__(settings, dims, n_layers)
        self.matcher = Matcher(self.output.in_features, n_layers * dims.width)

    def set_labels(self, labels: Sequence[Label]) -> None:
        """Replace the labels.

        labels (Sequence[Label]): Each is the hidden states of its phrases, shape (phrases, layers *
            width), or the index of a present label, whose output is kept.
        """
        self.output = self._output(labels)

    def with_labels(self, labels: Sequence[Label]) -> "MatchProbe":
        """RETURNS (MatchProbe): A probe with other labels, which shares all other weights. See
        `set_labels`.
        """
        other = copy.copy(self)
        other._modules = {**self._modules, "output": self._output(labels)}
        return other

    @torch.no_grad()
    def _output(self, labels: Sequence[Label]) -> nn.Linear:
        present = self.output
        output = nn.Linear(present.in_features, len(labels), device=present.weight.device)
        for row, label in enumerate(labels):
            if isinstance(label, int):
                weight, bias = present.weight[label], present.bias[label]
            else:
                reduced = self.matcher.reduce(label.to(present.weight)).mean(0, keepdim=True)
                weights, biases = self.matcher.output_layer(reduced)
                weight, bias = weights[0], biases[0]
            output.weight[row], output.bias[row] = weight, bias
        return output


class MentionProbe(MatchProbe):
    """Finds entities of any kind, and gives each the label that matches best.

    Its first output is the score of a span as an entity of any kind, the others are those of the labels.

    settings (StructuredSettings): Sizes and direction.
    dims (Dims): Sizes of the LLM, and the number of labels.
    n_layers (int): Number of layers that are read.
    only_best (bool): Only the best label of a span is possible. False if the LLM is asked.
    """

    def __init__(
        self, settings: StructuredSettings, dims: Dims, n_layers: int, only_best: bool = True
    ) -> None:
        super().__init__(settings, replace(dims, n_labels=dims.n_labels + 1), n_layers)
        self.only_best = only_best

    def forward(self, batch: WordBatch) -> Tuple[torch.Tensor, ...]:
        """RETURNS (Tuple[Tensor]): See StructuredProbe. The scores of a span's possible labels add up to
        its score as an entity of any kind.
        """
        (scores,) = super().forward(batch)
        if not self.only_best:
            return (scores[..., :1] + MENTION_BIAS + scores[..., 1:].log_softmax(-1),)
        best = scores[..., 1:].argmax(-1, keepdim=True)
        only = torch.full_like(scores[..., 1:], IMPOSSIBLE)
        return (only.scatter(-1, best, scores[..., :1] + MENTION_BIAS),)

    def stream(self) -> "MentionStream":
        return MentionStream(self.stream_weights())


class MentionStream(StructuredStream):
    """Scores a text word by word, with the same results as MentionProbe.forward.

    weights (StreamWeights): The probe's weights.
    """

    def push(self, word: WordFeatures, surface: np.ndarray) -> Optional[np.ndarray]:
        """See StructuredStream."""
        return _only_best(super().push(word, surface))

    def end(self) -> Optional[np.ndarray]:
        """See StructuredStream."""
        return _only_best(super().end())


def _only_best(row: Optional[np.ndarray]) -> Optional[np.ndarray]:
    if row is None:
        return None
    is_best = np.arange(row.shape[1] - 1) == row[:, 1:].argmax(1)[:, None]
    return np.where(is_best, row[:, :1] + MENTION_BIAS, IMPOSSIBLE)
