"""Generation with entities: a probe reads the hidden states that the LLM computes while it writes."""

import threading
from contextlib import suppress
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Generator, Iterable, Iterator, List, Optional, Sequence, Tuple, Union

import torch
from spacy.tokens import Doc
from transformers.generation.logits_process import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from ...errors import Errors, LLMNERError, check_values, wrong
from ...llm.hidden_states import Features, StepReader
from ..predictor import Predictor
from .events import Event, TextPiece
from .live_text import LiveText
from .prompt import Prompt, encode_prompt

# The logits are divided by temperature and repetition penalty. With smaller values they would be infinite.
TINY = 1e-6


@dataclass
class Step:
    """Tokens that the LLM has to read next.

    ids (List[int]): The tokens.
    is_last (bool): Whether the LLM writes nothing after them. Then the logits are not needed.
    """

    ids: List[int]
    is_last: bool = False

    def read(self, reader: StepReader) -> "StepResult":
        """RETURNS (Tuple[Tensor, Features]): The logits after the last token, which are undefined after the
        last step, and the features of all tokens."""
        if not self.is_last:
            return reader.feed(self.ids)
        return torch.empty(0), reader.feed_last(self.ids)


StepResult = Tuple[torch.Tensor, Features]
Steps = Generator[Step, StepResult, None]


