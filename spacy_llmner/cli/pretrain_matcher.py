"""`spacy llmner pretrain-matcher`: train the weights with which ember_probe finds labels in words."""

import json
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Dict, List, Optional, Sequence, Set

import torch
import typer
from spacy.training.corpus import FILE_TYPE, walk_corpus
from spacy.util import get_lang_class
from tqdm import tqdm
from wasabi import Printer

from ..ember_probe.features.cache import open_cache
from ..ember_probe.features.words import WordFeatures
from ..ember_probe.matcher.corpora import ANYTHING, Corpus, Labels, read_corpus_file, read_labels
from ..ember_probe.matcher.held_out import HeldOutScores, choose_bias, labels_to_hold_out
from ..ember_probe.matcher.label_states import read_phrases
from ..ember_probe.matcher.pretraining import Read, TrainingData, pretrain
from ..ember_probe.matcher.weights import WEIGHTS, about, save_matcher
from ..ember_probe.matcher.wordnet import Match, WordNet
from ..ember_probe.probes.base import Dims
from ..ember_probe.probes.match import make_ember_match
from ..llm.loading import LoadedLLM
from ..llm.registry import make_llm
from ._util import check_data_path, exit_on_error

# Docs that the LLM reads at once.
READ_BATCH = 64


def pretrain_matcher_cli(
    corpora: Path = typer.Argument(..., help="Folder of .spacy files, each with its own labels"),
    output: Path = typer.Argument(..., metavar="OUT", help="Folder for the weights"),
    llm: str = typer.Option(..., "--llm", help="LLM: name, folder or hub id"),
    names: Optional[Path] = typer.Option(
        None, "--names", help="JSON file with names and parents of labels"
    ),
    wordnet: Optional[Path] = typer.Option(
        None, "--wordnet", help="Folder of WordNet's database files, for many more types"
    ),
    lang: str = typer.Option("en", "--lang", "-l", help="Language of the corpora"),
    epochs: int = typer.Option(5, "--epochs", min=1, help="Passes over the corpora"),
    width: int = typer.Option(256, "--width", min=2, help="Width of the probe"),
    seed: int = typer.Option(0, "--seed", help="Seed of the training"),
    device: str = typer.Option("auto", "--device", "-d", help="auto, cpu, cuda or cuda:N"),
) -> None:
    """
    Train a matcher on corpora with many labels. After that, ember_probe finds other labels, which
    are given in words. The LLM reads the corpora once, and its features are cached, so the command
    can be repeated. A label that the annotators of a corpus did not look for is never taken as wrong:
    they looked for the labels in doc._.llmner_labels, or else for all labels of the file.
    """
    msg = Printer()
    start = perf_counter()
    with exit_on_error():
        scores = make_matcher(
            corpora,
            output,
            llm,
            names=names,
            wordnet=wordnet,
            lang=lang,
            epochs=epochs,
            width=width,
            seed=seed,
            device=device,
        )
    msg.good(
        f"Trained in {perf_counter() - start:.0f} s. Labels that were held out: {scores.ents_f:.1%} F1 "
        f"({scores.untyped_f:.1%} for spans alone)",
        str(output),
    )
    typer.echo(
        f"Use it in the config:\n\n[components.ember_probe.model]\n@architectures = "
        f'"spacy_llmner.EmberMatch.v1"\nweights = "{output}"\nwidth = {width}'
    )


def make_matcher(
    corpora: Path,
    output: Path,
    llm: str,
    *,
    names: Optional[Path] = None,
    wordnet: Optional[Path] = None,
    lang: str = "en",
    epochs: int = 5,
    width: int = 256,
    seed: int = 0,
    device: str = "auto",
) -> HeldOutScores:
    """Train a matcher twice: without some labels, to choose its bias with them, and with all labels.

    See `pretrain_matcher_cli` for the arguments.

    RETURNS (HeldOutScores): The scores of the first matcher on the labels that it was not trained on.
    RAISES (LLMNERError): If files are missing or can't be used.
    """
    check_data_path(corpora)
    labels = read_labels(names)
    nouns = None if wordnet is None else WordNet(wordnet)
    vocab = get_lang_class(lang)().vocab
    read_from = sorted(walk_corpus(corpora, FILE_TYPE))
    found = [read_corpus_file(path, vocab) for path in read_from]
    loaded = make_llm(llm, device=device).load()
    settings = make_ember_match(width=width).attrs["settings"]
    dims = Dims(loaded.n_layers, loaded.width, loaded.n_heads, 1)
    layers = settings.reader(dims).layers
    read = _reader(loaded, settings.reader(dims), found)
    matches = [_matches(nouns, corpus) for corpus in found]
    phrases = _phrases(found, labels, nouns, matches)
    states = _states(loaded, layers, phrases)
    data = TrainingData(found, labels, labels_to_hold_out(found), states, nouns, matches)
    scores = HeldOutScores(0.0, 0.0, 0.0, [])
    if data.held_out:
        first = pretrain(data, settings, dims, read, epochs, seed)
        scores = choose_bias(first, data, read)
    probe = pretrain(replace(data, held_out=set()), settings, dims, read, epochs, seed)
    probe.matcher.bias.fill_(scores.bias)
    output.mkdir(parents=True, exist_ok=True)
    save_matcher(output / WEIGHTS, probe, about(loaded, settings))
    _write_card(output, loaded, found, scores, nouns is not None)
    return scores


