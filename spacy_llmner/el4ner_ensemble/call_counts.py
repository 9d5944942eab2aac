"""LLM calls are counted as the paper counts them."""

import logging
from dataclasses import asdict, dataclass, fields

logger = logging.getLogger("spacy_llmner")


@dataclass
class CallCounts:
    """LLM calls as the paper counts them, and what went through the LLMs.

    One call is one voter with one text in one of the first three stages, and one claim in the fourth.
    """

    pre_extraction: int = 0
    extraction: int = 0
    classification: int = 0
    verification: int = 0
    passes: int = 0
    tokens: int = 0
    dropped: int = 0

    @property
    def calls(self) -> int:
        return self.pre_extraction + self.extraction + self.classification + self.verification

    def add(self, other: "CallCounts") -> None:
        for one in fields(self):
            setattr(self, one.name, getattr(self, one.name) + getattr(other, one.name))

    def log(self, name: str, n_texts: int) -> None:
        counted = ", ".join(f"{what} {n}" for what, n in asdict(self).items())
        logger.debug("%s: %d LLM calls for %d texts (%s)", name, self.calls, n_texts, counted)
