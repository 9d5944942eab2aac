"""`spacy llmner distil`: a pipeline with an LLM labels texts, and a small pipeline learns from them."""

import json
from pathlib import Path
from typing import Any, Dict, NamedTuple, Optional

import typer
from spacy.cli._util import parse_config_overrides
from spacy.cli.train import train
from spacy.language import Language
from spacy.util import load_model
from thinc.api import Config

from ..errors import Errors, LLMNERError, check_values, wrong
from ..scale.annotator import import_code
from ..scale.distil_selection import DOUBT_SCORE, MIN_SCORE, Selection, select
from ..scale.distil_teacher import save_teacher
from ..scale.run import Summary, annotate
from ._util import blank_pipeline, exit_on_error, llm_names, load_pipeline
from .distil_data import (
    DistilData,
    check_labelled,
    check_labels,
    read_annotated,
    read_labelled,
    write_data,
)
from .distil_student import EMBER, NER, check_student, student_config
from .distil_tables import about_scores, print_counts, print_scores
from .evaluate import evaluate

NAME = "distil"
# Folders and files in OUT.
TEACHER, ANNOTATIONS, LABELLED_ONLY = "teacher", "annotations", "labelled_only"
# Texts that are annotated again if the annotation is stopped.
SHARD_SIZE = 250
CONFIG, RESULTS = "config.cfg", "distil.json"
# Why a text is left out, in addition to the reasons of `select`.
FAILED = f"failed: see {ANNOTATIONS}/failed.jsonl"


class Prepared(NamedTuple):
    """What a student is trained on.

    teacher (Language): The teacher.
    data (DistilData): The files.
    counts (Dict[str, Any]): JSON values: how many texts were kept and left out.
    """

    teacher: Language
    data: DistilData
    counts: Dict[str, Any]


def distil_cli(
    ctx: typer.Context,
    teacher: str = typer.Argument(
        ..., metavar="TEACHER", help="Pipeline that labels: a folder or the name of a package"
    ),
    unlabelled: str = typer.Argument(
        ..., metavar="UNLABELLED", help="Texts, in the formats of `spacy llmner annotate`"
    ),
    output: Path = typer.Argument(..., metavar="OUT", help="Output folder"),
    student: str = typer.Option(
        "ner", "--student", help="What to train: ner, ember_probe, or a training config"
    ),
    labelled: Optional[Path] = typer.Option(
        None, "--labelled", help="Labelled texts (.spacy) to train on as well"
    ),
    test: Optional[Path] = typer.Option(
        None, "--test", help="Labelled texts (.spacy) for the table of scores, and for nothing else"
    ),
    min_score: float = typer.Option(
        MIN_SCORE, "--min-score", min=0, max=1, help="Entities with a lower score are not certain"
    ),
    doubt_score: float = typer.Option(
        DOUBT_SCORE,
        "--doubt-score",
        min=0,
        max=1,
        help="Spans with a lower score are not entities. Those between both scores are unknown",
    ),
    text_field: str = typer.Option("text", "--text-field", help="Field or column of the texts"),
    workers: int = typer.Option(1, "--workers", min=1, help="Processes that annotate"),
    gpus: int = typer.Option(0, "--gpus", min=0, help="GPUs that annotate; 0 for `--workers`"),
    code_path: Optional[Path] = typer.Option(None, "--code", "-c", help="Python file to import"),
) -> None:
    """
    Annotate texts with a pipeline that uses an LLM, train a small pipeline on what it is certain of, and
    compare both. The small pipeline is OUT/model-best. If the annotation was stopped, run the same command
    again: it continues. Settings of the training can be overridden as in `spacy train`:
    --training.max_steps 2000.
    """
    with exit_on_error():
        overrides = parse_config_overrides(ctx.args)
        distil(
            teacher,
            unlabelled,
            output,
            student=student,
            labelled=labelled,
            test=test,
            min_score=min_score,
            doubt_score=doubt_score,
            text_field=text_field,
            workers=workers,
            gpus=gpus,
            code_path=code_path,
            overrides=overrides,
        )


def distil(
    teacher: str,
    unlabelled: str,
    output: Path,
    *,
    student: str = "ner",
    labelled: Optional[Path] = None,
    test: Optional[Path] = None,
    min_score: float = MIN_SCORE,
    doubt_score: float = DOUBT_SCORE,
    text_field: str = "text",
    workers: int = 1,
    gpus: int = 0,
    code_path: Optional[Path] = None,
    overrides: Optional[Dict[str, Any]] = None,
) -> Dict[str, Any]:
    """Annotate texts with a teacher, and train a student on them. The annotation of an earlier call with
    the same output folder is continued. The training starts again.

    teacher (str): The pipeline that labels: a folder or the name of a package.
    unlabelled (str): The texts: a file, or a folder with files.
    output (Path): The output folder.
    student (str): "ner", "ember_probe", or the path of a training config.
    labelled (Optional[Path]): Labelled texts, in .spacy format. Four fifths are training data. One fifth is
        for choosing the checkpoint.
    test (Optional[Path]): Labelled texts for the evaluation. If it is None, the texts for choosing the
        checkpoint are used.
    min_score (float): Entities with a lower score are not certain.
    doubt_score (float): Spans with a lower score are not entities. The tokens of spans between both scores
        are marked as unknown.
    text_field (str): The field or column of the texts.
    workers (int): The number of processes that annotate.
    gpus (int): The number of GPUs that annotate, or 0.
    code_path (Optional[Path]): A Python file to import first.
    overrides (Optional[Dict[str, Any]]): Settings of the training, by their full names.
    RETURNS (Dict[str, Any]): JSON values: how many texts were kept and left out, and the scores. They are
        also in OUT/distil.json.
    RAISES (LLMNERError): If an argument is invalid, or there is too little to train on.
    """
    check_student(student, overrides)
    prepared = prepare(
        teacher,
        unlabelled,
        output,
        labelled=labelled,
        test=test,
        min_score=min_score,
        doubt_score=doubt_score,
        text_field=text_field,
        workers=workers,
        gpus=gpus,
        code_path=code_path,
    )
    nlp, data = prepared.teacher, prepared.data
    title = student if student in (NER, EMBER) else Path(student).name
    models = {"teacher": teacher, f"student: {title}": str(output / "model-best")}
    train_pipeline(student_config(student, nlp, data.train, data.dev), output, overrides)
    if data.labelled_train is not None and data.labelled_dev is not None:
        alone = output / LABELLED_ONLY
        models[f"{title}, labelled texts alone"] = str(alone / "model-best")
        config = student_config(student, nlp, data.labelled_train, data.labelled_dev)
        train_pipeline(config, alone, overrides)
    evaluated_on = test or data.labelled_dev or data.dev
    results = {
        **prepared.counts,
        "evaluated_on": str(evaluated_on),
        "scores": {name: score(model, evaluated_on) for name, model in models.items()},
    }
    (output / RESULTS).write_text(json.dumps(results, indent=2) + "\n", encoding="utf8")
    print_scores(results, about_scores(test, labelled))
    _print_saved(output / "model-best")
    return results


