"""Hooks of MkDocs: write the pages that come from other files, and adapt links to files outside docs/."""

import posixpath
import re
from pathlib import Path
from typing import Any

import typer
from mkdocs.structure.files import File, Files
from typer.cli import get_docs_for_click

from spacy_llmner.cli import app

ROOT = Path(__file__).parents[1]
FILES_URL = "https://github.com/spacy-llmner/spacy-llmner/blob/main/"
# Files outside docs/ that are pages of the site.
COPIES = {"benchmarks/RESULTS.md": "results.md", "CHANGELOG.md": "changes.md"}
# Pages with a wide table and few headings.
WIDE = ("index.md", "tasks.md", "choose.md")
LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)#\s]+)(?=[)#])")


def on_files(files: Files, config: Any) -> Files:
    """Add the generated pages."""
    readme = (ROOT / "README.md").read_text(encoding="utf8")
    start, tasks = re.split(r"^#(?=# Common tasks$)", readme, flags=re.M)
    tasks = tasks[: tasks.index("\n## Tests\n")]
    pages = {"index.md": relink(start, "."), "tasks.md": relink(tasks, "."), "cli.md": commands()}
    for source, page in COPIES.items():
        text = (ROOT / source).read_text(encoding="utf8")
        pages[page] = relink(text, posixpath.dirname(source))
    for page, text in pages.items():
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **kwargs: Any) -> str:
    if page.file.src_uri in WIDE:
        page.meta["hide"] = ["toc"]
    generated = page.file.generated_by is not None
    folder = posixpath.dirname(page.file.src_uri)
    return markdown if generated else relink(markdown, posixpath.join("docs", folder), folder)


def relink(markdown: str, folder: str, site_folder: str = "") -> str:
    """Adapt the relative links of a file.

    markdown (str): The text of the file.
    folder (str): The folder of the file, relative to the repository.
    site_folder (str): The folder of the page, relative to docs/.
    RETURNS (str): The text, in which links lead to pages of the site, or else to the repository.
    """

    def target(match: re.Match) -> str:
        path = posixpath.normpath(posixpath.join(folder, match[1]))
        page = path.removeprefix("docs/") if path.startswith("docs/") else COPIES.get(path)
        if page is not None:
            return posixpath.relpath(page, site_folder)
        return FILES_URL + path if (ROOT / path).exists() else match[1]

    return LINK.sub(target, markdown)


def commands() -> str:
    """RETURNS (str): The page of the commands, which typer generates from their code."""
    group: Any = typer.main.get_command(app)
    context = typer.Context(group)
    parts = ["# Commands", "All commands of `python -m spacy llmner`."]
    for name, command in group.commands.items():
        full_name = f"python -m spacy llmner {name}"
        parts.append(get_docs_for_click(obj=command, ctx=context, name=full_name, indent=1))
    page = "\n\n".join(parts)
    page = page.replace("```console\n$ ", "```bash\n")
    page = page.replace("* `--help`: Show this message and exit.\n", "")
    # The name of a command is enough in headings.
    return re.sub(r"^(#+) `python -m spacy llmner (.*)`$", r"\1 \2", page, flags=re.M)
