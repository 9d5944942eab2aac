"""Ask for all types of a text at once, as branches behind examples and passage."""

import copy
import math
from dataclasses import dataclass
from typing import Any, Dict, Generator, List, Sequence, Tuple

import numpy as np

from ..decoding.constraints import Unconstrained
from ..decoding.engine import Node, Request, Tree
from ..decoding.generate import Answer, common_prefix, decode, run_parallel
from ..decoding.json_lists import TextLists
from .conversation import ConversationEncoder
from .postprocess import ListedString, find_strings, parse_list


@dataclass(frozen=True)
class ListDecodingSettings:
    """How answers are decoded.

    list_threshold (float): A list is written if it is more likely than this that it is not empty.
    constrained (bool): Allow nothing but JSON lists of runs of words of the text.
    ordered (bool): Strings are listed in the order of the text.
    draft (int): Tokens that are guessed ahead; 0 writes token by token.
    max_tokens (int): Tokens of an answer at most. Of one that is cut, finished strings count.
    """

    list_threshold: float = 0.5
    constrained: bool = True
    ordered: bool = True
    draft: int = 4
    max_tokens: int = 256


def ask_types(
    prompt_encoder: ConversationEncoder,
    prompts: Dict[str, List[int]],
    text: str,
    bounds: Sequence[Tuple[int, int]],
    settings: ListDecodingSettings,
) -> Request:
    """Make the program that asks a text for its types.

    prompts (Dict[str, List[int]]): The conversation for each type, in tokens; they begin alike.
    text (str): The text in whose characters `bounds` are.
    bounds (Sequence[Tuple[int, int]]): First character of each word and one past the last.
    RETURNS (Request): Returns Dict[str, List[ListedString]].
    """

    def request(tree: Tree) -> Generator[None, None, Dict[str, List[ListedString]]]:
        labels = list(prompts)
        shared = common_prefix([prompts[label] for label in labels])
        stem = tree.root(prompts[labels[0]][:shared])
        if settings.constrained:
            lists = TextLists(
                prompt_encoder.chat.tokenizer,
                text,
                bounds,
                prompt_encoder.end,
                ordered=settings.ordered,
            )
            branches = [_ask(tree, stem, prompts[x][shared:], lists, settings) for x in labels]
        else:
            rule = prompt_encoder.anything
            branches = [
                _ask_freely(
                    tree, stem, prompts[x][shared:], rule, prompt_encoder, text, bounds, settings
                )
                for x in labels
            ]
        found = yield from run_parallel(tree, branches)
        return dict(zip(labels, found))

    return request


def _ask(
    tree: Tree,
    stem: Node,
    question: Sequence[int],
    lists: TextLists,
    settings: ListDecodingSettings,
) -> Generator[None, None, List[ListedString]]:
    """Write one list: whether it is empty is decided first, by a threshold."""
    if not lists.rule.can_list:
        return []
    empty, opening = lists.rule.empty, lists.rule.opening
    same = common_prefix([empty, opening])
    either = np.array(sorted({empty[same], opening[same]}), dtype=np.int64)
    node = tree.add(stem, [*question, *opening[:same]], ask={-1: either})
    yield
    scores = node.scores(-1)
    opened = float(scores.log_probs[list(scores.ids).index(opening[same])])
    if math.exp(opened) <= settings.list_threshold:
        return []
    rule = behind(lists.rule, opening)
    answer: Answer = yield from decode(
        tree,
        node,
        opening[same:],
        rule,
        draft=settings.draft,
        max_tokens=max(settings.max_tokens - len(opening), 0),
    )
    ids = [*opening, *answer.ids]
    log_probs = [opened, *[0.0] * (len(opening) - 1), *answer.log_probs]
    sums = lists.item_log_probs(ids, log_probs)
    return [ListedString(p, x) for p, x in zip(lists.rule.spans(answer.state), sums)]


def _ask_freely(
    tree: Tree,
    stem: Node,
    question: Sequence[int],
    rule: Unconstrained,
    prompt_encoder: ConversationEncoder,
    text: str,
    bounds: Sequence[Tuple[int, int]],
    settings: ListDecodingSettings,
) -> Generator[None, None, List[ListedString]]:
    """Let the LLM write what it likes, and take what can be read of it."""
    answer: Answer = yield from decode(
        tree, stem, question, rule, draft=0, max_tokens=settings.max_tokens
    )
    written = prompt_encoder.decode([token for token in answer.ids if token != prompt_encoder.end])
    mean = sum(answer.log_probs) / max(len(answer.log_probs), 1)
    occurrences = find_strings(text, parse_list(written), bounds)
    return [ListedString(p, mean) for p in occurrences]


def behind(rule: Any, ids: Sequence[int]) -> Any:
    """RETURNS (Constraint): The same rule for an answer of which some tokens are written already."""
    out = copy.copy(rule)
    for token in ids:
        out.start = out.advance(out.start, token)
    return out
