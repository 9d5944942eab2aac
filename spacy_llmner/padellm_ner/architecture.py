"""The architecture of `padellm_ner`: its wording, and what is trained of the LLM."""

from dataclasses import dataclass, field
from typing import Any, Dict, Optional, Sequence, Union

from thinc.api import Model

from ..errors import Errors, LLMNERError, check_values, wrong
from ..llm.loading import LoadedLLM
from ..llm.lora import AdapterSettings
from ..pipeline.adapter_pipe import check_llm, make_adapter_settings, qualified
from ..pipeline.base import settings_model
from .templates import TEMPLATES, Template

LOSSES = ("allowed", "raw")


@dataclass(frozen=True)
class PaDeLLMSettings:
    """See make_padellm."""

    template: Template
    label_words: Dict[str, str] = field(default_factory=dict)
    adapter: AdapterSettings = AdapterSettings()
    learn_index: bool = True
    loss: str = "allowed"

    def check(self, name: str, labels: Sequence[str], llm: LoadedLLM) -> None:
        """RAISES (LLMNERError): If a setting does not fit the labels or the LLM."""
        check_llm(name, self.adapter, llm)
        if not self.learn_index and "{count}" not in self.template.mention:
            must = "true: in this template nothing stands between the number and a mention"
            raise wrong("learn_index", name, self.learn_index, must)
        if not self.learn_index and self.loss == "allowed":
            must = "true: with loss = 'allowed' what has no choice is not learnt"
            raise wrong("learn_index", name, self.learn_index, must)
        template = self.template
        if self.loss == "raw" and not template.count and "{count}" not in template.mention:
            must = "'allowed': with this template, number and index of a mention stand at the same place"
            raise wrong("loss", name, self.loss, must)
        asked = [self.label_words.get(label, label) for label in labels]
        if len(set(asked)) < len(asked):
            must = f"such that each of {', '.join(labels)} goes by another word"
            raise wrong("label_words", name, self.label_words, must)

    def trained_with(self, labels: Sequence[str]) -> Dict[str, Any]:
        """RETURNS (Dict[str, Any]): What an adapter fits, besides its own settings."""
        words = {label: self.label_words.get(label, label) for label in labels}
        return {**qualified("template", self.template), "label_words": words}


def make_padellm(
    template: Union[str, Template] = "compact",
    label_words: Optional[Dict[str, str]] = None,
    rank: int = 16,
    alpha: int = 32,
    first_layer: Optional[int] = None,
    learn_index: bool = True,
    loss: str = "allowed",
) -> Model:
    """Registered as `spacy_llmner.PaDeLLM.v1` in `@architectures`.

    template (Union[str, Template]): "compact", "published_en", "published_zh", or a wording of your own
        (`@misc = "spacy_llmner.Template.v1"`).
    label_words (Optional[Dict[str, str]]): What labels are called in the prompt, such as
        {"PER": "person"}; others go by their own name.
    rank (int): Rank of the LoRA adapter. 0 trains copies of the LLM's weights instead, but for the
        embeddings: with `first_layer` 0 as published, but that takes the LLM's memory and disk space once
        more for this component.
    alpha (int): LoRA's scale is alpha / rank.
    first_layer (Optional[int]): Layers of the LLM below it are left as they are, which trains faster;
        None trains the upper half, 0 all of it.
    learn_index (bool): Learn the tokens between count and mention too; False is the paper's ablation
        "loss ignoring" (templates with {count} in `mention`, and loss = "raw", only).
    loss (str): "allowed" learns to choose among what answers may go on with, as they are written; "raw", as
        published, among the whole vocabulary.
    RETURNS (Model): Carries the settings.
    RAISES (LLMNERError): If a setting has a value that makes no sense.
    """
    adapter = make_adapter_settings("padellm_ner", rank, alpha, first_layer)
    check_values("padellm_ner", {"model.loss": loss}, choices={"model.loss": LOSSES})
    if isinstance(template, str):
        if template not in TEMPLATES:
            known = ", ".join(TEMPLATES)
            raise LLMNERError(Errors.E006.format(value=template, what="template", known=known))
        template = TEMPLATES[template]
    return settings_model(
        "padellm", PaDeLLMSettings(template, dict(label_words or {}), adapter, learn_index, loss)
    )


def make_template(
    prompt: str, mention: str, count: str = "", count_end: str = "\n", bare: bool = True
) -> Template:
    """Registered as `spacy_llmner.Template.v1` in `@misc`. See Template."""
    return Template(prompt, count, count_end, mention, bare)
