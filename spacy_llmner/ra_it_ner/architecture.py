"""The architecture of `ra_it_ner`: its conversation and the settings of its adapter."""

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
    """The settings of the architecture. See `make_ra_it`."""

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
        """Whether answers list every mention, in the order of the text."""
        return self.occurrences == "ordered"

    def prompt_encoder(self, llm: LoadedLLM) -> ConversationEncoder:
        """RETURNS (ConversationEncoder): The prompt encoder for an LLM."""
        return ConversationEncoder(
            ChatEncoder(llm.tokenizer, llm.spec.name),
            llm.n_logits,
            self.conversation,
            self.system,
            self.notation,
            self.label_words,
            self.label_descriptions,
        )

    def trained_with(self, labels: Sequence[str]) -> Dict[str, Any]:
        """List the settings that a trained adapter depends on.

        labels (Sequence[str]): Not used: labels and their words can be changed after training.
        RETURNS (Dict[str, Any]): The conversation, system turn, notation and kind of answers, by
            setting. The adapter's own settings are not included.
        """
        return {
            **qualified("conversation", self.conversation),
            "system": self.system,
            "notation": self.notation,
            "occurrences": self.occurrences,
        }

    def check_labels(self, name: str, labels: Sequence[str]) -> None:
        """Check that every label has a question of its own.

        name (str): The component's name, for error messages.
        labels (Sequence[str]): The labels.
        RAISES (LLMNERError): If two labels have the same word.
        """
        words = [self.label_words.get(label, label) for label in labels]
        if len(set(words)) < len(words):
            must = f"a different word for each of {', '.join(labels)}"
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
    """Create the settings of a `ra_it_ner`.

    Registered as `spacy_llmner.RAIT.v1` in `@architectures`.

    conversation (Union[str, Conversation]): The wording of the conversation: "published_en"
        (default), "published_zh", or a custom one (`@misc = "spacy_llmner.Conversation.v1"`).
    system (Optional[str]): Text of the system turn. None (default) leaves it to the LLM's chat
        template. A shorter system turn is faster.
    notation (str): How the entities of examples are written: "json" (default), or "python" for the
        weights that were released with the paper.
    occurrences (str): How answers are matched to the text. "ordered" (default): an answer lists every
        mention in the order of the text, so each mention has its own offsets. "all", as published: an
        answer lists strings, and every occurrence of a string in the text is a mention.
    label_words (Optional[Dict[str, str]]): The words that stand for labels in the prompt, such as
        {"PER": "person"}. A label without an entry stands for itself.
    label_descriptions (Optional[Dict[str, str]]): Descriptions of labels. They are added in brackets
        after the label's word in the question.
    rank (int): Rank of the LoRA adapter. 0 trains copies of the LLM's weights instead, except for the
        embeddings. Default 8.
    alpha (int): LoRA scales its update by alpha / rank. Default 16.
    first_layer (Optional[int]): The first layer that is trained. The layers below it keep the LLM's
        weights, which makes training faster. None (default) trains the upper half of the layers, 0
        trains all of them, as published.
    learn_acknowledgements (bool): Also train on the turns in which the LLM says that it has read the
        text or the examples, as the published training framework does. Default False.
    RETURNS (Model): A thinc model that carries the settings and does nothing else.
    RAISES (LLMNERError): If a setting is not valid.
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
    """Create a custom conversation. See `Conversation` for the arguments.

    Registered as `spacy_llmner.Conversation.v1` in `@misc`.
    """
    return Conversation(examples, example, examples_read, passage, passage_read, question)
