"""Generate several texts side by side, round by round."""

from typing import Any, Dict, List, Optional, Sequence

import torch

from ...llm.growing_texts import Read, growing_texts
from ...llm.hidden_states import Features, FeatureSpec
from ...llm.loading import LoadedLLM
from .generation import EmberStream, Step, Steps

# Prompts are read in parts of this many tokens. Between them, the other streams go on.
PROMPT_PART = 256


class StreamRounds:
    """Generates texts side by side. Each round adds one token to every text, in one forward pass.

    llm (LoadedLLM): The shared LLM.
    probed (FeatureSpec): The features to read, the same for all streams.

    running (Dict[RoundStream, Progress]): The streams that have not ended.
    """

    def __init__(self, llm: LoadedLLM, probed: FeatureSpec) -> None:
        self.texts = growing_texts(llm, probed)
        self.running: Dict[RoundStream, Progress] = {}

    def add(self, stream: "RoundStream") -> None:
        """Add a stream. Its prompt is read in the next rounds."""
        self.running[stream] = Progress(stream)
        self._resume(stream, None)

    def round(self) -> None:
        """Read the next token of each stream, and the next part of one prompt."""
        tokens: Dict[Any, int] = {}
        unread = []
        for stream, progress in list(self.running.items()):
            if not progress.is_prompt:
                tokens[stream] = progress.step.ids[0]
            elif stream.cancelled and stream.stop_reason is None:
                stream.stop_reason = "cancelled"
                self._end(stream, None)
            else:
                unread.append(stream)
        # The tokens come first, so that a prompt delays nobody by more than one part.
        if tokens:
            try:
                read = self.texts.step(tokens)
            except Exception as e:  # the pass fails for all of them
                for stream in tokens:
                    self._end(stream, e)
            else:
                for stream, result in read.items():
                    self._resume(stream, result)
        for stream in unread[:1]:
            try:
                part = self.running[stream].read(self.texts)
            except Exception as e:
                self._end(stream, e)
            else:
                if part is not None:
                    self._resume(stream, part)

    def _resume(self, stream: "RoundStream", result: Optional[Read]) -> None:
        """Continue a stream after its tokens were read. One that fails does not affect the others."""
        try:
            with stream.lock:
                self.running[stream].resume(result)
            stream.flush()
        except StopIteration:
            stream.flush()
            self._end(stream, None)
        except Exception as e:
            self._end(stream, e)

    def _end(self, stream: "RoundStream", error: Optional[Exception]) -> None:
        del self.running[stream]
        self.texts.remove(stream)
        stream.end(error)


class RoundStream(EmberStream):
    """A stream whose steps StreamRounds runs."""

    @property
    def cancelled(self) -> bool:
        """RETURNS (bool): Whether `cancel` was called."""
        return self._cancelled

    def flush(self) -> None:
        """Called when there are new events."""
        raise NotImplementedError

    def end(self, error: Optional[Exception]) -> None:
        """Called at the end.

        error (Optional[Exception]): Why the stream failed; None if it did not fail.
        """
        raise NotImplementedError


class Progress:
    """What the LLM has to read next for a stream."""

    def __init__(self, stream: RoundStream) -> None:
        self.stream = stream
        self.steps: Steps = stream.steps()
        self.step = Step([])
        self.is_prompt = True
        self.n_read = 0
        self.parts: List[Features] = []

    def resume(self, result: Optional[Read]) -> None:
        """RAISES (StopIteration): If the stream has ended."""
        if result is None:
            self.step = next(self.steps)
            return
        self.stream.predictor.llm.check_finite(result[1].hidden)
        self.step = self.steps.send(result)
        # Only the prompt, and the end token of a few LLMs, have several tokens.
        self.is_prompt = len(self.step.ids) > 1
        self.n_read = 0

    def read(self, texts: Any) -> Optional[Read]:
        """Read the next part of the prompt.

        RETURNS (Optional[Read]): The result for the whole prompt; None if it is not complete.
        """
        part = self.step.ids[self.n_read : self.n_read + PROMPT_PART]
        self.n_read += len(part)
        complete = self.n_read == len(self.step.ids)
        logits, features = texts.read_prompt(self.stream, part, complete)
        self.parts.append(features)
        if not complete:
            return None
        parts, self.parts = self.parts, []
        return logits, _joined(parts)


def _joined(parts: Sequence[Features]) -> Features:
    """RETURNS (Features): The features of consecutive tokens."""
    rows = [part.attention for part in parts if part.attention is not None]
    hidden = torch.cat([part.hidden for part in parts])
    return Features(hidden, torch.cat(rows) if rows else None)
