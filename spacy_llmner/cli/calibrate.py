"""`spacy llmner calibrate`: calibrate components on held-out texts, and save the pipeline."""

from pathlib import Path
from typing import Any, Dict, List, Optional

import typer
from spacy.cli._util import import_code
from spacy.language import Language
from spacy.training import Example

from ..el4ner_ensemble.vote_calibration import VoteCalibration
from ..errors import Errors, LLMNERError
from ._util import check_data_path, exit_on_error, load_pipeline, read_examples


def calibrate_cli(
    model: str = typer.Argument(..., help="Pipeline: a folder or the name of a package"),
    data_path: Path = typer.Argument(
        ...,
        metavar="DATA",
        help="Held-out data in .spacy format, not used for training or testing",
    ),
    output: Path = typer.Argument(..., metavar="OUT", help="Folder for the calibrated pipeline"),
    limit: int = typer.Option(0, "--limit", min=0, help="Maximum number of docs; 0 for all"),
    gpu_id: int = typer.Option(
        -1,
        "--gpu-id",
        "-g",
        help="GPU for spaCy's own arrays, or -1 for none. The LLM uses its own `device` setting",
    ),
    code_path: Optional[Path] = typer.Option(None, "--code", "-c", help="Python file to import"),
) -> None:
    """Fit the vote weights of el4ner_ensemble and the example threshold of ra_it_ner."""
    import_code(code_path)
    with exit_on_error():
        check_data_path(data_path)
        nlp = load_pipeline(model, gpu_id)
        pipes = find_pipes(nlp)
        examples = read_examples(nlp, data_path)
        examples = examples[:limit] if limit else examples
        for pipe in pipes.values():
            pipe.check_calibration(examples)
        output.parent.mkdir(parents=True, exist_ok=True)  # fails before reading takes minutes
        typer.echo(f"Reading {len(examples)} texts. This can take minutes.")
        for name, result in calibrate(nlp, examples).items():
            typer.echo(f"{name}: {_describe_result(result)}")
        nlp.to_disk(output)
    typer.echo(f"Saved {output}")


def find_pipes(nlp: Language) -> Dict[str, Any]:
    """Find the components of a pipeline that can be calibrated.

    nlp (Language): The pipeline.
    RETURNS (Dict[str, Any]): The components by name, in the order of the pipeline.
    RAISES (LLMNERError): If there are none.
    """
    pipes = {name: pipe for name, pipe in nlp.pipeline if hasattr(pipe, "calibrate")}
    if not pipes:
        raise LLMNERError(Errors.E104.format(known=", ".join(nlp.pipe_names) or "none"))
    return pipes


def calibrate(nlp: Language, examples: List[Example]) -> Dict[str, Any]:
    """Call `calibrate` of all components that have this method, in the order of the pipeline. The texts for
    a component are annotated by the components before it.

    nlp (Language): The pipeline.
    examples (List[Example]): Annotated texts that were held out from training.
    RETURNS (Dict[str, Any]): The result of `calibrate`, by component.
    RAISES (LLMNERError): If no component can be calibrated, or no text has an entity.
    """
    results: Dict[str, Any] = {}
    names = list(nlp.pipe_names)
    for name, pipe in find_pipes(nlp).items():
        with nlp.select_pipes(enable=names[: names.index(name)]):
            texts = ((eg.predicted.copy(), eg.reference) for eg in examples)
            seen = [Example(*pair) for pair in nlp.pipe(texts, as_tuples=True)]
        results[name] = pipe.calibrate(seen)
    return results


def _describe_result(result: Any) -> str:
    if isinstance(result, VoteCalibration):
        weights = ", ".join(f"{name} {weight:g}" for name, weight in result.weights.items())
        return (
            f"F {100 * result.before:.1f} -> {100 * result.after:.1f} on these texts, without "
            f"verification. Vote weights: {weights}"
        )
    return f"examples are shown if their similarity is at least {result:.2f}"