def prepare(
    teacher: str,
    unlabelled: str,
    output: Path,
    *,
    labelled: Optional[Path] = None,
    test: Optional[Path] = None,
    min_score: float = MIN_SCORE,
    doubt_score: float = DOUBT_SCORE,
    text_field: str = "text",
    workers: int = 1,
    gpus: int = 0,
    code_path: Optional[Path] = None,
) -> Prepared:
    """Annotate texts with a teacher, and write the training data of the student. The parameters are those
    of `distil`.

    RETURNS (Prepared): The training data.
    RAISES (LLMNERError): If an argument is invalid, or there is too little to train on.
    """
    shares = {"min_score": min_score, "doubt_score": doubt_score}
    check_values(NAME, shares, shares=list(shares))
    if doubt_score > min_score:
        raise wrong("doubt_score", NAME, doubt_score, f"at most `min_score`, which is {min_score}")
    _check_output(output)
    if code_path is not None:
        import_code(str(code_path))
    nlp = load_pipeline(teacher)
    # Not with the teacher itself: its vocab would grow, and the saved copy would not be the same next time.
    blank = blank_pipeline(str(nlp.lang))
    labelled_docs, test_docs = read_labelled(blank, labelled), read_labelled(blank, test)
    if labelled is not None:
        check_labelled(labelled_docs, labelled)
    output.mkdir(parents=True, exist_ok=True)
    save_teacher(nlp, output / TEACHER, doubt_score)
    typer.echo(f"Annotating the texts: {output / ANNOTATIONS}")
    done = annotate(
        unlabelled,
        output / ANNOTATIONS,
        output / TEACHER,
        text_field=text_field,
        format="spacy",
        shard_size=SHARD_SIZE,
        resume=True,
        workers=workers,
        gpus=gpus,
        code_path=code_path,
        progress=True,
    )
    known = [doc.text for doc in (*labelled_docs, *test_docs)]
    selection = select(read_annotated(blank, done.shards), min_score, doubt_score, known)
    counts = {**shares, **_counts(selection, done), "labelled": len(labelled_docs)}
    print_counts(counts)
    data = write_data(selection.docs, labelled_docs, output, min_score)
    for path, docs in ((labelled, labelled_docs), (test, test_docs)):
        if path is not None:
            check_labels(selection.docs, docs, path)
    return Prepared(nlp, data, counts)


def train_pipeline(
    config: Config, folder: Path, overrides: Optional[Dict[str, Any]] = None
) -> None:
    """Train a pipeline like `spacy train`.

    config (Config): The training config. It is saved in the folder.
    folder (Path): The folder for `model-best` and `model-last`.
    overrides (Optional[Dict[str, Any]]): Settings to override, by their full names.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config.to_disk(folder / CONFIG)
    train(folder / CONFIG, folder, overrides=overrides or {})


def score(model: str, data_path: Path) -> Dict[str, float]:
    """RETURNS (Dict[str, float]): Precision, recall and F1 of a pipeline, and its words per second."""
    scores = evaluate(model, data_path).scores
    prf = {key: scores[f"ents_{key}"] for key in "prf"}
    return {**prf, "words_per_second": scores["speed"]}


def _check_output(output: Path) -> None:
    """Check that a folder is new, or was made by an earlier call.

    RAISES (LLMNERError): If it contains something else.
    """
    if not output.exists() or (output / TEACHER).exists():
        return
    others = sorted(file.name for file in output.iterdir())
    if others:
        raise LLMNERError(Errors.E184.format(path=output, files=", ".join(others[:3])))


def _counts(selection: Selection, done: Summary) -> Dict[str, Any]:
    left_out = {**selection.left_out, FAILED: done.n_failed}
    return {
        "texts": done.n_documents,
        "kept": len(selection.docs),
        "with_entities": sum(1 for doc in selection.docs if doc.ents),
        "entities": sum(len(doc.ents) for doc in selection.docs),
        "doubtful_passages": selection.n_doubtful,
        "with_doubtful_passages": selection.n_with_doubt,
        "left_out": left_out,
    }


def _print_saved(path: Path) -> None:
    names = llm_names(pipe for _, pipe in load_model(path).pipeline)
    needs = f"It uses the LLM {', '.join(names)}." if names else "It needs no LLM."
    typer.echo(f"✔ Saved the student: {path}. {needs}")
