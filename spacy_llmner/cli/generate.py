"""`spacy llmner generate`: training data that an LLM writes and a pipeline annotates."""

from itertools import islice
from pathlib import Path
from typing import Iterator, Optional, Tuple

import typer
from spacy.language import Language
from spacy.tokens import DocBin
from tqdm import tqdm

from ..ember_probe.generated_data import generate_examples
from ..errors import LLMNERError
from ..llm.registry import make_llm
from ._util import exit_on_error, load_pipeline


def generate_cli(
    prompts: Path = typer.Argument(..., help="Prompts: .spacy, or a text file with one a line"),
    output: Path = typer.Argument(..., help="Where the .spacy file is written"),
    llm: str = typer.Option(..., "--llm", help="Who writes: a name, a folder or a hub id"),
    annotator: str = typer.Option(..., "--annotator", help="Pipeline that sets the entities"),
    max_new_tokens: int = typer.Option(100, "--max-new-tokens", min=1, help="Tokens per prompt"),
    limit: Optional[int] = typer.Option(None, "--limit", min=1, help="Prompts used"),
) -> None:
    """
    Let the LLM continue prompts, annotate what it wrote, and save it as training data. The prompts'
    own words carry no annotation, so that only what was written is learnt.
    """
    with exit_on_error():
        n_docs, n_ents = generate(prompts, output, llm, annotator, max_new_tokens, limit)
    typer.echo(f"✔ {n_docs} texts with {n_ents} entities in what was written: {output}")


def generate(
    prompts: Path,
    output: Path,
    llm: str,
    annotator: str,
    max_new_tokens: int = 100,
    limit: Optional[int] = None,
) -> Tuple[int, int]:
    """Write a .spacy file that `spacy train` reads.

    prompts (Path): A .spacy file, or a text file with one prompt a line.
    output (Path): Where to write.
    llm (str): Name, folder or hub id of the LLM that writes.
    annotator (str): Folder or package of the pipeline that sets the entities.
    max_new_tokens (int): Tokens written per prompt at most.
    limit (Optional[int]): Prompts used.
    RETURNS (Tuple[int, int]): Texts, and entities in what was written.
    RAISES (LLMNERError): If a file, the LLM or the pipeline is not there, or nothing was written.
    """
    if output.suffix != ".spacy":
        raise LLMNERError(
            f"`spacy train` reads '{output}' only if its name ends in .spacy: change it."
        )
    nlp = load_pipeline(annotator)
    texts = list(islice(read_prompts(prompts, nlp), limit))
    if not texts:
        raise LLMNERError(f"There is no prompt in '{prompts}'. Give it one text a line.")
    bar = tqdm(texts, unit="prompt", leave=False, disable=None)
    doc_bin, n_ents = DocBin(), 0
    for eg in generate_examples(make_llm(llm), bar, nlp, max_new_tokens=max_new_tokens):
        doc_bin.add(eg.reference)
        n_ents += len(eg.reference.ents)
    if not len(doc_bin):
        raise LLMNERError(
            f"The LLM '{llm}' wrote nothing behind any of the {len(texts)} prompts. Prompts that end "
            "in the middle of a text, such as its first sentence, are continued best."
        )
    output.parent.mkdir(parents=True, exist_ok=True)
    doc_bin.to_disk(output)
    return len(doc_bin), n_ents


def read_prompts(path: Path, nlp: Language) -> Iterator[str]:
    """YIELDS (str): The prompts of a .spacy file or a text file, without empty ones."""
    if not path.exists():
        raise LLMNERError(f"Can't find the prompts '{path}'.")
    if path.suffix == ".spacy":
        try:
            texts = [doc.text for doc in DocBin().from_disk(path).get_docs(nlp.vocab)]
        except Exception as e:  # whatever unpacking foreign bytes may raise
            raise LLMNERError(f"Can't read the prompts '{path}': no .spacy file ({e}).") from e
    else:
        try:
            texts = path.read_text(encoding="utf8").splitlines()
        except UnicodeDecodeError as e:
            raise LLMNERError(f"Can't read the prompts '{path}': no text in UTF-8 ({e}).") from e
    yield from (text.strip() for text in texts if text.strip())
