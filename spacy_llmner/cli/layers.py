"""`spacy llmner layers`: find the layer of an LLM that is best for predicting entity types.

As in EMBER (arXiv 2403.11747), a type probe is trained on every layer and scored on dev data.
"""

import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import List, Optional, Sequence, Tuple

import numpy as np
import torch
import torch.nn.functional as F
import typer
from rich.console import Console
from rich.table import Table
from spacy.scorer import get_ner_prf
from spacy.tokens import Doc, Span
from spacy.training import Example
from torch import nn
from tqdm import tqdm

from ..ember_probe.features.cache import MAX_HALF
from ..ember_probe.features.words import WordReader
from ..errors import Errors, LLMNERError
from ..llm.loading import LoadedLLM
from ..llm.registry import make_llm
from ..pipeline.gold import gold_mentions
from ._util import blank_pipeline, check_data_path, exit_on_error, read_examples

# Docs in a batch of the LLM.
READ_BATCH = 32
WIDTH = 128
BATCH = 512
EPOCHS = 8
# Small data need more epochs.
MIN_STEPS = 300
LEARN_RATE = 1e-3
UNKNOWN = -1


@dataclass
class LayerScore:
    """The scores of a probe on one layer, measured on the dev data.

    layer (int): Index of the layer. 0 is the embeddings.
    depth (float): Depth of the layer, as a fraction of the LLM's depth.
    ents_p (float): Precision, from 0 to 1.
    ents_r (float): Recall, from 0 to 1.
    ents_f (float): F-score, from 0 to 1.
    """

    layer: int
    depth: float
    ents_p: float
    ents_r: float
    ents_f: float


def layers_cli(
    train_path: Path = typer.Argument(..., metavar="TRAIN", help="Training data (.spacy)"),
    dev_path: Path = typer.Argument(..., metavar="DEV", help="Dev data for the scores (.spacy)"),
    llm: str = typer.Option(..., "--llm", help="LLM: name, folder or hub id"),
    lang: str = typer.Option("en", "--lang", "-l", help="Language of the data"),
    output: Optional[Path] = typer.Option(None, "--output", "-o", help="JSON file for the scores"),
    limit: int = typer.Option(2000, "--limit", min=1, help="Maximum number of docs per file"),
    gpu_id: Optional[int] = typer.Option(
        None, "--gpu-id", "-g", help="GPU ID, or -1 for CPU  [default: a GPU if available]"
    ),
) -> None:
    """
    Train a small type probe on every layer of an LLM and compare the probes on dev data. The LLM
    reads the data once. The hidden states of all layers are stored in a temporary folder.
    """
    console = Console(highlight=False)
    device = "auto" if gpu_id is None else "cpu" if gpu_id < 0 else f"cuda:{gpu_id}"
    with exit_on_error():
        loaded = make_llm(llm, device=device).load()
        scores = sweep(loaded, train_path, dev_path, lang=lang, limit=limit, progress=True)
        best = max(scores, key=lambda s: s.ents_f)
        if not best.ents_f:
            raise LLMNERError(Errors.E105.format(path=dev_path))
        if output is not None:
            output.parent.mkdir(parents=True, exist_ok=True)
            found = {"llm": llm, "n_layers": loaded.n_layers, "best_layer": best.layer}
            found["layers"] = [asdict(s) for s in scores]
            output.write_text(json.dumps(found, indent=2) + "\n", encoding="utf8")
    console.print(_table(scores, best))
    console.print(
        f"Best: layer {best.layer} of {loaded.n_layers}, at {best.depth:.0%} of the depth. "
        "Use it in the config:\n\n[components.ember_probe.model]\n"
        f'@architectures = "spacy_llmner.EmberPaper.v1"\nlayer = {best.layer}\n\n'
        "(EmberFewShot.v2 has the same setting. EmberProbe.v1 mixes several layers: add this one to "
        "its `layers`.)",
        markup=False,
        soft_wrap=True,
    )


def sweep(
    llm: LoadedLLM,
    train_path: Path,
    dev_path: Path,
    *,
    lang: str = "en",
    limit: int = 2000,
    progress: bool = False,
) -> List[LayerScore]:
    """Train a probe on each layer and score it.

    llm (LoadedLLM): The LLM.
    train_path (Path): Training data, in .spacy format.
    dev_path (Path): Dev data, in .spacy format.
    lang (str): Language code, for the tokenizer.
    limit (int): Maximum number of Docs per file.
    progress (bool): Show progress bars, if standard error is a terminal.
    RETURNS (List[LayerScore]): The scores of each layer, starting with the embeddings.
    RAISES (LLMNERError): If a file doesn't exist or can't be used, or the training data have no entities.
    """
    nlp = blank_pipeline(lang)
    for path in (train_path, dev_path):
        check_data_path(path)
    train, dev = (read_examples(nlp, path)[:limit] for path in (train_path, dev_path))
    labels = sorted({label for eg in train for _, _, label in gold_mentions(eg)[0]})
    if not labels:
        raise LLMNERError(Errors.E023.format(name="layers"))
    types = torch.from_numpy(np.concatenate([_types(eg, labels) for eg in train]))
    disable = None if progress else True
    out = []
    with tempfile.TemporaryDirectory() as folder:
        train_states, dev_states = (
            read_states(llm, [eg.predicted for eg in examples], Path(folder) / name, disable)
            for name, examples in (("train", train), ("dev", dev))
        )
        numbers = range(llm.n_layers + 1)
        for layer in tqdm(numbers, desc="layers", unit="layer", leave=False, disable=disable):
            states = torch.from_numpy(np.array(train_states[layer], dtype=np.float32))
            probe = train_probe(states.to(llm.device), types.to(llm.device), len(labels) + 1)
            states = torch.from_numpy(np.array(dev_states[layer], dtype=np.float32))
            with torch.no_grad():
                predicted = probe(states.to(llm.device)).argmax(-1).cpu().numpy()
            _annotate(dev, predicted, labels)
            prf = get_ner_prf(dev)
            scores = (prf[f"ents_{x}"] or 0.0 for x in "prf")
            out.append(LayerScore(layer, layer / llm.n_layers, *scores))
        # Windows can't delete a file that is mapped.
        del train_states, dev_states
    return out


