"""The architecture of `padellm_ner`: its template and the settings of its adapter."""

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
    """The settings of the architecture. See `make_padellm`."""

    template: Template
    label_words: Dict[str, str] = field(default_factory=dict)
    adapter: AdapterSettings = AdapterSettings()
    learn_index: bool = True
    loss: str = "allowed"

    def check(self, name: str, labels: Sequence[str], llm: LoadedLLM) -> None:
        """Check the settings against the labels and the LLM.

        name (str): The component's name, for error messages.
        labels (Sequence[str]): The component's labels.
        llm (LoadedLLM): The shared LLM.
        RAISES (LLMNERError): If a setting does not fit the labels or the LLM.
        """
        check_llm(name, self.adapter, llm)
        if not self.learn_index and "{count}" not in self.template.mention:
            must = "true: this template has no tokens between the count and a mention"
            raise wrong("learn_index", name, self.learn_index, must)
        if not self.learn_index and self.loss == "allowed":
            must = "true: with loss = 'allowed', tokens without an alternative are never trained"
            raise wrong("learn_index", name, self.learn_index, must)
        template = self.template
        if self.loss == "raw" and not template.count and "{count}" not in template.mention:
            must = "'allowed': with this template, the count and a mention's index have the same position"
            raise wrong("loss", name, self.loss, must)
        words = [self.label_words.get(label, label) for label in labels]
        if len(set(words)) < len(words):
            must = f"a different word for each of {', '.join(labels)}"
            raise wrong("label_words", name, self.label_words, must)

    def trained_with(self, labels: Sequence[str]) -> Dict[str, Any]:
        """List the settings that a trained adapter depends on.

        labels (Sequence[str]): The component's labels.
        RETURNS (Dict[str, Any]): The template and the label words, by setting. The adapter's own
            settings are not included.
        """
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
    """Create the settings of a `padellm_ner`.

    Registered as `spacy_llmner.PaDeLLM.v1` in `@architectures`.

    template (Union[str, Template]): The wording of the prompts: "compact" (default), "published_en",
        "published_zh", or a custom template (`@misc = "spacy_llmner.Template.v1"`).
    label_words (Optional[Dict[str, str]]): The words that stand for labels in the prompt, such as
        {"PER": "person"}. A label without an entry stands for itself.
    rank (int): Rank of the LoRA adapter. 0 trains copies of the LLM's weights instead, except for the
        embeddings. With `first_layer = 0` this is as published, but the copies need as much memory
        and disk space as the LLM, for this component alone. Default 16.
    alpha (int): LoRA scales its update by alpha / rank. Default 32.
    first_layer (Optional[int]): The first layer that is trained. The layers below it keep the LLM's
        weights, which makes training faster. None (default) trains the upper half of the layers, 0
        trains all of them.
    learn_index (bool): Also train on the tokens between the count and the mention. False is the
        paper's ablation "loss ignoring"; it needs a template with {count} in `mention`, and `loss`
        "raw". Default True.
    loss (str): "allowed" (default) computes the loss over the tokens that an answer could continue
        with when it is decoded. "raw", as published, computes it over the whole vocabulary.
    RETURNS (Model): A thinc model that carries the settings and does nothing else.
    RAISES (LLMNERError): If a setting is not valid.
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
    """Create a custom template. See `Template` for the arguments.

    Registered as `spacy_llmner.Template.v1` in `@misc`.
    """
    return Template(prompt, count, count_end, mention, bare)
