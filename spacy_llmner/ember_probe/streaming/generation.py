"""Streaming: entities appear while the LLM writes, from the states it computes for writing."""

import queue
from contextlib import contextmanager
from numbers import Integral, Real
from typing import (
    TYPE_CHECKING,
    Any,
    Dict,
    Iterable,
    Iterator,
    List,
    Mapping,
    Optional,
    Sequence,
    Union,
)

import torch
from spacy.tokens import Doc
from transformers.generation.logits_process import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)
from transformers.generation.streamers import BaseStreamer

from ...errors import Errors, LLMNERError, check_values, wrong
from ...llm.chat import Chat
from ...llm.hidden_states import Features, Steps, generating_view, tap_generation
from ...llm.tokenization import Encoding
from .live_text import Event, LiveText, TextPiece

if TYPE_CHECKING:
    from ..component import EmberProbe

Prompt = Union[str, Sequence[Dict[str, str]]]
# Divided by less, scores become infinite.
LEAST = 1e-6


class EmberStream:
    """One generation; iterate over it once to get its events.

    ember (EmberProbe): The trained component.
    prompt (Prompt): A text to continue, or messages for the LLM's chat template.
    max_new_tokens (int): Tokens to generate at most.
    stop (Union[str, Sequence[str]]): Strings that end the generation; they stay in the text.
    temperature (float): 0 always takes the most probable token; else at least 1e-6.
    top_p (float): With a temperature: the smallest set of tokens with that probability is drawn from.
    repetition_penalty (float): Above 1, tokens that were there become less probable.
    seed (int): Of the draws; no global seed is touched.

    After the last event, `doc` is the annotated Doc and `text` its text: the prompt (of messages the
    last one) and what was generated.
    """

    def __init__(
        self,
        ember: "EmberProbe",
        prompt: Prompt,
        *,
        max_new_tokens: int = 256,
        stop: Union[str, Sequence[str]] = (),
        temperature: float = 0.0,
        top_p: float = 1.0,
        repetition_penalty: float = 1.0,
        seed: int = 0,
    ) -> None:
        """RAISES (LLMNERError): If a setting has a value that makes no sense."""
        check_values("stream", {"max_new_tokens": max_new_tokens}, least={"max_new_tokens": 0})
        for setting, value, fits, must in (
            ("temperature", temperature, lambda x: x == 0 or x >= LEAST, f"0 or at least {LEAST}"),
            ("top_p", top_p, lambda x: 0 < x <= 1, "above 0, and at most 1"),
            ("repetition_penalty", repetition_penalty, lambda x: x >= LEAST, f"at least {LEAST}"),
        ):
            if not (isinstance(value, Real) and fits(value)):
                raise wrong(setting, "stream", value, must)
        if not _is_seed(seed):
            raise wrong("seed", "stream", seed, "a whole number from -2**63 to 2**64 - 1")
        self.ember = ember
        self.prompt = prompt
        self.max_new_tokens = max_new_tokens
        self.stop = _stop_strings(stop)
        self.doc: Optional[Doc] = None
        self.stop_reason: Optional[str] = None
        self._cancelled = False
        self._live = LiveText(ember)
        self._processors = LogitsProcessorList()
        if repetition_penalty != 1.0:
            self._processors.append(RepetitionPenaltyLogitsProcessor(float(repetition_penalty)))
        if temperature > 0:
            self._processors.append(TemperatureLogitsWarper(float(temperature)))
            if top_p < 1.0:
                self._processors.append(TopPLogitsWarper(float(top_p)))
        self._draw = temperature > 0
        self._seed = int(seed)

    @property
    def text(self) -> str:
        """RETURNS (str): The text so far."""
        return self._live.text

    def cancel(self) -> None:
        """End the generation after the current token, from any thread. The Doc is still made."""
        self._cancelled = True

    def __iter__(self) -> Iterator[Event]:
        live, llm = self._live, self.ember.shared_llm()
        steps = Steps(llm, self.ember.reader.probed)
        generator = torch.Generator(device=llm.device).manual_seed(self._seed)
        ends = end_tokens(llm)
        prompt = encode_prompt(llm, self.prompt)
        ids = list(prompt.ids)
        end = llm.tokenizer.end if self.ember.reader.attention else []
        room = llm.max_length - len(end) - len(ids)
        if room < 0:
            most = llm.max_length - len(end)
            raise LLMNERError(Errors.E080.format(tokens=len(ids), name=llm.spec.name, most=most))
        logits, features = steps.feed(ids)
        if prompt.text:
            yield TextPiece(prompt.text)
        yield from live.add_prompt(prompt.encoding, prompt.text, prompt.cut(features))
        live.add_text(prompt.separator)
        if prompt.separator:
            yield TextPiece(prompt.separator)
        start = len(live.text)
        room = min(self.max_new_tokens, room)
        self.stop_reason = None if room > 0 else "length"
        written = ""
        while self.stop_reason is None:
            token = self._choose(logits, ids, generator)
            if token in ends:
                self.stop_reason = "end"
                break
            piece = live.pieces.push(token)
            if piece:
                yield TextPiece(piece)
            written += piece
            ids.append(token)
            room -= 1
            self.stop_reason = self._why_stop(written, piece, room)
            # The token's own states come from the step that reads it to write the next one.
            if self.stop_reason is None:
                logits, features = steps.feed([token])
            else:
                features = steps.feed_last([token])
            yield from live.add_token(token, features, piece)
            if self._cancelled and self.stop_reason is None:
                self.stop_reason = "cancelled"
        self.doc, events = live.finish(steps.feed_last(end) if end else None)
        rest = self.doc.text[start + len(written) :]
        if rest:
            yield TextPiece(rest)
        yield from events

    def _why_stop(self, written: str, piece: str, room: int) -> Optional[str]:
        """room (int): Tokens that could still be written.
        RETURNS (Optional[str]): Why nothing is written behind this piece, if so."""
        if any(s in written[-len(s) - len(piece) :] for s in self.stop):
            return "stop"
        if self._cancelled:
            return "cancelled"
        return None if room else "length"

    def _choose(self, logits: torch.Tensor, ids: List[int], generator: torch.Generator) -> int:
        if len(self._processors):
            inputs: Any = torch.tensor([ids], device=logits.device)
            values: Any = logits[None].float()
            logits = self._processors(inputs, values)[0]
        if self._draw:
            return int(torch.multinomial(torch.softmax(logits, -1), 1, generator=generator))
        return int(logits.argmax())


