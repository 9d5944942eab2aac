"""From a text and its mentions to training sequences: one for each label and mention (methods.md 2a.2)."""

from typing import Any, List, Optional, Sequence, Tuple

from ..decoding.constraints import NOTHING, allowed_along
from ..decoding.substrings import substrings
from ..llm.packing import TrainingSequence
from ..llm.word_tokens import WordTokens, spelling
from ..pipeline.training import Mentions
from .templates import Wording

# How much a count is learnt that is asked for once, and not, as published, with every mention.
COUNT_WEIGHT = 3.0


def training_sequences(
    wording: Wording,
    words: WordTokens,
    text: str,
    labels: Sequence[str],
    mentions: Mentions,
    *,
    learn_index: bool = True,
    allowed: bool = True,
) -> List[TrainingSequence]:
    """Build all sequences of a text.

    A label without mention gives one: the prompt, 0 and the end. One with N mentions gives N, which
    all say N, and then write the k-th mention in the order of the text. A template that asks for the
    count and for mentions apart gives one more for the count, of more weight.

    learn_index (bool): Also learn what stands between the count and the mention; without it is the
        paper's ablation "loss ignoring".
    allowed (bool): Learn to choose among what the answers may go on with, as when they are written. False
        is the published loss, over the whole vocabulary.
    """
    out = []
    tokenizer = wording.tokenizer if wording.template.bare else None
    places = substrings(words, wording.end, tokenizer, text)
    for label in labels:
        prompt = [*wording.before, *words.ids.tolist(), *wording.label(label)]
        asked = [*prompt, *wording.count()]
        # Of a mention that is there twice, one can be found.
        found = sorted(set(mentions.get(label, [])), key=lambda m: (m[0], -m[1]))
        n = len(found)
        numbers = wording.numbers(max(len(places.first), n))
        if n == 0 or not wording.count_first:
            weight = 1.0 if wording.count_first else COUNT_WEIGHT
            number = wording.number(n)
            out.append(_sequence(asked, number, weight, numbers if allowed else None))
        for k, mention in enumerate(found, 1):
            head = wording.mention(n, k)
            answer = [*mention_tokens(wording, words, text, mention), wording.end]
            if wording.count_first:
                # The count is learnt with its end; what follows it is the index template.
                counted = wording.number(n)
                shared = _common(head, counted)
                between = learn_index and not allowed
                learnt = [True] * shared + [between] * (len(head) - shared)
                sequence = TrainingSequence(
                    [*asked, *head, *answer],
                    [False] * len(asked) + learnt + [True] * len(answer),
                )
                if allowed:
                    sequence.allowed = [
                        *[NOTHING] * len(asked),
                        *allowed_along(numbers, head[:shared]),
                        *[NOTHING] * (len(head) - shared),
                        *allowed_along(places, answer),
                    ]
            else:
                sequence = _sequence([*prompt, *head], answer, 1.0, places if allowed else None)
            out.append(sequence)
    return out


def mention_tokens(
    wording: Wording, words: WordTokens, text: str, mention: Tuple[int, int]
) -> List[int]:
    """RETURNS (List[int]): How a mention is written."""
    start, end = mention
    inside = words.ids[words.first[start] : words.last[end - 1] + 1].tolist()
    if not wording.template.bare:
        return inside
    bare = spelling(wording.tokenizer, text[slice(*words.bounds[start])])
    return bare + inside[int(words.last[start] - words.first[start]) + 1 :]


def _sequence(
    prompt: List[int], answer: List[int], weight: float, rule: Optional[Any]
) -> TrainingSequence:
    """rule (Optional[Any]): The constraint that the answer is written under."""
    learnt = [False] * len(prompt) + [True] * len(answer)
    allowed = None if rule is None else [NOTHING] * len(prompt) + allowed_along(rule, answer)
    return TrainingSequence([*prompt, *answer], learnt, weight, allowed)


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """RETURNS (int): In how many first tokens two sequences agree."""
    n = 0
    while n < min(len(a), len(b)) and a[n] == b[n]:
        n += 1
    return n
