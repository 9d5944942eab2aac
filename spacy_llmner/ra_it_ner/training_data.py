"""Training sequences for annotated texts: similar examples, the requested types, and the answers."""

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
    """Create the training sequences for a batch: one packed conversation for each passage.

    examples (Sequence[Example]): The annotated texts.
    prompt_encoder (ConversationEncoder): Encodes the conversation for the LLM.
    budget (TokenBudget): The maximum lengths.
    selector (ExampleSelector): Retrieves the examples that are shown.
    settings (RAITSettings): The settings of the architecture.
    cfg (Dict[str, Any]): The component's settings: how types are sampled and examples are shown.
    rng (random.Random): The random number generator.
    RETURNS (List[Packed]): The packed conversations. Windows that are not completely annotated are
        left out.
    """
    passages: List[Tuple[Passage, MentionsByLabel]] = []
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
                passages.append((Passage(number, words, text, labels), mentions))
    out = []
    doc_ids = [LabelledText(eg.predicted.text).hash for eg in examples]
    queries = [LabelledText(passage.text, doc_id=doc_ids[passage.doc]) for passage, _ in passages]
    for (passage, mentions), retrieved in zip(passages, selector.find(queries)):
        shown = [r.example for r in retrieved]
        if cfg["random_k"]:
            shown = rng.sample(shown, rng.randint(0, len(shown)))
        passage.selected = budget.fit(SelectedExamples(tuple(shown)), passage, prompt_encoder)
        text = examples[passage.doc].predicted.text
        sequences = training_sequences(prompt_encoder, passage, text, mentions, settings)
        # Cut the answer as decoding does.
        limit = budget.context
        out.append(pack([TrainingSequence(x.ids[:limit], x.loss[:limit]) for x in sequences]))
    return out


def training_sequences(
    prompt_encoder: ConversationEncoder,
    passage: Passage,
    text: str,
    mentions: MentionsByLabel,
    settings: RAITSettings,
) -> List[TrainingSequence]:
    """Create the training sequences for a passage: one for each requested type.

    The sequences differ only in the question and the answer. When they are packed, they are the
    published conversation, except that every type is a branch of its own, as in decoding.

    prompt_encoder (ConversationEncoder): Encodes the conversation for the LLM.
    passage (Passage): The passage, with its labels and selected examples.
    text (str): The Doc's text, which the character offsets of the passage's words refer to.
    mentions (MentionsByLabel): The first word, and one past the last, of each mention, by label.
    settings (RAITSettings): The settings of the architecture.
    RETURNS (List[TrainingSequence]): The sequences.
    """
    lists = TextLists(prompt_encoder.chat.tokenizer, text, passage.bounds, prompt_encoder.end)
    out: List[TrainingSequence] = []
    for label in passage.labels:
        prompt = prompt_encoder.encode(passage.text, passage.selected.examples, label)
        answer = lists.spell(listed_spans(lists, mentions.get(label, []), settings.ordered))
        in_loss = [False] * len(prompt)
        if settings.learn_acknowledgements and not out:  # once per passage, not for every type
            in_loss = prompt_encoder.acknowledgements(
                passage.text, passage.selected.examples, label
            )
        out.append(TrainingSequence([*prompt, *answer], in_loss + [True] * len(answer)))
    return out


def listed_spans(
    lists: TextLists, mentions: Sequence[Tuple[int, int]], ordered: bool
) -> List[Tuple[int, int]]:
    """Select the mentions that an answer lists.

    lists (TextLists): The JSON lists of strings from the text.
    mentions (Sequence[Tuple[int, int]]): The first word, and one past the last, of each mention of a
        label.
    ordered (bool): List all mentions in the order of the text. If several begin with the same word, list
        only the longest. If False, list the first mention of each string.
    RETURNS (List[Tuple[int, int]]): The listed mentions.
    """
    seen, out = set(), []
    for start, end in sorted(set(mentions), key=lambda m: (m[0], -m[1])):
        key: object = start
        if not ordered:
            key = tuple(lists.spell([(start, end)]))
        if key not in seen:
            seen.add(key)
            out.append((start, end))
    return out
