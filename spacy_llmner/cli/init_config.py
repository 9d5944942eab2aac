"""`spacy llmner init config`: write a training config that suits the corpus."""

from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

import typer
from spacy.training import Example
from thinc.api import Config
from wasabi import Printer

from ..ember_probe.matcher.weights import come_with_package
from ..errors import Errors, LLMNERError, Warnings
from ..llm.location import is_on_disk, resolve_path
from ..models.catalogue import CATALOGUE
from ..pipeline.gold import gold_mentions
from ._util import blank_pipeline, check_data_path, exit_on_error, read_examples
from .training_config import RECIPES, Schedule, make_config, make_schedule
from .training_cost import Cost, estimate_cost, n_words

# Lower and upper limits for `max_words` of ember_probe, which needs time and memory for each possible
# length of an entity.
MAX_WORDS = (8, 24)
# Below this number of words of training data, training starts from the words of the labels. Measured:
# better with 1,400 and 1,900 words, worse with 7,500 and 9,000 (benchmarks/peers).
SMALL_CORPUS = 3_000
# The longest mention that the weights for labels in words can find.
MATCHER_WORDS = 8
EMBER_MATCH = "spacy_llmner.EmberMatch.v1"
# Settings that are in English by default, and must be changed for a corpus in another language.
ENGLISH = {
    "ember_probe": ("model.prefix",),
    "padellm_ner": ("model.template", "model.label_words"),
    "ra_it_ner": ("model.conversation", "model.label_words", "encoder.name"),
}


def init_config_cli(
    train_path: Path = typer.Argument(..., metavar="TRAIN", help="Training data (.spacy)"),
    dev_path: Path = typer.Argument(
        ..., metavar="DEV", help="Data to choose the best checkpoint with (.spacy)"
    ),
    output: Path = typer.Argument(..., metavar="OUT", help="The config file to write"),
    component: str = typer.Option(
        "ember_probe", "--component", help=f"Component to train: {', '.join(RECIPES)}"
    ),
    llm: str = typer.Option("smollm2-135m-instruct", "--llm", help="LLM: name, folder or hub id"),
    lang: str = typer.Option("en", "--lang", "-l", help="Language of the data"),
    passes: Optional[float] = typer.Option(
        None, "--passes", min=0.01, help="Passes over the corpus  [default: from its size]"
    ),
    gpu_id: Optional[int] = typer.Option(
        None, "--gpu-id", "-g", help="GPU ID, or -1 for CPU  [default: a GPU if available]"
    ),
    force: bool = typer.Option(False, "--force", "-F", help="Overwrite the config file"),
) -> None:
    """
    Write a config for `spacy train` with a number of steps, a batch size and an evaluation frequency that
    suit the corpus. If the LLM is on this machine, also estimate how much time and memory training needs.
    """
    with exit_on_error():
        if output.exists() and not force:
            raise LLMNERError(Errors.E123.format(path=output))
        config, schedule, train, dev = init_config(
            train_path, dev_path, component, llm=llm, lang=lang, passes=passes, gpu_id=gpu_id
        )
        output.parent.mkdir(parents=True, exist_ok=True)
        config.to_disk(output)
        typer.echo(f"✔ Saved the config: {output}")
        model = config["components"][component].get("model", {})
        if model.get("@architectures") == EMBER_MATCH:
            message = "The corpus is small, so the training starts from the words of the labels"
            typer.echo(f"ℹ {message} ({EMBER_MATCH})")
        batch_size = config["training"]["batcher"]["size"]
        Printer().table([*describe_corpus(train, dev), *describe_schedule(schedule, batch_size)])
        if lang != "en":
            names = ", ".join(f"components.{component}.{name}" for name in ENGLISH[component])
            typer.echo(f"⚠ {Warnings.W020.format(settings=names, lang=lang)}")
        missing = missing_models(config, component)
        if missing:
            typer.echo(f"⚠ {Warnings.W019.format(names=', '.join(missing))}")
        else:
            cost = estimate_cost(config, component, schedule, train, dev)
            typer.echo(f"ℹ Estimate for this machine: {describe_cost(cost)}")
    typer.echo(f"To train: python -m spacy train {output} --output out")


