"""Components for stub pipelines. `--code` imports this file in every process."""

import os
import signal
from pathlib import Path

from spacy.language import Language
from spacy.pipeline import Pipe


@Language.component("fails")
def fails(doc):
    """Fails on the word FAIL."""
    if "FAIL" in doc.text:
        raise RuntimeError("I don't like this text")
    return doc


@Language.component("other_doc")
def other_doc(doc):
    """Returns another Doc."""
    return doc.copy()


@Language.factory("dies", default_config={"folder": "", "times": 1})
class Dies:
    """Kills its process on the word DIE, so many times."""

    def __init__(self, nlp, name, folder, times):
        self.folder, self.times = Path(folder), times

    def __call__(self, doc):
        n_deaths = len(list(self.folder.iterdir()))
        if "DIE" in doc.text and n_deaths < self.times:
            (self.folder / str(n_deaths)).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return doc


@Language.factory("fails_in_batches")
class FailsInBatches(Pipe):
    """Passes the whole batch to the error handler if one of its Docs has the word FAIL, as components of
    spaCy do."""

    def __init__(self, nlp, name):
        self.name = name

    def __call__(self, doc):
        return doc

    def pipe(self, stream, *, batch_size=128):
        docs = list(stream)
        try:
            if any("FAIL" in doc.text for doc in docs):
                raise RuntimeError("a bad batch")
            yield from docs
        except RuntimeError as e:
            self.get_error_handler()(self.name, self, docs, e)
