"""Annotate corpora of any size, on one machine or many."""

from .annotator import Annotator
from .run import Summary, annotate
from .writers import OutputFormat

__all__ = ["Annotator", "OutputFormat", "Summary", "annotate"]
