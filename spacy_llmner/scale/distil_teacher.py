"""The pipeline that labels the training data of a smaller one."""

import os
import shutil
from pathlib import Path

from spacy.language import Language

from ..util import scratch_folder


def save_teacher(nlp: Language, path: Path, doubt_score: float) -> None:
    """Save a copy of the teacher that also finds what it is not sure of. A teacher that only finds what is
    more probable than 0.5 would present a span with a probability of 0.45 as "no entity".

    nlp (Language): The teacher. The thresholds of its components are lowered.
    path (Path): The folder. The same teacher always results in the same files.
    doubt_score (float): Spans that are at least as probable must be found.
    """
    for _, pipe in nlp.pipeline:
        cfg = getattr(pipe, "cfg", {})
        if cfg.get("threshold") is not None:
            cfg["threshold"] = min(cfg["threshold"], doubt_score)
    with scratch_folder(path.parent) as folder:
        nlp.to_disk(folder / path.name)
        # Files of another teacher must not stay.
        if path.exists():
            shutil.rmtree(path)
        os.replace(folder / path.name, path)
