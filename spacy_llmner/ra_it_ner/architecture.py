"""The architecture of `ra_it_ner`: its conversation, and what is trained of the LLM."""

from dataclasses import dataclass, field
from typing import Any, Dict, Optional, Sequence, Union

from thinc.api import Model

from ..errors import Errors, LLMNERError, wrong
from ..llm.chat import ChatEncoder
from ..llm.loading import LoadedLLM
from ..llm.lora import AdapterSettings
from ..pipeline.adapter_pipe import make_adapter_settings, qualified
from ..pipeline.base import settings_model
from .conversation import CONVERSATIONS, NOTATIONS, Conversation, ConversationEncoder

OCCURRENCES = ("ordered", "all")


@dataclass(frozen=True)
class RAITSettings:
    """See make_ra_it."""

    conversation: Conversation
    system: Optional[str] = None
    notation: str = "json"
    occurrences: str = "ordered"
    label_words: Dict[str, str] = field(default_factory=dict)
    label_descriptions: Dict[str, str] = field(default_factory=dict)
    adapter: AdapterSettings = AdapterSettings()
    learn_acknowledgements: bool = False

    @property
    def ordered(self) -> bool:
        """Whether answers name every mention, in the order of the text."""
        return self.occurrences == "ordered"

    def prompt_encoder(self, llm: LoadedLLM) -> ConversationEncoder:
        """RETURNS (ConversationEncoder): For one LLM."""
        return ConversationEncoder(
            ChatEncoder(llm.tokenizer, llm.spec.name),
            llm.model.get_output_embeddings().weight.shape[0],
            self.conversation,
            self.system,
            self.notation,
            self.label_words,
            self.label_descriptions,
        )

    def trained_with(self, labels: Sequence[str]) -> Dict[str, Any]:
        """RETURNS (Dict[str, Any]): What an adapter fits, besides its own settings. What labels are called
        is open."""
        return {
            **qualified("conversation", self.conversation),
            "system": self.system,
            "notation": self.notation,
            "occurrences": self.occurrences,
        }

    def check_labels(self, name: str, labels: Sequence[str]) -> None:
        """RAISES (LLMNERError): If two labels are asked for with the same question."""
        asked = [self.label_words.get(label, label) for label in labels]
        if len(set(asked)) < len(asked):
            must = f"such that each of {', '.join(labels)} goes by another word"
            raise wrong("label_words", name, self.label_words, must)


def make_ra_it(
    conversation: Union[str, Conversation] = "published_en",
    system: Optional[str] = None,
    notation: str = "json",
    occurrences: str = "ordered",
    label_words: Optional[Dict[str, str]] = None,
    label_descriptions: Optional[Dict[str, str]] = None,
    rank: int = 8,
    alpha: int = 16,
    first_layer: Optional[int] = None,
    learn_acknowledgements: bool = False,
) -> Model:
    """Registered as `spacy_llmner.RAIT.v1` in `@architectures`.

    conversation (Union[str, Conversation]): "published_en", "published_zh", or a wording of your own
        (`@misc = "spacy_llmner.Conversation.v1"`).
    system (Optional[str]): What the system turn says; None leaves it to the LLM's chat template. The
        shorter, the faster.
    notation (str): How entities of examples are written: "json"; "python" for weights that were released
        with the paper.
    occurrences (str): "ordered": an answer lists every mention in the order of the text, so each has its
        place. "all", as published: it lists strings, which are found wherever they occur.
    label_words (Optional[Dict[str, str]]): What labels are called, such as {"PER": "person"}; others go by
        their own name.
    label_descriptions (Optional[Dict[str, str]]): What stands in brackets behind them in the question.
    rank (int): Rank of the LoRA adapter; 0 trains a full copy of the LLM's weights.
    alpha (int): LoRA's scale is alpha / rank.
    first_layer (Optional[int]): Layers of the LLM below it are left as they are, which trains faster;
        None trains the upper half, 0 all of it as published.
    learn_acknowledgements (bool): Also learn the turns in which the LLM says that it has read, as the
        published training framework does.
    RETURNS (Model): Carries the settings.
    RAISES (LLMNERError): If a setting has a value that makes no sense.
    """
    adapter = make_adapter_settings("ra_it_ner", rank, alpha, first_layer)
    if isinstance(conversation, str):
        if conversation not in CONVERSATIONS:
            known = ", ".join(CONVERSATIONS)
            what = "conversation"
            raise LLMNERError(Errors.E006.format(value=conversation, what=what, known=known))
        conversation = CONVERSATIONS[conversation]
    for setting, chosen, choices in (
        ("notation", notation, NOTATIONS),
        ("occurrences", occurrences, OCCURRENCES),
    ):
        if chosen not in choices:
            raise wrong(setting, "ra_it_ner", chosen, f"one of {', '.join(choices)}")
    return settings_model(
        "ra_it",
        RAITSettings(
            conversation,
            system,
            notation,
            occurrences,
            dict(label_words or {}),
            dict(label_descriptions or {}),
            adapter,
            learn_acknowledgements,
        ),
    )


def make_conversation(
    passage: str,
    question: str,
    passage_read: str = "I've read this text.",
    examples: str = "Here are some examples of named entity recognition:\n",
    example: str = "Text: {text}\nEntity: {entities}",
    examples_read: str = "I've read these examples.",
) -> Conversation:
    """Registered as `spacy_llmner.Conversation.v1` in `@misc`. See Conversation."""
    return Conversation(examples, example, examples_read, passage, passage_read, question)
