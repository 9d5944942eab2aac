"""What clients can send. docs/protocol.md describes it."""

import json
from typing import Any, Dict, List, Literal, Optional, Type, TypeVar, Union

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from ..ember_probe.streaming.redaction import Placeholders
from ..errors import Errors
from .request_errors import RequestError, unsupported

Model = TypeVar("Model", bound=BaseModel)

# Fields of OpenAI's API that change nothing in the answer.
HARMLESS = {
    "metadata",
    "parallel_tool_calls",
    "prompt_cache_key",
    "prompt_cache_retention",
    "safety_identifier",
    "service_tier",
    "store",
    "user",
}
# Values with which other fields change nothing, next to None and empty ones.
NEUTRAL: Dict[str, List[Any]] = {
    "best_of": [1],
    "echo": [False],
    "frequency_penalty": [0],
    "include": [[]],
    "logprobs": [False],
    "n": [1],
    "presence_penalty": [0],
    "response_format": [{"type": "text"}],
    "text": [{"format": {"type": "text"}}],
    "tool_choice": ["none", "auto"],
    "top_logprobs": [0],
    "truncation": ["disabled"],
    "background": [False],
}


def parse(model: Type[Model], body: Dict[str, Any]) -> Model:
    """Validate the body of a request.

    model (Type[Model]): What it must be.
    body (Dict[str, Any]): The body.
    RETURNS (Model): The valid body.
    RAISES (ValidationError): If it is not valid.
    RAISES (RequestError): If a text has half of a surrogate pair, which UTF-8 can't encode.
    """
    try:
        json.dumps(body, ensure_ascii=False).encode("utf8")
    except UnicodeEncodeError:
        reason = "a text has half of a surrogate pair, which UTF-8 can't encode"
        raise RequestError(Errors.E161.format(reason=reason), 400, "invalid_request") from None
    return model.model_validate(body)


class EntityOptions(BaseModel):
    """The field `entities`: what to do with entities in the answer. Without it, nothing is done.

    mode (Optional[str]): "annotate": send the text at once, and entities as they are found. "redact": send
        the text with placeholders instead of entities.
    labels (Optional[List[str]]): Labels of these entities; None for those of the pipeline.
    min_score (float): Lowest score of these entities.
    placeholder (str): See Redactor, like max_hold and overlong.
    redact_prompt (bool): With an upstream server: replace entities in the prompt before it leaves, and put
        them back into the answer.
    """

    model_config = ConfigDict(extra="forbid")

    mode: Optional[Literal["annotate", "redact"]] = None
    labels: Optional[List[str]] = Field(None, min_length=1)
    min_score: float = Field(0.0, ge=0, le=1)
    placeholder: str = Field("[{label}]", max_length=200)
    max_hold: Optional[int] = Field(None, ge=1)
    overlong: Literal["redact", "release"] = "redact"
    redact_prompt: bool = False

    @field_validator("placeholder")
    @classmethod
    def _check_placeholder(cls, value: str) -> str:
        return Placeholders(value).template

    @model_validator(mode="after")
    def _check_mode(self) -> "EntityOptions":
        unused = {"placeholder", "max_hold", "overlong"} & self.model_fields_set
        if unused and self.mode != "redact":
            raise ValueError(f"{', '.join(sorted(unused))} can only be set with mode 'redact'")
        if self.mode is None and not self.redact_prompt:
            raise ValueError("mode is missing: 'annotate' or 'redact'")
        return self


class StreamOptions(BaseModel):
    """The field `stream_options`."""

    include_usage: bool = False
    include_obfuscation: bool = False


class TextRequest(BaseModel):
    """The fields that all requests for a text have."""

    model_config = ConfigDict(extra="allow")

    model: str
    stream: bool = False
    stream_options: Optional[StreamOptions] = None
    temperature: Optional[float] = Field(None, ge=0, le=2)
    top_p: Optional[float] = Field(None, gt=0, le=1)
    repetition_penalty: Optional[float] = Field(None, gt=0, le=10)
    seed: Optional[int] = Field(None, ge=-(2**63), lt=2**63)
    stop: Union[None, str, List[str]] = None
    entities: Optional[EntityOptions] = None

    @field_validator("stop")
    @classmethod
    def _check_stop(cls, value: Union[None, str, List[str]]) -> List[str]:
        strings = [value] if isinstance(value, str) else value or []
        if len(strings) > 16 or any(len(s) > 200 for s in strings):
            raise ValueError("more than 16 strings, or one of more than 200 characters")
        return [s for s in strings if s]

    def check_fields(self) -> None:
        """RAISES (RequestError): If a field is set that has an effect elsewhere, but not here."""
        for field, value in (self.model_extra or {}).items():
            is_neutral = value in (None, [], {}) or value in NEUTRAL.get(field, [])
            if not (field in HARMLESS or is_neutral):
                raise unsupported(field, value, "this server doesn't have this feature")

    @property
    def limit(self) -> Optional[int]:
        """RETURNS (Optional[int]): The requested maximum number of tokens."""
        raise NotImplementedError


class UpstreamRequest(BaseModel):
    """What this server reads in a request that it passes on. The upstream server checks the rest."""

    model_config = ConfigDict(extra="allow")

    stream: bool = False
    entities: Optional[EntityOptions] = None


class CompletionRequest(TextRequest):
    """POST /v1/completions."""

    prompt: Union[str, List[str]]
    max_tokens: Optional[int] = Field(None, ge=0)

    @property
    def text(self) -> str:
        """RETURNS (str): The prompt.
        RAISES (RequestError): If there are several.
        """
        prompts = [self.prompt] if isinstance(self.prompt, str) else self.prompt
        if len(prompts) != 1:
            raise unsupported("prompt", prompts, "it must be one text; send one request for each")
        return prompts[0]

    @property
    def limit(self) -> Optional[int]:
        return self.max_tokens


class ContentPart(BaseModel):
    """A part of a message. Only texts are supported."""

    model_config = ConfigDict(extra="ignore")

    type: Literal["text", "input_text", "output_text"]
    text: str


class Message(BaseModel):
    """A message of a chat."""

    model_config = ConfigDict(extra="ignore")

    role: Literal["system", "developer", "user", "assistant"]
    content: Union[str, List[ContentPart]]

    def as_turn(self) -> Dict[str, str]:
        """RETURNS (Dict[str, str]): The message for a chat template."""
        role = "system" if self.role == "developer" else self.role
        if not isinstance(self.content, str):
            return {"role": role, "content": "".join(part.text for part in self.content)}
        return {"role": role, "content": self.content}


class ChatRequest(TextRequest):
    """POST /v1/chat/completions."""

    messages: List[Message] = Field(min_length=1)
    max_tokens: Optional[int] = Field(None, ge=0)
    max_completion_tokens: Optional[int] = Field(None, ge=0)

    @property
    def limit(self) -> Optional[int]:
        first = self.max_completion_tokens
        return self.max_tokens if first is None else first


class ResponseRequest(TextRequest):
    """POST /v1/responses."""

    input: Union[str, List[Message]]
    instructions: Optional[str] = None
    max_output_tokens: Optional[int] = Field(None, ge=0)

    @property
    def limit(self) -> Optional[int]:
        return self.max_output_tokens


class NerRequest(BaseModel):
    """POST /ner.

    texts (List[str]): The texts.
    labels (Optional[List[str]]): Labels to find; None for those of the pipeline.
    spans (bool): Also return all spans found, including those that overlap.
    """

    model_config = ConfigDict(extra="forbid")

    texts: List[str] = Field(min_length=1)
    labels: Optional[List[str]] = Field(None, min_length=1)
    spans: bool = False