def _reader(llm: LoadedLLM, reader, corpora: Sequence[Corpus]) -> Read:
    """RETURNS (Read): Returns cached features, after the LLM has read all corpora."""
    cache = open_cache("auto", llm, reader)
    assert cache is not None
    features: List[List[WordFeatures]] = []
    total = sum(len(corpus.docs) for corpus in corpora)
    with tqdm(total=total, desc="The LLM reads the corpora", unit="text", disable=None) as bar:
        for corpus in corpora:
            of_corpus: List[WordFeatures] = []
            for first in range(0, len(corpus.docs), READ_BATCH):
                docs = corpus.docs[first : first + READ_BATCH]
                of_corpus += cache.read(llm, reader, docs)
                bar.update(len(docs))
            features.append(of_corpus)
    for of_corpus in features:
        llm.check_finite(torch.cat([f.hidden for f in of_corpus[:READ_BATCH]]))

    def read(k: int, indices: Sequence[int]) -> List[WordFeatures]:
        return [features[k][i] for i in indices if i < len(features[k])]

    return read


def _matches(nouns: Optional[WordNet], corpus: Corpus) -> List[List[Match]]:
    """RETURNS (List[List[Match]]): For each text, the nouns that don't cross an annotated entity."""
    if nouns is None:
        return [[] for _ in corpus.docs]
    out = []
    for doc, mentions in zip(corpus.docs, corpus.mentions):
        spans = {(start, end) for start, end, _ in mentions}
        out.append(
            [
                match
                for match in nouns.match([token.text for token in doc])
                if (match.start, match.end) in spans
                or not any(start < match.end and match.start < end for start, end in spans)
            ]
        )
    return out


def _phrases(
    corpora: Sequence[Corpus],
    labels: Labels,
    nouns: Optional[WordNet],
    matches: Sequence[Sequence[Sequence[Match]]],
) -> List[str]:
    """RETURNS (List[str]): All names of labels and types."""
    asked: Set[str] = set().union(*(labels for corpus in corpora for labels in corpus.asked))
    asked |= {labels.parents[label] for label in asked if label in labels.parents}
    phrases = {name for label in asked for name in labels.names_of(label)} | set(ANYTHING)
    if nouns is not None:
        types = {t for corpus in matches for text in corpus for match in text for t in match.types}
        phrases |= {name for synset in types for name in nouns.names(synset)}
    return sorted(phrases)


def _states(
    llm: LoadedLLM, layers: Sequence[int], phrases: Sequence[str]
) -> Dict[str, torch.Tensor]:
    out: Dict[str, torch.Tensor] = {}
    bar = tqdm(
        range(0, len(phrases), READ_BATCH * 8), desc="The LLM reads the labels", disable=None
    )
    for first in bar:
        part = phrases[first : first + READ_BATCH * 8]
        out.update(zip(part, read_phrases(llm, layers, part)))
    return out


def _write_card(
    output: Path, llm: LoadedLLM, corpora: Sequence[Corpus], scores: HeldOutScores, wordnet: bool
) -> None:
    lines = [
        f"# Labels in words for {llm.spec.name}",
        "",
        "Weights for the architecture `spacy_llmner.EmberMatch.v1`, made by "
        "`spacy llmner pretrain-matcher`.",
        "",
        f"- LLM: {llm.spec.name}, fingerprint {llm.fingerprint}",
        f"- WordNet: {'yes' if wordnet else 'no'}",
        f"- Bias: {scores.bias}, chosen on the labels {', '.join(scores.labels) or '(none)'}, which were "
        f"held out: {scores.ents_f:.1%} F1, {scores.untyped_f:.1%} for spans alone",
        "",
        "| corpus | texts | words | entities | labels |",
        "|---|--:|--:|--:|--:|",
    ]
    for corpus in corpora:
        n_labels = len(set().union(*corpus.asked))
        n_words = sum(len(doc) for doc in corpus.docs)
        n_mentions = sum(map(len, corpus.mentions))
        lines.append(
            f"| {corpus.name} | {len(corpus.docs)} | {n_words} | {n_mentions} | {n_labels} |"
        )
    (output / "README.md").write_text("\n".join(lines) + "\n", encoding="utf8")
    (output / "scores.json").write_text(json.dumps(scores._asdict(), indent=2) + "\n")
