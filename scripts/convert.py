"""Convert an annotated corpus to a .spacy file, like `python -m spacy llmner convert`. If the corpus is an
asset of a spaCy project, its checksum is verified first: `spacy project assets` exits with 0 even if a
checksum is wrong.
"""

import hashlib
import inspect
import re
from pathlib import Path
from typing import Any, Optional

import srsly
import typer

from spacy_llmner.cli.convert import convert_cli

PROJECT = typer.Option(
    None,
    "--project",
    help="project.yml with checksums of corpora. By default, the one in this folder, if any",
)


def main(project: Optional[Path] = PROJECT, **arguments: Any) -> None:
    """Convert an annotated corpus to spaCy's binary format, for training and evaluation."""
    if project is None and Path("project.yml").exists():
        project = Path("project.yml")
    path = arguments["input_path"]
    if project is not None and path.is_file():
        try:
            verify_checksum(path, project)
        except ValueError as e:
            typer.echo(str(e), err=True)
            raise typer.Exit(1) from None
    convert_cli(**arguments)


# The arguments of the command, and the option of this script.
main.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
    [
        *inspect.signature(convert_cli).parameters.values(),
        inspect.signature(main).parameters["project"],
    ]
)


def verify_checksum(path: Path, project: Path) -> None:
    """Compare a file with its checksum in project.yml, if it is listed there.

    path (Path): The file.
    project (Path): The project.yml.
    RAISES (ValueError): If the checksum is wrong, or if the project.yml can't be read.
    """
    try:
        config = srsly.read_yaml(project)
        assets = [(str(asset["dest"]), asset.get("checksum")) for asset in config.get("assets", [])]
        variables = config.get("vars", {})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise ValueError(f"{project}: can't read the assets of the project ({e})") from None
    for dest, checksum in assets:
        dest = re.sub(r"\$\{vars\.(\w+)\}", lambda match: str(variables.get(match[1])), dest)
        if checksum and (project.parent / dest).resolve() == path.resolve():
            md5 = hashlib.md5(path.read_bytes()).hexdigest()
            if md5 != checksum:
                raise ValueError(
                    f"{path}: the md5 checksum is {md5}, but must be {checksum} according to {project}. "
                    "Get the file again, or correct the checksum"
                )


if __name__ == "__main__":
    typer.run(main)
