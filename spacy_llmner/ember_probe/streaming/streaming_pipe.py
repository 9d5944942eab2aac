"""StreamingPipe: base class of `ember_probe` that finds entities in text while it is written."""

from typing import Any, ContextManager, Iterable, Optional, Sequence

from thinc.api import Model

from ...errors import Errors, LLMNERError
from ..predictor import Predictor
from ..probes.base import Probe
from .generation import EmberStream
from .pool import StreamPool
from .prompt import Prompt
from .reader import EmberReader
from .streamer import EmberStreamer, follow_generation


class StreamingPipe:
    """The methods of `ember_probe` for text that is still being written."""

    name: str
    model: Model

    def predictor(self, labels: Optional[Sequence[str]] = None) -> Predictor:
        """RETURNS (Predictor): The trained probe with its LLM and the current settings."""
        raise NotImplementedError

    def trained_probe(self) -> Probe:
        """RETURNS (Probe): The trained probe."""
        raise NotImplementedError

    def expect_labels(self, labels: Iterable[str]) -> None:
        """Note labels that will be asked for."""
        raise NotImplementedError

    def check_settings(self) -> None:
        """RAISES (LLMNERError): If a setting has an invalid value."""
        raise NotImplementedError

    def stream(
        self, prompt: Prompt, *, labels: Optional[Sequence[str]] = None, **settings: Any
    ) -> EmberStream:
        """Generate text with the LLM, and find entities while it is being written.

        prompt (Union[str, Sequence[Dict[str, str]]]): A text to continue, or messages for the LLM's chat
            template.
        labels (Optional[Sequence[str]]): With EmberMatch, the labels to find in this stream.
        settings: `max_new_tokens`, `stop`, `temperature`, `top_p`, `repetition_penalty`, `seed`; see
            EmberStream.
        RETURNS (EmberStream): Iterate over it to get TextPiece and EntityEvent objects. After the last
            object, its attribute `doc` is the annotated Doc.
        RAISES (LLMNERError): If the probe works on finished text only, or is not trained.
        """
        self._check_streams(labels)
        return EmberStream(self.predictor(labels), prompt, **settings)

    def streams(self, max_streams: int = 8) -> StreamPool:
        """Generate several texts side by side, and find entities in them while they are being written.

        max_streams (int): Maximum number of texts that are generated at once. Others wait.
        RETURNS (StreamPool): Call its `start` with the arguments of `stream`, from any thread.
        RAISES (LLMNERError): If the probe works on finished text only, or is not trained.
        """
        self._check_streams()
        return StreamPool(self.predictor, max_streams)

    def streamer(self) -> ContextManager[EmberStreamer]:
        """Find entities in a generation that you run yourself with transformers' `generate`.

        RETURNS (ContextManager[EmberStreamer]): See EmberStreamer.
        RAISES (LLMNERError): If the probe works on finished text only, or is not trained.
        """
        self._check_streams()
        return follow_generation(self.predictor())

    def reader(self, *, labels: Optional[Sequence[str]] = None) -> EmberReader:
        """Find entities in a text that arrives in pieces, for example from the API of another LLM.

        labels (Optional[Sequence[str]]): With EmberMatch, the labels to find in this text.
        RETURNS (EmberReader): Pass each piece to its `push`, which returns EntityEvent objects. At the end
            of a `with` block, or after `close`, its attribute `doc` is the annotated Doc.
        RAISES (LLMNERError): If the probe works on finished text only, or is not trained.
        """
        self._check_streams(labels)
        return EmberReader(self.predictor(labels))

    def _check_streams(self, labels: Optional[Sequence[str]] = None) -> None:
        self.check_settings()
        self.expect_labels(labels or ())
        self.trained_probe()
        if not self.model.attrs["settings"].streams:
            raise LLMNERError(Errors.E025.format(name=self.name))
