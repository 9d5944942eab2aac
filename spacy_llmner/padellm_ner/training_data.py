"""Training sequences for a text: one for each label and mention (PaDeLLM-NER, arXiv 2402.04838)."""

from typing import Any, List, Optional, Sequence, Tuple

from ..decoding.constraints import NO_TOKENS, allowed_along
from ..decoding.substrings import spellings_in_text, substring_constraint
from ..llm.packing import TrainingSequence
from ..llm.word_tokens import WordTokens, spelling
from ..pipeline.training import MentionsByLabel
from .templates import TemplateEncoder

# Weight of a count that has a sequence of its own. With the published templates, the sequence of each
# mention contains the count, so the count is trained more often.
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
    """Create all training sequences for a text.

    A label without mentions has one sequence: the prompt, 0 and the end token. A label with N
    mentions has N sequences, one for each mention in the order of the text. With the published
    templates, each of them contains the count N and the k-th mention. With a template that requests
    count and mentions in separate branches, such as "compact", they contain only the mention, and the
    count has a sequence of its own, with a higher weight.

    prompt_encoder (TemplateEncoder): Encodes the template for the LLM.
    words (WordTokens): The words of the text.
    text (str): The text that the character offsets of `words` refer to.
    labels (Sequence[str]): The component's labels.
    mentions (MentionsByLabel): The first word, and one past the last, of each mention, by label.
    learn_index (bool): Also train on the tokens between the count and the mention. False is the
        paper's ablation "loss ignoring".
    allowed (bool): Compute the loss over the tokens that the answers could continue with, as in
        decoding. False is the published loss, over the whole vocabulary.
    RETURNS (List[TrainingSequence]): The sequences.
    """
    out = []
    tokenizer = prompt_encoder.tokenizer if prompt_encoder.template.bare else None
    substrings = substring_constraint(words, prompt_encoder.end, tokenizer, text)
    for label in labels:
        prompt = [*prompt_encoder.before, *words.ids.tolist(), *prompt_encoder.label(label)]
        count_prompt = [*prompt, *prompt_encoder.count()]
        # A mention that is annotated twice can only be found once.
        found = sorted(set(mentions.get(label, [])), key=lambda m: (m[0], -m[1]))
        n = len(found)
        numbers = prompt_encoder.numbers(max(len(substrings.first), n))
        if n == 0 or not prompt_encoder.count_first:
            weight = 1.0 if prompt_encoder.count_first else COUNT_WEIGHT
            number = prompt_encoder.number(n)
            out.append(_sequence(count_prompt, number, weight, numbers if allowed else None))
        for k, mention in enumerate(found, 1):
            head = prompt_encoder.mention(n, k)
            answer = [*mention_tokens(prompt_encoder, words, text, mention), prompt_encoder.end]
            if prompt_encoder.count_first:
                # The count is trained together with its end. The rest of the question follows it.
                count_answer = prompt_encoder.number(n)
                shared = _shared_length(head, count_answer)
                between = learn_index and not allowed
                in_loss = [True] * shared + [between] * (len(head) - shared)
                sequence = TrainingSequence(
                    [*count_prompt, *head, *answer],
                    [False] * len(count_prompt) + in_loss + [True] * len(answer),
                )
                if allowed:
                    sequence.allowed = [
                        *[NO_TOKENS] * len(count_prompt),
                        *allowed_along(numbers, head[:shared]),
                        *[NO_TOKENS] * (len(head) - shared),
                        *allowed_along(substrings, answer),
                    ]
            else:
                sequence = _sequence([*prompt, *head], answer, 1.0, substrings if allowed else None)
            out.append(sequence)
    return out


def mention_tokens(
    prompt_encoder: TemplateEncoder, words: WordTokens, text: str, mention: Tuple[int, int]
) -> List[int]:
    """RETURNS (List[int]): The tokens of a mention as an answer, without the end token."""
    start, end = mention
    inside = words.ids[words.first[start] : words.last[end - 1] + 1].tolist()
    word = text[slice(*words.bounds[start])]
    if prompt_encoder.template.bare:
        first = spelling(prompt_encoder.tokenizer, word)
    else:
        first = spellings_in_text(words, text).get(word, [])
    return first + inside[int(words.last[start] - words.first[start]) + 1 :]


def _sequence(
    prompt: List[int], answer: List[int], weight: float, rule: Optional[Any]
) -> TrainingSequence:
    """Append an answer to a prompt.

    rule (Optional[Any]): The constraint on the answer in decoding; None for a loss over the whole
        vocabulary.
    """
    in_loss = [False] * len(prompt) + [True] * len(answer)
    allowed = None if rule is None else [NO_TOKENS] * len(prompt) + allowed_along(rule, answer)
    return TrainingSequence([*prompt, *answer], in_loss, weight, allowed)


def _shared_length(a: Sequence[int], b: Sequence[int]) -> int:
    """RETURNS (int): The length of the longest common prefix of two sequences."""
    n = 0
    while n < min(len(a), len(b)) and a[n] == b[n]:
        n += 1
    return n
