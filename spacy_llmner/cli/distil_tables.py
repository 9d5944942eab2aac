"""What `spacy llmner distil` prints: which texts were kept, and the scores."""

from pathlib import Path
from typing import Any, Dict, Optional

from rich.console import Console
from rich.table import Table

from ._util import percent


def print_counts(counts: Dict[str, Any]) -> None:
    """Print how many texts are kept and left out."""
    table = Table(title=f"{counts['texts']:,} texts", title_justify="left", show_header=False)
    table.add_column(justify="right")
    table.add_column()
    table.add_row(
        f"{counts['kept']:,}",
        f"kept: {counts['with_entities']:,} with {counts['entities']:,} entities (score at least "
        f"{counts['min_score']}), the others without",
    )
    table.add_row(
        f"{counts['with_doubtful_passages']:,}",
        f"of them with {counts['doubtful_passages']:,} doubtful passages (scores from "
        f"{counts['doubt_score']} to {counts['min_score']}), which are marked as unknown",
    )
    table.add_section()
    for reason, n in counts["left_out"].items():
        table.add_row(f"{n:,}", f"left out: {reason}")
    Console().print(table)


def about_scores(test: Optional[Path], labelled: Optional[Path]) -> str:
    """RETURNS (str): What the scores mean."""
    if test is not None:
        return "None of the pipelines was trained on these texts here. The teacher may have been."
    if labelled is not None:
        return (
            "These labelled texts were used to choose the checkpoints, and the teacher may have been "
            "trained on them. For a fair comparison, give other labelled texts with --test."
        )
    return (
        "There are no labelled texts, so F1 is the agreement with the certain annotation of the teacher. "
        "To measure how good the pipelines are, give labelled texts with --test."
    )


def print_scores(results: Dict[str, Any], about: str) -> None:
    """Print the scores of all pipelines, and what they mean."""
    table = Table(title=f"Evaluated on {results['evaluated_on']}", title_justify="left")
    table.add_column("pipeline")
    for column in ("P", "R", "F1", "words/s"):
        table.add_column(column, justify="right")
    for name, scores in results["scores"].items():
        prf = [percent(scores[key]) for key in "prf"]
        table.add_row(name, *prf, f"{scores['words_per_second']:,.0f}")
    console = Console()
    console.print(table)
    console.print(about, markup=False)
