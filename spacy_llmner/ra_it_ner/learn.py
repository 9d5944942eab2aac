"""From a text, its entities and retrieved examples to training sequences: one for each type asked for."""

from typing import Dict, List, Sequence, Tuple

from ..llm.json_lists import TextLists
from ..llm.packing import TrainingSequence
from ..retrieval.examples import LabelledText
from .conversation import Wording


def training_sequences(
    wording: Wording,
    lists: TextLists,
    text: str,
    examples: Sequence[LabelledText],
    labels: Sequence[str],
    mentions: Dict[str, List[Tuple[int, int]]],
    *,
    ordered: bool = True,
    learn_acknowledgements: bool = False,
) -> List[TrainingSequence]:
    """Build what is learnt from one text. The sequences share all but question and answer, so packed
    they are the published conversation with every type as a branch of its own, as it is asked later.

    lists (TextLists): The answers that the text allows.
    text (str): The passage.
    labels (Sequence[str]): The types that are asked for.
    mentions (Dict[str, List[Tuple[int, int]]]): First word and one past the last of the mentions.
    ordered (bool): List every mention, in the order of the text; else every string once.
    learn_acknowledgements (bool): Also learn the turns in which the LLM says that it has read.
    """
    out = []
    for label in labels:
        prompt = wording.encode(text, examples, label)
        answer = lists.spell(listed(lists, mentions.get(label, []), ordered))
        learnt = [False] * len(prompt)
        if learn_acknowledgements:
            learnt = wording.acknowledgements(text, examples, label)
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