class EmberStream:
    """One generation. Iterate over it once to get its events.

    predictor (Predictor): A trained probe that can stream.
    prompt (Prompt): A text to continue, or messages for the LLM's chat template.
    max_new_tokens (int): Maximum number of tokens to generate.
    stop (Union[str, Sequence[str]]): Strings that end the generation; they remain in the text.
    temperature (float): 0 for greedy decoding, otherwise at least 1e-6.
    top_p (float): With a temperature, sample from the smallest set of tokens with at least this
        probability.
    repetition_penalty (float): Values above 1 make tokens that have already occurred less probable.
    seed (int): Seed for sampling; the global seed is not changed.

    After the last event, `doc` is the annotated Doc and `text` is its text: the prompt (or the last of
    several messages), followed by the generated text. `stop_reason` is "end" (the LLM ended the text),
    "stop" (a stop string), "length" or "cancelled".
    """

    def __init__(
        self,
        predictor: Predictor,
        prompt: Prompt,
        *,
        max_new_tokens: int = 256,
        stop: Union[str, Sequence[str]] = (),
        temperature: float = 0.0,
        top_p: float = 1.0,
        repetition_penalty: float = 1.0,
        seed: int = 0,
    ) -> None:
        """RAISES (LLMNERError): If a setting has an invalid value."""
        check_values("stream", {"max_new_tokens": max_new_tokens}, least={"max_new_tokens": 0})
        for setting, value, is_valid, must in (
            ("temperature", temperature, lambda x: x == 0 or x >= TINY, f"0 or at least {TINY}"),
            ("top_p", top_p, lambda x: 0 < x <= 1, "above 0, and at most 1"),
            ("repetition_penalty", repetition_penalty, lambda x: x >= TINY, f"at least {TINY}"),
        ):
            if not (isinstance(value, Real) and is_valid(value)):
                raise wrong(setting, "stream", value, must)
        if not _is_valid_seed(seed):
            raise wrong("seed", "stream", seed, "a whole number from -2**63 to 2**64 - 1")
        self.predictor = predictor
        self.prompt = prompt
        self.max_new_tokens = max_new_tokens
        self.stop = _stop_strings(stop)
        self.doc: Optional[Doc] = None
        self.stop_reason: Optional[str] = None
        self._cancelled = False
        # Held while the state changes, if another thread generates the text.
        self.lock = threading.RLock()
        self._live = LiveText(predictor)
        self._events: List[Event] = []
        self._processors = LogitsProcessorList()
        if repetition_penalty != 1.0:
            self._processors.append(RepetitionPenaltyLogitsProcessor(float(repetition_penalty)))
        if temperature > 0:
            self._processors.append(TemperatureLogitsWarper(float(temperature)))
            if top_p < 1.0:
                self._processors.append(TopPLogitsWarper(float(top_p)))
        self._sample = temperature > 0
        self._seed = int(seed)

    @property
    def text(self) -> str:
        """RETURNS (str): The text so far."""
        return self._live.text

    @property
    def settled(self) -> int:
        """RETURNS (int): Number of characters at the beginning of the text whose entities are final."""
        return self._live.settled if self.doc is None else len(self.text)

    @property
    def n_tokens(self) -> int:
        """RETURNS (int): Number of tokens of the text so far, without control tokens."""
        return len(self._live.ids)

    def cancel(self) -> None:
        """End the generation after the current token.

        Can be called from any thread. The Doc is still created.
        """
        self._cancelled = True

    def __iter__(self) -> Iterator[Event]:
        llm = self.predictor.llm
        reader = StepReader(llm, self.predictor.reader.probed)
        steps, result = self.steps(), None
        with suppress(StopIteration):
            while True:
                step = next(steps) if result is None else steps.send(result)
                # The token's text goes out before the LLM reads the token.
                yield from self.take_events()
                result = step.read(reader)
        yield from self.take_events()

    def take_events(self) -> List[Event]:
        """RETURNS (List[Event]): The events since the last call."""
        events, self._events = self._events, []
        return events

    def steps(self) -> Steps:
        """Generate step by step. Events are in `take_events`.

        YIELDS (Step): Tokens that the LLM has to read. `send` the logits after the last one and the
            features of all of them.
        RAISES (LLMNERError): If the prompt is too long, or if the LLM computes NaN.
        """
        live, llm = self._live, self.predictor.llm
        generator = torch.Generator(device=llm.device).manual_seed(self._seed)
        ends = llm.end_ids
        prompt = encode_prompt(llm, self.prompt)
        ids = list(prompt.ids)
        end = llm.tokenizer.end if self.predictor.reader.attention else []
        n_left = llm.max_length - len(end) - len(ids)
        if n_left < 0:
            most = llm.max_length - len(end)
            raise LLMNERError(Errors.E080.format(tokens=len(ids), name=llm.spec.name, most=most))
        logits, features = yield Step(ids)
        self._emit_text(prompt.text)
        self._events += live.add_prompt(prompt.encoding, prompt.text, prompt.cut(features))
        live.add_text(prompt.separator)
        self._emit_text(prompt.separator)
        start = len(live.text)
        n_left = min(self.max_new_tokens, n_left)
        self.stop_reason = None if n_left > 0 else "length"
        written = ""
        while self.stop_reason is None:
            token = self._choose(logits, ids, generator)
            if token in ends:
                self.stop_reason = "end"
                break
            piece = live.pieces.push(token)
            self._emit_text(piece)
            written += piece
            ids.append(token)
            n_left -= 1
            self.stop_reason = self._find_stop_reason(written, piece, n_left)
            # The token's hidden states come from the step that reads it to predict the next token.
            logits, features = yield Step([token], is_last=self.stop_reason is not None)
            self._events += live.add_token(token, features, piece)
            if self._cancelled and self.stop_reason is None:
                self.stop_reason = "cancelled"
        last = (yield Step(end, is_last=True))[1] if end else None
        self.doc, events = live.finish(last)
        self._emit_text(self.doc.text[start + len(written) :])
        self._events += events

    def _emit_text(self, text: str) -> None:
        if text:
            self._events.append(TextPiece(text))

    def _find_stop_reason(self, written: str, piece: str, n_left: int) -> Optional[str]:
        """n_left (int): Number of tokens that can still be generated.
        RETURNS (Optional[str]): Why the generation ends after this piece, or None if it goes on.
        """
        if any(s in written[-len(s) - len(piece) :] for s in self.stop):
            return "stop"
        if self._cancelled:
            return "cancelled"
        return None if n_left else "length"

    def _choose(self, logits: torch.Tensor, ids: List[int], generator: torch.Generator) -> int:
        if len(self._processors):
            inputs: Any = torch.tensor([ids], device=logits.device)
            values: Any = logits[None].float()
            logits = self._processors(inputs, values)[0]
        if self._sample:
            return int(torch.multinomial(torch.softmax(logits, -1), 1, generator=generator))
        return int(logits.argmax())


def _is_valid_seed(seed: Any) -> bool:
    whole = isinstance(seed, Integral) and not isinstance(seed, bool)
    return whole and -(2**63) <= int(seed) < 2**64


def _stop_strings(stop: Any) -> List[str]:
    """RETURNS (List[str]): The strings that are not empty.
    RAISES (LLMNERError): If `stop` is neither a string nor a list of strings.
    """
    strings = [stop] if isinstance(stop, str) else stop
    strings = list(strings) if isinstance(strings, Iterable) else [strings]
    if not all(isinstance(s, str) for s in strings):
        raise wrong("stop", "stream", stop, "a text, or a list of texts")
    return [s for s in strings if s]
