"""What `padellm_ner` makes of the shared LLM at first use."""

from typing import Any, NamedTuple

from ..llm.pool import LoadedLLM
from .templates import Wording


class InUse(NamedTuple):
    """What is made at first use. A copy of the component makes its own.

    view (nn.Module): The LLM's decoder with the adapter in it.
    wording (Wording): In the LLM's tokens.
    """

    llm: LoadedLLM
    view: Any
    wording: Wording

    def __reduce__(self):
        return type(None), ()
