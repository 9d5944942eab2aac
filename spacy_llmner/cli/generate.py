"""`spacy llmner generate`: let an LLM write training data, and a pipeline annotate them."""

from itertools import islice
from pathlib import Path
from typing import Iterator, Optional, Tuple

import typer
from spacy.language import Language
from spacy.tokens import DocBin
from tqdm import tqdm

from ..corpora.rows import check_not_spacy_v2
from ..ember_probe.generated_data import generate_examples
from ..errors import Errors, LLMNERError
from ..llm.registry import make_llm
from ._util import exit_on_error, load_pipeline


def generate_cli(
    prompts: Path = typer.Argument(
        ..., help="Prompts: a .spacy file, or a text file with one prompt per line"
    ),
    output: Path = typer.Argument(..., help="Output: a .spacy file"),
    llm: str = typer.Option(..., "--llm", help="LLM to write with: name, folder or hub id"),
    annotator: str = typer.Option(..., "--annotator", help="Pipeline that annotates the entities"),
    max_new_tokens: int = typer.Option(
        100, "--max-new-tokens", min=1, help="Maximum number of generated tokens per prompt"
    ),
    limit: Optional[int] = typer.Option(None, "--limit", min=1, help="Maximum number of prompts"),
) -> None:
    """
    Let the LLM continue prompts, annotate the generated text, and save it as training data. The words of
    the prompts are not annotated, so components only learn from the generated text.
    """
    with exit_on_error():
        n_docs, n_ents = generate(prompts, output, llm, annotator, max_new_tokens, limit)
    typer.echo(f"✔ {n_docs} texts with {n_ents} entities in the generated text: {output}")


def generate(
    prompts: Path,
    output: Path,
    llm: str,
    annotator: str,
    max_new_tokens: int = 100,
    limit: Optional[int] = None,
) -> Tuple[int, int]:
    """Generate a .spacy file for `spacy train`.

    prompts (Path): A .spacy file, or a text file with one prompt per line.
    output (Path): The .spacy file to write.
    llm (str): Name, folder or hub id of the LLM that writes.
    annotator (str): Folder or package of the pipeline that annotates the entities.
    max_new_tokens (int): Maximum number of generated tokens per prompt.
    limit (Optional[int]): Maximum number of prompts; None for all.
    RETURNS (Tuple[int, int]): The number of texts, and of entities in the generated text.
    RAISES (LLMNERError): If a file, the LLM or the pipeline doesn't exist, or no text was generated.
    """
    if output.suffix != ".spacy":
        raise LLMNERError(Errors.E107.format(path=output))
    nlp = load_pipeline(annotator)
    texts = list(islice(read_prompts(prompts, nlp), limit))
    if not texts:
        raise LLMNERError(Errors.E108.format(path=prompts))
    bar = tqdm(texts, unit="prompt", leave=False, disable=None)
    doc_bin, n_ents = DocBin(), 0
    for eg in generate_examples(make_llm(llm), bar, nlp, max_new_tokens=max_new_tokens):
        doc_bin.add(eg.reference)
        n_ents += len(eg.reference.ents)
    if not len(doc_bin):
        raise LLMNERError(Errors.E109.format(name=llm, n=len(texts)))
    output.parent.mkdir(parents=True, exist_ok=True)
    doc_bin.to_disk(output)
    return len(doc_bin), n_ents


def read_prompts(path: Path, nlp: Language) -> Iterator[str]:
    """Read prompts from a .spacy file or a text file.

    YIELDS (str): The non-empty prompts, without whitespace at both ends.
    RAISES (LLMNERError): If the file doesn't exist or can't be read.
    """
    if not path.exists():
        raise LLMNERError(Errors.E110.format(path=path))
    check_not_spacy_v2(path)
    if path.suffix == ".spacy":
        try:
            texts = [doc.text for doc in DocBin().from_disk(path).get_docs(nlp.vocab)]
        except Exception as e:  # unpacking arbitrary bytes can raise anything
            raise LLMNERError(Errors.E111.format(path=path, reason=e)) from e
    else:
        try:
            texts = path.read_text(encoding="utf8").splitlines()
        except UnicodeDecodeError as e:
            raise LLMNERError(Errors.E111.format(path=path, reason=e)) from e
    yield from (text.strip() for text in texts if text.strip())
