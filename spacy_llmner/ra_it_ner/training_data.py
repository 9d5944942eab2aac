"""From annotated texts to what is learnt: similar examples, the types that are asked for, answers."""

import random
from typing import Any, Dict, List, Sequence, Tuple

from spacy.training import Example

from ..decoding.json_lists import TextLists
from ..llm.packing import Packed, TrainingSequence, pack
from ..pipeline.gold import gold_mentions
from ..pipeline.labels import doc_labels
from ..pipeline.training import MentionsByLabel, known_windows
from ..retrieval.examples import LabelledText
from .architecture import RAITSettings
from .conversation import ConversationEncoder
from .example_selection import ExampleSelector, SelectedExamples
from .negative_sampling import sample_labels
from .prompts import Passage, TokenBudget, passage_text


def make_training_batch(
    examples: Sequence[Example],
    prompt_encoder: ConversationEncoder,
    budget: TokenBudget,
    selector: ExampleSelector,
    settings: RAITSettings,
    cfg: Dict[str, Any],
    rng: random.Random,
) -> List[Packed]:
    """Build what is learnt from a batch: for each passage one packed conversation.

    cfg (Dict[str, Any]): Of the component: how types are sampled and examples shown.
    RETURNS (List[Packed]): Texts about which something is unknown are left out.
    """
    asked: List[Tuple[Passage, MentionsByLabel]] = []
    for number, eg in enumerate(examples):
        gold = gold_mentions(eg, cfg["train_spans"])
        known = doc_labels(budget.name, eg.reference)
        windows = budget.windows(eg.predicted, prompt_encoder, list(cfg["frequencies"]))
        for words, mentions in known_windows(eg.predicted, windows, gold):
            labels = sample_labels(
                list(mentions),
                cfg["frequencies"],
                rng,
                rate=cfg["negative_rate"],
                least=cfg["least_negatives"],
                known=known,
            )
            if labels:
                text = passage_text(eg.predicted, words)
                asked.append((Passage(number, words, text, labels), mentions))
    out = []
    doc_ids = [LabelledText(eg.predicted.text).hash for eg in examples]
    queries = [LabelledText(passage.text, doc_id=doc_ids[passage.doc]) for passage, _ in asked]
    for (passage, mentions), retrieved in zip(asked, selector.find(queries)):
        shown = [r.example for r in retrieved]
        if cfg["random_k"]:
            shown = rng.sample(shown, rng.randint(0, len(shown)))
        passage.selected = budget.fit(SelectedExamples(tuple(shown)), passage, prompt_encoder)
        text = examples[passage.doc].predicted.text
        learnt = training_sequences(prompt_encoder, passage, text, mentions, settings)
        # An answer ends there too when it is written.
        most = budget.context
        out.append(pack([TrainingSequence(x.ids[:most], x.loss[:most]) for x in learnt]))
    return out


def training_sequences(
    prompt_encoder: ConversationEncoder,
    passage: Passage,
    text: str,
    mentions: MentionsByLabel,
    settings: RAITSettings,
) -> List[TrainingSequence]:
    """Build what is learnt from one passage: a sequence for each type asked for. They share all but
    question and answer, so packed they are the published conversation with every type as a branch of its
    own, as it is asked later.

    text (str): The Doc's text, in whose characters the passage's words are.
    mentions (MentionsByLabel): First word and one past the last of the mentions, by label.
    """
    lists = TextLists(prompt_encoder.chat.tokenizer, text, passage.bounds, prompt_encoder.end)
    out: List[TrainingSequence] = []
    for label in passage.labels:
        prompt = prompt_encoder.encode(passage.text, passage.selected.examples, label)
        answer = lists.spell(listed(lists, mentions.get(label, []), settings.ordered))
        learnt = [False] * len(prompt)
        if settings.learn_acknowledgements and not out:  # once, not for every type
            learnt = prompt_encoder.acknowledgements(passage.text, passage.selected.examples, label)
        out.append(TrainingSequence([*prompt, *answer], learnt + [True] * len(answer)))
    return out


def listed(
    lists: TextLists, mentions: Sequence[Tuple[int, int]], ordered: bool
) -> List[Tuple[int, int]]:
    """RETURNS (List[Tuple[int, int]]): The mentions that an answer names. Ordered, of those that begin
    with the same word the longest; else the first of each string."""
    seen, out = set(), []
    for start, end in sorted(set(mentions), key=lambda m: (m[0], -m[1])):
        spelt: object = start
        if not ordered:
            spelt = tuple(lists.spell([(start, end)]))
        if spelt not in seen:
            seen.add(spelt)
            out.append((start, end))
    return out
