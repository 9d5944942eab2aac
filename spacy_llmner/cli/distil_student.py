"""The training configs of the pipelines that `spacy llmner distil` trains."""

from pathlib import Path
from typing import Any, Dict, Optional

from spacy.cli.init_config import init_config as spacy_init_config
from spacy.language import Language
from spacy.util import load_config
from thinc.api import Config

from ..errors import Errors, LLMNERError
from ..pipeline.loading import llms_of
from .init_config import init_config

NER, EMBER = "ner", "ember_probe"
# The LLM of an ember_probe whose teacher has none.
DEFAULT_LLM = "smollm2-135m-instruct"


def check_student(student: str, overrides: Optional[Dict[str, Any]] = None) -> None:
    """Check the name of a student and its settings, before the teacher annotates.

    student (str): "ner", "ember_probe" or the path of a training config.
    overrides (Optional[Dict[str, Any]]): Settings to override, by their full names. Those of "ember_probe"
        are not checked here, because its config depends on the data.
    RAISES (LLMNERError): If it is something else, or the config can't be used.
    """
    if student == EMBER:
        return
    if student != NER and not Path(student).is_file():
        raise LLMNERError(Errors.E194.format(student=student))
    try:
        if student == NER:
            config = spacy_init_config(lang="en", pipeline=[NER], optimize="efficiency")
        else:
            config = load_config(student, interpolate=False)
        config = Config().from_str(config.to_str(), interpolate=False, overrides=overrides or {})
        paths = config.get("paths", {})
    except ValueError as e:
        # spaCy's message has several lines.
        reason = " ".join(str(e).split())
        raise LLMNERError(Errors.E195.format(path=student, reason=reason)) from e
    missing = [f"paths.{key}" for key in ("train", "dev") if key not in paths]
    if missing:
        reason = f"it has no {' and no '.join(missing)}"
        raise LLMNERError(Errors.E195.format(path=student, reason=reason))


def student_config(
    student: str, teacher: Language, train: Path, dev: Path, seed: Optional[int] = None
) -> Config:
    """Create the training config of a student.

    student (str): "ner" for spaCy's efficiency config, "ember_probe" for the config that suits the data, or
        the path of a training config.
    teacher (Language): The teacher. Its language, tokenizer and LLM are used, except in a config of your
        own.
    train (Path): Training data, in .spacy format.
    dev (Path): Dev data, in .spacy format.
    seed (Optional[int]): The seed of the training, or None for that of the config.
    RETURNS (Config): The config.
    RAISES (LLMNERError): If the data have no entities that can be used.
    """
    lang = str(teacher.lang)
    if student == NER:
        config = spacy_init_config(lang=lang, pipeline=[NER], optimize="efficiency")
        config["nlp"]["tokenizer"] = teacher.config["nlp"]["tokenizer"]
    elif student == EMBER:
        llms = [llm.spec.name for llm in llms_of(pipe for _, pipe in teacher.pipeline)]
        llm = llms[0] if llms else DEFAULT_LLM
        config, *_ = init_config(train, dev, EMBER, lang=lang, llm=llm)
        config["nlp"]["tokenizer"] = teacher.config["nlp"]["tokenizer"]
    else:
        config = load_config(student, interpolate=False)
    config["paths"].update(train=str(train), dev=str(dev))
    if seed is not None:
        config["training"]["seed"] = seed
        config.setdefault("system", {})["seed"] = seed
    return config
