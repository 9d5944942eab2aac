"""Decode the answers about all types of a text in parallel, as branches that share the examples and the
passage.
"""

import copy
import math
from dataclasses import dataclass
from typing import Any, Dict, Generator, List, Sequence, Tuple

import numpy as np

from ..decoding.constraints import Unconstrained
from ..decoding.generate import Answer, common_prefix, decode, run_parallel
from ..decoding.json_lists import TextLists
from ..decoding.tree import Node, Request, Tree
from .conversation import ConversationEncoder
from .postprocess import ListedString, find_strings, parse_list


@dataclass(frozen=True)
class ListDecodingSettings:
    """Settings for decoding answers.

    list_threshold (float): Decode a list if the probability that it is not empty is above this.
    constrained (bool): Allow only JSON lists of strings from the text.
    ordered (bool): Strings are listed in the order of the text.
    draft (int): Maximum number of tokens to draft per forward pass; 0 decodes token by token.
    max_tokens (int): Maximum number of tokens in an answer. If an answer is cut, its complete strings
        are used.
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
    """Create the request that asks about all types of a text.

    prompt_encoder (ConversationEncoder): Encodes the conversation for the LLM.
    prompts (Dict[str, List[int]]): The tokens of the conversation about each type. All of them begin
        with the same tokens.
    text (str): The text that `bounds` refers to.
    bounds (Sequence[Tuple[int, int]]): The first character, and one past the last, of each word.
    settings (ListDecodingSettings): How answers are decoded.
    RETURNS (Request): Returns the strings listed for each type (Dict[str, List[ListedString]]).
    """

    def request(tree: Tree) -> Generator[None, None, Dict[str, List[ListedString]]]:
        labels = list(prompts)
        shared = common_prefix([prompts[label] for label in labels])
        shared_node = tree.root(prompts[labels[0]][:shared])
        if settings.constrained:
            lists = TextLists(
                prompt_encoder.chat.tokenizer,
                text,
                bounds,
                prompt_encoder.end,
                ordered=settings.ordered,
            )
            branches = [
                _ask(tree, shared_node, prompts[label][shared:], lists, settings)
                for label in labels
            ]
        else:
            rule = prompt_encoder.unconstrained
            branches = [
                _ask_freely(
                    tree,
                    shared_node,
                    prompts[label][shared:],
                    rule,
                    prompt_encoder,
                    text,
                    bounds,
                    settings,
                )
                for label in labels
            ]
        found = yield from run_parallel(tree, branches)
        return dict(zip(labels, found))

    return request


def _ask(
    tree: Tree,
    shared_node: Node,
    question: Sequence[int],
    lists: TextLists,
    settings: ListDecodingSettings,
) -> Generator[None, None, List[ListedString]]:
    """Decode one list. First, decide with a threshold whether the list is empty."""
    if not lists.rule.can_list:
        return []
    empty, opening = lists.rule.empty, lists.rule.opening
    shared = common_prefix([empty, opening])
    either = np.array(sorted({empty[shared], opening[shared]}), dtype=np.int64)
    node = tree.add(shared_node, [*question, *opening[:shared]], ask={-1: either})
    yield
    scores = node.scores(-1)
    opened = float(scores.log_probs[list(scores.ids).index(opening[shared])])
    if math.exp(opened) <= settings.list_threshold:
        return []
    rule = continued_after(lists.rule, opening)
    answer: Answer = yield from decode(
        tree,
        node,
        opening[shared:],
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
    shared_node: Node,
    question: Sequence[int],
    rule: Unconstrained,
    prompt_encoder: ConversationEncoder,
    text: str,
    bounds: Sequence[Tuple[int, int]],
    settings: ListDecodingSettings,
) -> Generator[None, None, List[ListedString]]:
    """Decode an answer without a constraint, and parse the strings that it lists."""
    answer: Answer = yield from decode(
        tree, shared_node, question, rule, draft=0, max_tokens=settings.max_tokens
    )
    decoded = prompt_encoder.decode([token for token in answer.ids if token != prompt_encoder.end])
    mean = sum(answer.log_probs) / max(len(answer.log_probs), 1)
    occurrences = find_strings(text, parse_list(decoded), bounds)
    return [ListedString(p, mean) for p in occurrences]


def continued_after(rule: Any, ids: Sequence[int]) -> Any:
    """Create a constraint for an answer whose first tokens are already known.

    rule (Any): The constraint on the whole answer.
    ids (Sequence[int]): The answer's first tokens.
    RETURNS (Constraint): The same constraint, starting after these tokens.
    """
    out = copy.copy(rule)
    for token in ids:
        out.start = out.advance(out.start, token)
    return out
