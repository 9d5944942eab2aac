"""From a text and its mentions to training sequences: one for each label and mention (methods.md 2a.2)."""

from typing import Any, List, Optional, Sequence, Tuple

from ..decoding.constraints import NO_TOKENS, allowed_along
from ..decoding.substrings import substring_constraint
from ..llm.packing import TrainingSequence
from ..llm.word_tokens import WordTokens, spelling
from ..pipeline.training import MentionsByLabel
from .templates import TemplateEncoder

# How much a count is learnt that is asked for once, and not, as published, with every mention.
COUNT_WEIGHT = 3.0


def training_sequences(
    prompt_encoder: TemplateEncoder,
    words: WordTokens,
    text: str,
    labels: Sequence[str],
    mentions: MentionsByLabel,
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
    tokenizer = prompt_encoder.tokenizer if prompt_encoder.template.bare else None
    occurrences = substring_constraint(words, prompt_encoder.end, tokenizer, text)
    for label in labels:
        prompt = [*prompt_encoder.before, *words.ids.tolist(), *prompt_encoder.label(label)]
        asked = [*prompt, *prompt_encoder.count()]
        # Of a mention that is there twice, one can be found.
        found = sorted(set(mentions.get(label, [])), key=lambda m: (m[0], -m[1]))
        n = len(found)
        numbers = prompt_encoder.numbers(max(len(occurrences.first), n))
        if n == 0 or not prompt_encoder.count_first:
            weight = 1.0 if prompt_encoder.count_first else COUNT_WEIGHT
            number = prompt_encoder.number(n)
            out.append(_sequence(asked, number, weight, numbers if allowed else None))
        for k, mention in enumerate(found, 1):
            head = prompt_encoder.mention(n, k)
            answer = [*mention_tokens(prompt_encoder, words, text, mention), prompt_encoder.end]
            if prompt_encoder.count_first:
                # The count is learnt with its end; what follows it is the index template.
                counted = prompt_encoder.number(n)
                shared = _common(head, counted)
                between = learn_index and not allowed
                learnt = [True] * shared + [between] * (len(head) - shared)
                sequence = TrainingSequence(
                    [*asked, *head, *answer],
                    [False] * len(asked) + learnt + [True] * len(answer),
                )
                if allowed:
                    sequence.allowed = [
                        *[NO_TOKENS] * len(asked),
                        *allowed_along(numbers, head[:shared]),
                        *[NO_TOKENS] * (len(head) - shared),
                        *allowed_along(occurrences, answer),
                    ]
            else:
                sequence = _sequence(
                    [*prompt, *head], answer, 1.0, occurrences if allowed else None
                )
            out.append(sequence)
    return out


def mention_tokens(
    prompt_encoder: TemplateEncoder, words: WordTokens, text: str, mention: Tuple[int, int]
) -> List[int]:
    """RETURNS (List[int]): How a mention is written."""
    start, end = mention
    inside = words.ids[words.first[start] : words.last[end - 1] + 1].tolist()
    if not prompt_encoder.template.bare:
        return inside
    bare = spelling(prompt_encoder.tokenizer, text[slice(*words.bounds[start])])
    return bare + inside[int(words.last[start] - words.first[start]) + 1 :]


def _sequence(
    prompt: List[int], answer: List[int], weight: float, rule: Optional[Any]
) -> TrainingSequence:
    """rule (Optional[Any]): The constraint that the answer is written under."""
    learnt = [False] * len(prompt) + [True] * len(answer)
    allowed = None if rule is None else [NO_TOKENS] * len(prompt) + allowed_along(rule, answer)
    return TrainingSequence([*prompt, *answer], learnt, weight, allowed)


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """RETURNS (int): In how many first tokens two sequences agree."""
    n = 0
    while n < min(len(a), len(b)) and a[n] == b[n]:
        n += 1
    return n
