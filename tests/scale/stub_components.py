"""Components for stub pipelines. `--code` imports this file in every process."""

import json
import os
import signal
from pathlib import Path

from spacy.language import Language
from spacy.pipeline import Pipe
from spacy.tokens import Span, SpanGroup


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


@Language.factory("teacher", default_config={"scores": {}, "threshold": 0.5})
class Teacher(Pipe):
    """Finds words with fixed labels and scores, if these are at least the threshold: {"Bonn": ["CITY",
    0.9]}."""

    def __init__(self, nlp, name, scores, threshold):
        self.name, self.scores = name, scores
        self.cfg = {"threshold": threshold}

    def __call__(self, doc):
        found = [token for token in doc if token.text in self.scores]
        found = [t for t in found if self.scores[t.text][1] >= self.cfg["threshold"]]
        spans = [Span(doc, t.i, t.i + 1, label=self.scores[t.text][0]) for t in found]
        scores = [self.scores[t.text][1] for t in found]
        doc.spans["llmner"] = SpanGroup(doc, spans=spans, attrs={"scores": scores})
        doc.ents = spans
        return doc

    def to_disk(self, path, *, exclude=()):
        Path(path).write_text(json.dumps(self.cfg))

    def from_disk(self, path, *, exclude=()):
        self.cfg = json.loads(Path(path).read_text())
        return self