def init_config(
    train_path: Path,
    dev_path: Path,
    component: str = "ember_probe",
    *,
    llm: str = "smollm2-135m-instruct",
    lang: str = "en",
    passes: Optional[float] = None,
    gpu_id: Optional[int] = None,
) -> Tuple[Config, Schedule, List[Example], List[Example]]:
    """Create a training config for a corpus.

    train_path (Path): Training data, in .spacy format.
    dev_path (Path): Dev data, in .spacy format.
    component (str): The component to train.
    llm (str): Name, folder or hub id of the LLM.
    lang (str): Language code, for the tokenizer.
    passes (Optional[float]): Passes over the corpus; None to choose them from its size.
    gpu_id (Optional[int]): GPU of the LLM, or -1 for the CPU; None for a GPU if there is one.
    RETURNS (Tuple[Config, Schedule, List[Example], List[Example]]): The config, the length of the training
        run, the training data and the dev data.
    RAISES (LLMNERError): If an argument is invalid, a file can't be used, or a file has no entities.
    """
    if component not in RECIPES:
        known = ", ".join(RECIPES)
        raise LLMNERError(Errors.E006.format(value=component, what="component", known=known))
    nlp = blank_pipeline(lang)
    for path in (train_path, dev_path):
        check_data_path(path)
    train, dev = (read_examples(nlp, path) for path in (train_path, dev_path))
    for path, examples in ((train_path, train), (dev_path, dev)):
        if not any(mentions_of(examples)):
            raise LLMNERError(Errors.E124.format(path=path, lang=lang))
    if llm not in CATALOGUE:
        resolve_path(llm)  # raises an error if there is no such LLM
    schedule = make_schedule(RECIPES[component], [len(eg.predicted) for eg in train], passes)
    settings: Dict[str, Any] = {
        "paths.train": str(train_path),
        "paths.dev": str(dev_path),
        "paths.llm": llm,
    }
    if gpu_id is not None:
        device = "cpu" if gpu_id < 0 else f"cuda:{gpu_id}"
        settings[f"components.{component}.llm.device"] = device
    if component == "ember_probe":
        longest = max(end - start for start, end, _ in mentions_of(train))
        if starts_from_words(train, longest, llm, lang):
            settings["components.ember_probe.model"] = {"@architectures": EMBER_MATCH}
        else:
            least, most = MAX_WORDS
            settings["components.ember_probe.model.max_words"] = min(max(longest, least), most)
    return make_config(component, nlp, schedule, settings), schedule, train, dev


def starts_from_words(train: Sequence[Example], longest: int, llm: str, lang: str) -> bool:
    """Decide whether the training starts from the words of the labels (EmberMatch). With little data, this
    finds more; with much, a new probe does.

    train (Sequence[Example]): The training data.
    longest (int): Words of the longest mention.
    llm (str): Name of the LLM.
    lang (str): Language code.
    RETURNS (bool): The decision.
    """
    is_small = n_words(train) < SMALL_CORPUS and longest <= MATCHER_WORDS
    return is_small and lang == "en" and come_with_package(llm)


def mentions_of(examples: Sequence[Example]) -> List[Tuple[int, int, str]]:
    """RETURNS (List[Tuple[int, int, str]]): The start, end and label of all entities, in words."""
    return [mention for eg in examples for mention in gold_mentions(eg)[0]]


def missing_models(config: Config, component: str) -> List[str]:
    """RETURNS (List[str]): The models of the config that are not downloaded yet."""
    settings = config.copy().interpolate()["components"][component]
    blocks = [settings[key] for key in ("llm", "encoder") if key in settings]
    return [block["name"] for block in blocks if not is_on_disk(block["name"])]


def describe_corpus(train: Sequence[Example], dev: Sequence[Example]) -> List[Tuple[str, str]]:
    """RETURNS (List[Tuple[str, str]]): Rows of a table about the size of the corpus."""
    rows = []
    for name, examples in (("Training data", train), ("Dev data", dev)):
        mentions = mentions_of(examples)
        labels = sorted({label for _, _, label in mentions})
        longest = max(end - start for start, end, _ in mentions)
        rows += [
            (name, f"{len(examples):,} texts, {n_words(examples):,} words"),
            ("", f"{len(mentions):,} entities of up to {longest} words"),
            ("", f"{len(labels)} labels: {', '.join(labels)}"),
        ]
    return rows


def describe_schedule(schedule: Schedule, batch_size: int) -> List[Tuple[str, str]]:
    """RETURNS (List[Tuple[str, str]]): Rows of a table about the length of the training run."""
    return [
        ("Training", f"{schedule.passes:.1f} passes over the training data"),
        ("", f"{schedule.steps:,} steps with batches of up to {batch_size:,} words"),
        ("", f"evaluation every {schedule.eval_frequency} steps"),
    ]


def describe_cost(cost: Cost) -> str:
    """RETURNS (str): The cost of a training run, in words."""
    parts = [f"about {duration(cost.seconds)} on {cost.device}"]
    if cost.memory_mb is not None:
        parts.append(f"{cost.memory_mb / 1024:.1f} GB of memory")
    if cost.gpu_mb is not None:
        parts.append(f"{cost.gpu_mb / 1024:.1f} GB of GPU memory")
    if cost.cache_mb:
        parts.append(f"{cost.cache_mb / 1024:.2f} GB on disk for the hidden states of the corpus")
    return ", ".join(parts)


def duration(seconds: float) -> str:
    """RETURNS (str): A duration in minutes or hours."""
    minutes = seconds / 60
    if minutes < 1.5:
        return "a minute"
    return f"{minutes:.0f} minutes" if minutes < 90 else f"{minutes / 60:.1f} hours"
