"""`spacy llmner calibrate`: fit what can be fitted on held-out texts, and save the pipeline."""

from pathlib import Path
from typing import Any, Dict, List, Optional

import typer
from spacy.cli._util import import_code
from spacy.language import Language
from spacy.training import Example

from ..el4ner_ensemble.vote_calibration import VoteCalibration
from ..errors import LLMNERError
from ._util import check_data_path, exit_on_error, load_pipeline, read_examples


def calibrate_cli(
    model: str = typer.Argument(..., help="Pipeline: a folder or the name of a package"),
    data_path: Path = typer.Argument(
        ..., metavar="DATA", help="Held-out data, in .spacy format: neither trained nor tested on"
    ),
    output: Path = typer.Argument(..., metavar="OUT", help="Folder for the calibrated pipeline"),
    limit: int = typer.Option(0, "--limit", min=0, help="Only so many docs, the first ones"),
    gpu_id: int = typer.Option(
        -1, "--gpu-id", "-g", help="GPU of spaCy's own arrays, or -1; the LLM's is its `device`"
    ),
    code_path: Optional[Path] = typer.Option(None, "--code", "-c", help="Python file to import"),
) -> None:
    """Fit what each voter of el4ner_ensemble counts, and when ra_it_ner shows examples."""
    import_code(code_path)
    with exit_on_error():
        check_data_path(data_path)
        nlp = load_pipeline(model, gpu_id)
        examples = read_examples(nlp, data_path)
        examples = examples[:limit] if limit else examples
        output.parent.mkdir(parents=True, exist_ok=True)  # told before minutes of reading
        typer.echo(f"Reading {len(examples)} texts, which may take minutes")
        for name, result in calibrate(nlp, examples).items():
            typer.echo(f"{name}: {_describe_result(result)}")
        nlp.to_disk(output)
    typer.echo(f"Saved {output}")


def calibrate(nlp: Language, examples: List[Example]) -> Dict[str, Any]:
    """Calibrate all components of a pipeline that can be, in their order. Each gets its texts as the
    components in front of it leave them.

    RETURNS (Dict[str, Any]): What each found, by component.
    RAISES (LLMNERError): If there is none, or no text has an entity.
    """
    found: Dict[str, Any] = {}
    names = list(nlp.pipe_names)
    for k, name in enumerate(names):
        pipe: Any = nlp.get_pipe(name)
        if hasattr(pipe, "calibrate"):
            with nlp.select_pipes(enable=names[:k]):
                texts = ((eg.predicted.copy(), eg.reference) for eg in examples)
                seen = [Example(*pair) for pair in nlp.pipe(texts, as_tuples=True)]
            found[name] = pipe.calibrate(seen)
    if not found:
        known = ", ".join(names) or "no component"
        raise LLMNERError(f"There is nothing to calibrate in the pipeline ({known}).")
    return found


def _describe_result(result: Any) -> str:
    if isinstance(result, VoteCalibration):
        counts = ", ".join(f"{name} counts {count:g}" for name, count in result.weights.items())
        return (
            f"F {100 * result.before:.1f} -> {100 * result.after:.1f} on these texts, not verified; "
            + counts
        )
    return f"examples are shown from a similarity of {result:.2f} on"
