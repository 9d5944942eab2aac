"""Count the LLM calls of an ensemble, as the EL4NER paper counts them."""

import logging
from dataclasses import asdict, dataclass, fields

logger = logging.getLogger("spacy_llmner")


@dataclass
class CallCounts:
    """The number of LLM calls, and of the forward passes and tokens that they took.

    In the first three stages, a call is one voter reading one text. In the fourth, it is one claim.

    pre_extraction (int): Calls in stage 1.
    extraction (int): Calls in stage 2.
    classification (int): Calls in stage 3.
    verification (int): Calls in stage 4.
    passes (int): Forward passes, including those of batches that failed and were read again.
    tokens (int): Tokens that the LLMs read, including those of batches that failed.
    dropped (int): Answers that were dropped: spans outside the text, and labels outside the label set.
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
        """RETURNS (int): The number of calls in all stages."""
        return self.pre_extraction + self.extraction + self.classification + self.verification

    def add(self, other: "CallCounts") -> None:
        """Add the counts of another object to this one."""
        for count in fields(self):
            setattr(self, count.name, getattr(self, count.name) + getattr(other, count.name))

    def log(self, name: str, n_texts: int) -> None:
        """Log the counts at level DEBUG.

        name (str): Which component read the texts, and for what.
        n_texts (int): The number of texts that were read.
        """
        counts = ", ".join(f"{count} {n}" for count, n in asdict(self).items())
        logger.debug("%s: %d LLM calls for %d texts (%s)", name, self.calls, n_texts, counts)