class EmberStreamer(BaseStreamer):
    """A streamer for people who call `generate` themselves.

    Made by EmberProbe.streamer(). Call `streamer.model.generate(..., streamer=streamer)` inside the
    `with` block and in its thread; `model` is a view of the shared LLM. Iterate over the streamer to get
    the events (in another thread while they come, or afterwards); then `doc` is the annotated Doc. It
    follows one generation of one text; when the block is left, there are no more events.
    The last token of a generation that is cut by its length is never read by the LLM; its word is
    scored from the token before.
    """

    def __init__(self, ember: "EmberProbe") -> None:
        self.ember = ember
        self.llm = ember.shared_llm()
        self.model: Any = generating_view(self.llm, ember.reader.layers)
        self.doc: Optional[Doc] = None
        self._live = LiveText(ember)
        self._queue: queue.Queue[Optional[Event]] = queue.Queue()
        self._unread: List[int] = []
        self._prompt: List[int] = []
        self._last: Optional[Features] = None
        self._read: Any = None

    def put(self, value: torch.Tensor) -> None:
        """Called by `generate`: with the prompt first, then with each new token.

        RAISES (LLMNERError): If this is not what the streamer was made for."""
        if self.doc is not None:
            raise self._lost("it has followed a generation already")
        if value.dim() and len(value) > 1:
            raise self._lost(f"{len(value)} texts are written at once")
        ids = value.reshape(-1).tolist()
        if not self._prompt:
            self._prompt = ids
            return
        features = self._read()
        if features is None:
            raise self._lost("the LLM does not run through it")
        if self._last is None:
            self._add_prompt(features)
        else:
            self._add(features)
        self._last = features
        self._unread = ids

    def end(self) -> None:
        """Called by `generate` at the end."""
        if self._last is not None:
            hidden, attention = self._last.hidden[-1:], self._last.attention
            last = Features(hidden, None if attention is None else attention[-1:])
            self._add(last)
        self.doc, events = self._live.finish()
        for event in events:
            self._queue.put(event)
        self.close()

    def close(self) -> None:
        """Let those who iterate know that nothing more comes."""
        self._queue.put(None)

    def __iter__(self) -> Iterator[Event]:
        while (event := self._queue.get()) is not None:
            yield event
        self.close()  # for whoever else does

    def _lost(self, reason: str) -> LLMNERError:
        return LLMNERError(Errors.E042.format(reason=reason, name=self.ember.name))

    def _add_prompt(self, features: Features) -> None:
        """The prompt's special tokens carry no text; the rest is its decoded text."""
        special = set(self.llm.tokenizer.hf.all_special_ids)
        for i, token in enumerate(self._prompt):
            if token not in special:
                part = _row(features, i)
                piece = len(self._live.text)
                events = self._live.add_token(token, part)
                self._emit(self._live.text[piece:], events)

    def _add(self, features: Features) -> None:
        ends = end_tokens(self.llm)
        for token in self._unread:
            if token not in ends:
                before = len(self._live.text)
                events = self._live.add_token(token, _row(features, len(features.hidden) - 1))
                self._emit(self._live.text[before:], events)
        self._unread = []

    def _emit(self, piece: str, events: Sequence[Event]) -> None:
        if piece:
            self._queue.put(TextPiece(piece))
        for event in events:
            self._queue.put(event)