def read_states(
    llm: LoadedLLM, docs: Sequence[Doc], path: Path, disable: Optional[bool] = True
) -> np.ndarray:
    """Run the LLM on Docs and store the hidden states of their words.

    llm (LoadedLLM): The LLM.
    docs (Sequence[Doc]): The Docs.
    path (Path): File to store the hidden states in.
    disable (Optional[bool]): Whether to hide the progress bar; None to show it on a terminal only.
    RETURNS (ndarray): The hidden states as float16, shape (layers + 1, words, width), mapped from the file.
    """
    reader = WordReader(tuple(range(llm.n_layers + 1)))
    n_words = sum(len(doc) for doc in docs)
    shape = (llm.n_layers + 1, n_words, llm.width)
    out = np.memmap(path, dtype=np.float16, mode="w+", shape=shape)
    done = 0
    bar = tqdm(total=len(docs), desc="reading", unit="doc", leave=False, disable=disable)
    for k in range(0, len(docs), READ_BATCH):
        for features in reader.read(llm, docs[k : k + READ_BATCH]):
            states = features.hidden.clamp(-MAX_HALF, MAX_HALF).half().cpu().numpy()
            out[:, done : done + len(states)] = states.swapaxes(0, 1)
            done += len(states)
            bar.update()
    bar.close()
    return out


def train_probe(states: torch.Tensor, types: torch.Tensor, n_types: int) -> nn.Module:
    """Train a type probe on the hidden states of one layer: Linear, ReLU, Linear, as in PaperProbe.types.

    states (Tensor): Hidden states, shape (words, width).
    types (Tensor): Type of each word, shape (words,). UNKNOWN words are left out.
    n_types (int): Number of types.
    RETURNS (Module): The probe. It maps hidden states to logits of shape (words, n_types).
    """
    known = types != UNKNOWN
    states, types = states[known], types[known]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        mlp = nn.Sequential(nn.Linear(states.shape[1], WIDTH), nn.ReLU(), nn.Linear(WIDTH, n_types))
    probe = nn.Sequential(Scale(states), mlp).to(states.device)
    steps_per_epoch = -(-len(states) // BATCH)
    n_epochs = max(EPOCHS, -(-MIN_STEPS // steps_per_epoch))
    optimizer = torch.optim.AdamW(mlp.parameters(), lr=LEARN_RATE)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, n_epochs * steps_per_epoch)
    generator = torch.Generator().manual_seed(0)
    for _ in range(n_epochs):
        order = torch.randperm(len(states), generator=generator).to(states.device)
        for part in order.split(BATCH):
            loss = F.cross_entropy(probe(states[part]), types[part])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return probe.eval()


class Scale(nn.Module):
    """Normalize hidden states to mean 0 and standard deviation 1, since the scales of the layers differ by
    orders of magnitude."""

    def __init__(self, states: torch.Tensor) -> None:
        super().__init__()
        self.mean = states.mean(0)
        self.std = states.std(0, unbiased=False) + 1e-3

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return (states - self.mean) / self.std


def joined(types: Sequence[int], n_labels: int) -> List[Tuple[int, int, int]]:
    """Join adjacent words of the same type.

    types (Sequence[int]): Type of each word.
    n_labels (int): Number of labels, which is also the type of words outside entities.
    RETURNS (List[Tuple[int, int, int]]): Start and end in words, and label of each mention.
    """
    out: List[Tuple[int, int, int]] = []
    for i, label in enumerate(types):
        if label == n_labels:
            continue
        if out and out[-1][1:] == (i, label):
            out[-1] = (out[-1][0], i + 1, label)
        else:
            out.append((i, i + 1, int(label)))
    return out


def _types(eg: Example, labels: List[str]) -> np.ndarray:
    entities, unknown = gold_mentions(eg)
    types = np.full(len(eg.predicted), len(labels))
    for start, end, label in entities:
        types[start:end] = labels.index(label)
    for start, end in unknown:
        types[start:end] = UNKNOWN
    return types


def _annotate(examples: List[Example], types: np.ndarray, labels: List[str]) -> None:
    done = 0
    for eg in examples:
        doc = eg.predicted
        mentions = joined(types[done : done + len(doc)].tolist(), len(labels))
        doc.set_ents([Span(doc, s, e, label=labels[c]) for s, e, c in mentions], default="outside")
        done += len(doc)


def _table(scores: List[LayerScore], best: LayerScore) -> Table:
    table = Table()
    for column in ("layer", "depth", "P", "R", "F"):
        table.add_column(column, justify="right")
    table.add_column("")
    for score in scores:
        values = (f"{100 * x:.1f}" for x in (score.ents_p, score.ents_r, score.ents_f))
        mark, style = ("best", "bold green") if score is best else ("", None)
        table.add_row(str(score.layer), f"{score.depth:.0%}", *values, mark, style=style)
    return table
