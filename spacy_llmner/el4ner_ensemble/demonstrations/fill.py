"""Fill the pool of labelled texts: choose the texts, and let the LLMs find the spans in them."""

import logging
import warnings
from typing import Any, Dict, List, Mapping, Sequence

from tqdm import tqdm

from ...errors import Warnings
from ...pipeline.windows import cut_into_windows
from ...retrieval.examples import PoolText
from ..interfaces import Task
from ..stages import Ensemble
from ..task_windows import word_shares
from .pool import DemonstrationPool, choose_texts, is_about

logger = logging.getLogger("spacy_llmner")


def fill_pool(
    pool: DemonstrationPool,
    texts: Sequence[PoolText],
    ensemble: Ensemble,
    name: str,
    cfg: Mapping[str, Any],
) -> None:
    """Fill a pool. This is done once, by `initialize`.

    pool (DemonstrationPool): The pool.
    texts (Sequence[PoolText]): The labelled texts to choose from.
    ensemble (Ensemble): Finds the spans in the chosen texts.
    name (str): The name of the component, for messages.
    cfg (Mapping[str, Any]): The settings of the component.
    RAISES (LLMNERError): If all voters failed on all texts.
    """
    fitting = _texts_about(texts, list(ensemble.label_set.types), name)
    if not uses_demonstrations(cfg):
        return
    chosen = choose_texts(_short_texts(fitting, ensemble, cfg["window"], name), cfg["pool_size"])
    if cfg["pre_extract"] == "gold":
        spans = [{"": [(a, b) for a, b, _ in t.example.entities]} for t in chosen]
        pool.fill(chosen, spans)
        return
    tasks = [Task(text.example.text, text.words) for text in chosen]
    n_questions = len(tasks) * len(ensemble.voters)
    with tqdm(total=n_questions, unit="text", desc="pre-extraction", disable=None) as bar:
        found = ensemble.pre_extract(tasks, bar.update)
    ensemble.call_counts.log(f"{name}, labelled texts", len(tasks))
    read = [k for k, task in enumerate(tasks) if not ensemble.all_failed(task)]
    if not read:
        ensemble.check_any_left(tasks)
    if len(read) < len(tasks):
        lost = len(tasks) - len(read)
        logger.warning(
            "'%s' drops %d of %d labelled texts: all voters failed on them", name, lost, len(tasks)
        )
    pool.fill([chosen[k] for k in read], [found[k] for k in read])


def uses_demonstrations(cfg: Mapping[str, Any]) -> bool:
    """RETURNS (bool): Whether the component is set to use demonstrations."""
    return cfg["retrieval"] != "none" and cfg["k"] > 0


def _texts_about(texts: Sequence[PoolText], labels: Sequence[str], name: str) -> List[PoolText]:
    """Leave out texts whose entities all have other labels, with a warning."""
    out = [text for text in texts if is_about(text.example, set(labels))]
    if len(out) < len(texts):
        counts = {"n": len(texts) - len(out), "total": len(texts)}
        others = {x for t in texts for _, _, x in t.example.entities}.difference(labels)
        message = Warnings.W011.format(name=name, labels=", ".join(sorted(others)), **counts)
        warnings.warn(message, stacklevel=4)
    return out


def _short_texts(
    texts: Sequence[PoolText], ensemble: Ensemble, size: int, name: str
) -> List[PoolText]:
    """Split texts that are too long for one window, as `read_tasks` does. Parts that start or end inside an
    entity are left out, and so are duplicates."""
    voters, residency, label_set = ensemble.voters, ensemble.residency, ensemble.label_set
    out: Dict[Any, PoolText] = {}
    n_cut = 0
    for text in texts:
        shares, _ = word_shares(text.example.text, text.words, voters, residency, label_set, size)
        windows = cut_into_windows(shares, text.begins.__contains__)
        parts = [text] if windows == [(0, len(shares))] else [text.part(*w) for w in windows]
        n_cut += sum(part is None for part in parts)
        for part in parts:
            if part is not None and is_about(part.example, set(label_set.types)):
                out.setdefault((part.example.hash, part.example.entities), part)
    if n_cut:
        logger.warning(
            "'%s' leaves out %d parts of long labelled texts, because they start or end inside an entity. "
            "Use shorter texts, or texts with sentence boundaries.",
            name,
            n_cut,
        )
    return list(out.values())