@contextmanager
def streaming(ember: "EmberProbe") -> Iterator[EmberStreamer]:
    """Tap the LLM for the generations made inside the block. YIELDS (EmberStreamer): The streamer."""
    streamer = EmberStreamer(ember)
    with tap_generation(streamer.llm, ember.reader.probed) as read:
        streamer._read = read
        try:
            yield streamer
        finally:
            streamer.close()


class EncodedPrompt:
    """A prompt as the LLM reads it, and the part of it that is text for entities.

    ids (List[int]): All ids: sink or template, text, template.
    first (int): Where the text's tokens start.
    encoding (Encoding): The text's tokens.
    text (str): The text.
    separator (str): What stands between it and the answer.
    """

    def __init__(
        self, ids: List[int], first: int, encoding: Encoding, text: str, separator: str
    ) -> None:
        self.ids = ids
        self.first = first
        self.encoding = encoding
        self.text = text
        self.separator = separator

    def cut(self, features: Features) -> Features:
        """RETURNS (Features): Of the text's tokens only."""
        part = slice(self.first, self.first + len(self.encoding))
        attention = None if features.attention is None else features.attention[part]
        return Features(features.hidden[part], attention)


def encode_prompt(llm: Any, prompt: Prompt) -> EncodedPrompt:
    """Encode a text with the sink in front, or messages with the LLM's chat template, in which no message
    can end its turn.

    RETURNS (EncodedPrompt): Of messages, the last one's content is the text.
    RAISES (LLMNERError): If it is neither, or the LLM's chat template can't write it.
    """
    if isinstance(prompt, str):
        encoding = llm.tokenizer.encode(prompt)
        sink = llm.tokenizer.sink
        return EncodedPrompt(sink + encoding.ids, len(sink), encoding, prompt, "")
    if not llm.tokenizer.hf.chat_template:
        raise LLMNERError(Errors.E028.format(name=llm.spec.name))
    if not (len(prompt) and all(_is_message(message) for message in prompt)):
        must = "a text, or messages such as [{'role': 'user', 'content': 'Who came?'}]"
        raise wrong("prompt", "stream", prompt, must)
    turns = [(message["role"], message["content"]) for message in prompt]
    text = turns[-1][1].strip()
    *pieces, _, after = Chat(llm.tokenizer, llm.spec.name).pieces(turns)
    before = [token for piece in pieces for token in piece]
    encoding = llm.tokenizer.encode_inside(text)
    ids = before + encoding.ids + after
    return EncodedPrompt(ids, len(before), encoding, text, "\n\n")


def _is_message(message: Any) -> bool:
    return isinstance(message, Mapping) and all(
        isinstance(message.get(key), str) for key in ("role", "content")
    )


def end_tokens(llm: Any) -> List[int]:
    """RETURNS (List[int]): Ids that end a generation."""
    configured = getattr(llm.model.generation_config, "eos_token_id", None)
    ends = configured if isinstance(configured, list) else [configured]
    return sorted({t for t in [*ends, llm.tokenizer.hf.eos_token_id] if t is not None})


def _is_seed(seed: Any) -> bool:
    whole = isinstance(seed, Integral) and not isinstance(seed, bool)
    return whole and -(2**63) <= int(seed) < 2**64


def _stop_strings(stop: Any) -> List[str]:
    """RETURNS (List[str]): Those that are not empty.
    RAISES (LLMNERError): If they are no strings."""
    strings = [stop] if isinstance(stop, str) else stop
    strings = list(strings) if isinstance(strings, Iterable) else [strings]
    if not all(isinstance(s, str) for s in strings):
        raise wrong("stop", "stream", stop, "a text, or a list of texts")
    return [s for s in strings if s]


def _row(features: Features, i: int) -> Features:
    attention = None if features.attention is None else features.attention[i : i + 1]
    return Features(features.hidden[i : i + 1], attention)
