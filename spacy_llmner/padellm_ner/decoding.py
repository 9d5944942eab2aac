"""Count the mentions of each label, then decode all of them in parallel (PaDeLLM-NER, arXiv 2402.04838)."""

from dataclasses import dataclass, field, replace
from typing import Callable, Dict, Generator, List, Optional, Sequence, Tuple

import numpy as np

from ..decoding.constraints import Substrings
from ..decoding.generate import Answer, Branch, common_prefix, decode, look_ahead, run_parallel
from ..decoding.substrings import substring_constraint
from ..decoding.tree import Node, Request, Tree
from ..llm.word_tokens import WordTokens
from .beginnings import Beginning, Beginnings
from .counts import Counts
from .templates import NumberTokens, TemplateEncoder


@dataclass
class DecodedMention:
    """A mention as the LLM decoded it.

    label (str): Its label.
    index (int): Its index among the mentions of the label, starting at 1.
    occurrences (List[Tuple[int, int]]): The (start, end) character offsets of its string in the text.
        Empty if decoding stopped before the end of the mention.
    log_probs (List[float]): Log-probability of each token, without the end token, renormalized over
        the allowed tokens. With a `count_threshold`, the first value is the log-probability that any
        mention of the label begins with this token.
    raw_log_probs (List[float]): The same over the whole vocabulary; NaN unless requested.
    """

    label: str
    index: int
    occurrences: List[Tuple[int, int]]
    log_probs: List[float]
    raw_log_probs: List[float]


@dataclass(frozen=True)
class MentionDecodingSettings:
    """Settings for counting and decoding mentions.

    count_threshold (Optional[float]): Decode every mention whose beginning is more likely than this.
        None decodes the most likely mention for each index up to the most likely count, as published.
    nested (bool): Whether several mentions of a label can begin with the same word.
    raw (bool): Compute log-probabilities over the whole vocabulary too.
    draft (int): Maximum number of tokens to draft per forward pass; 0 decodes token by token.
    max_tokens (int): Maximum number of tokens of a mention.
    look_ahead (bool): Request the first mention in the same forward pass as the count, and use its
        scores to guess how the other mentions begin.
    """

    count_threshold: Optional[float] = None
    nested: bool = False
    raw: bool = False
    draft: int = 4
    max_tokens: int = 64
    look_ahead: bool = True


OnLabel = Callable[[str, List[DecodedMention]], None]


def find_mentions(
    prompt_encoder: TemplateEncoder,
    words: WordTokens,
    text: str,
    labels: Sequence[str],
    settings: MentionDecodingSettings,
    on_label: Optional[OnLabel] = None,
) -> Request:
    """Create the request that finds the mentions in a text.

    prompt_encoder (TemplateEncoder): Encodes the template for the LLM.
    words (WordTokens): The words of the text that are read.
    text (str): The text that the character offsets of `words` refer to.
    labels (Sequence[str]): The labels to find.
    settings (MentionDecodingSettings): How mentions are counted and decoded.
    on_label (Optional[Callable]): Called with a label and its mentions as soon as all of them are
        decoded.
    RETURNS (Request): Returns the mentions of each label (Dict[str, List[DecodedMention]]).
    """

    def request(tree: Tree) -> Generator[None, None, Dict[str, List[DecodedMention]]]:
        search = _Search(tree, prompt_encoder, words, text, settings)
        return (yield from search.run(labels, on_label))

    return request


@dataclass
class _LabelNodes:
    """The nodes of the tree that belong to the questions about one label.

    label (str): The label.
    prompt (Node): The end of the prompt; the questions about mentions follow it.
    count (Node): The end of the question about the number of mentions.
    first (Optional[Node]): The end of the question about mention 1, if it was added along with the
        count.
    """

    label: str
    prompt: Node
    count: Node
    first: Optional[Node] = None


@dataclass
class _Search:
    """Decodes the mentions of one text in one tree."""

    tree: Tree
    prompt_encoder: TemplateEncoder
    words: WordTokens
    text: str
    settings: MentionDecodingSettings
    mentions: Substrings = field(init=False)
    numbers: NumberTokens = field(init=False)

    def __post_init__(self) -> None:
        tokenizer = self.prompt_encoder.tokenizer if self.prompt_encoder.template.bare else None
        self.mentions = substring_constraint(
            self.words, self.prompt_encoder.end, tokenizer, self.text
        )
        self.numbers = self.prompt_encoder.numbers(len(self.mentions.first))

    def run(
        self, labels: Sequence[str], on_label: Optional[OnLabel]
    ) -> Generator[None, None, Dict[str, List[DecodedMention]]]:
        prompts = [self.prompt_encoder.label(label) for label in labels]
        shared = common_prefix(prompts)
        text = self.tree.add(
            None, [*self.prompt_encoder.before, *self.words.ids.tolist(), *prompts[0][:shared]]
        )
        branches = [
            self._decode_label(text, label, p[shared:], on_label)
            for label, p in zip(labels, prompts)
        ]
        found = yield from run_parallel(self.tree, branches)
        return dict(zip(labels, found))

    def _add_label_prompts(self, text: Node, label: str, ids: Sequence[int]) -> _LabelNodes:
        count = {-1: self.numbers.allowed(self.numbers.start)}
        before = self.prompt_encoder.count()
        if self.prompt_encoder.count_first or not before:
            node = self.tree.add(text, [*ids, *before], count)
            nodes = _LabelNodes(label, node, node)
        else:
            node = self.tree.add(text, ids)
            nodes = _LabelNodes(label, node, self.tree.add(node, before, count))
        if self.settings.look_ahead and not self.prompt_encoder.count_first:
            first = {-1: self.mentions.allowed(self.mentions.start)}
            nodes.first = self.tree.add(node, self.prompt_encoder.mention(1, 1), first)
        return nodes

    def _decode_label(
        self, text: Node, label: str, ids: Sequence[int], on_label: Optional[OnLabel]
    ) -> Generator[None, None, List[DecodedMention]]:
        nodes = self._add_label_prompts(text, label, ids)
        yield
        counts = Counts(self.numbers)
        counts.distribute(self.numbers.start, nodes.count.scores(-1))
        counting = decode(
            self.tree, nodes.count, [], self.numbers, draft=0, on_choice=counts.distribute
        )
        if self.settings.count_threshold is None:
            answers = yield from self._decode_by_index(nodes, counts, counting)
        else:
            answers = yield from self._decode_by_beginning(nodes, counts, counting)
        out = self._number_mentions(label, answers)
        if on_label is not None:
            on_label(label, out)
        return out

    def _decode_by_index(
        self, nodes: _LabelNodes, counts: Counts, counting: Branch
    ) -> Generator[None, None, List[Answer]]:
        """Decode the most likely mention for each index up to the most likely count, as published."""
        # While the rest of a long number is still being decoded, decode the mentions that its first digit
        # already implies.
        likely = counts.likeliest()
        both = yield from run_parallel(
            self.tree, [counting, self._decode_mentions(nodes, likely, range(1, likely + 1))]
        )
        n = self.numbers.sequences.index(tuple(both[0].ids))
        answers: List[Answer] = both[1]
        if n > likely:
            n_kept = 0 if self.prompt_encoder.count_first else likely
            rest = yield from self._decode_mentions(nodes, n, range(n_kept + 1, n + 1))
            answers = answers[:n_kept] + rest
        return answers[:n]

    def _decode_by_beginning(
        self, nodes: _LabelNodes, counts: Counts, counting: Branch
    ) -> Generator[None, None, List[Answer]]:
        """Decode each mention whose beginning is likely enough, whatever its index (see `beginnings`)."""
        threshold = self.settings.count_threshold
        assert threshold is not None
        beginnings = Beginnings(self._first_tokens(), threshold, self.settings.nested)
        firsts = [] if nodes.first is None else [(nodes.first, len(nodes.first.ids))]
        is_counting = [True]

        def count() -> Branch:
            yield from counting
            is_counting.clear()

        def likely(rows: List[Tuple[Node, int]]) -> List[Beginning]:
            scores = [node.scores(read - 1) for node, read in rows]
            at_least = [counts.at_least(k) for k in range(1, len(rows) + 1)]
            return beginnings.likely(scores, at_least)

        def decode_begun(rows: List[Tuple[Node, int]], begins: Sequence[Beginning]) -> Branch:
            branches = [self._decode_after(*rows[b.row], b.token) for b in begins]
            answers = yield from run_parallel(self.tree, branches)
            return {(b.token, b.rank): answer for b, answer in zip(begins, answers)}

        def decode_others(before: Sequence[Beginning]) -> Branch:
            rows, n_asked = list(firsts), 0
            while True:
                n = counts.highest_above(threshold)
                if n > n_asked:
                    rows = [] if self.prompt_encoder.count_first else rows
                    guesses = self._guesses(nodes, n)
                    for k in range(len(rows) + 1, n + 1):
                        rows.append(self._add_mention_prompt(nodes, n, k, guesses[k - 1 : k]))
                    n_asked = n
                elif not is_counting:
                    break
                yield
            final = likely(rows)
            known = {(b.token, b.rank) for b in before}
            new = [b for b in final if (b.token, b.rank) not in known]
            return final, (yield from decode_begun(rows, new))

        # Decode the mentions that the first question suggests while the other questions are being read.
        first = likely(firsts)
        _, answers, (final, others) = yield from run_parallel(
            self.tree, [count(), decode_begun(firsts, first), decode_others(first)]
        )
        answers.update(others)
        out = []
        for b in final:
            answer = answers[b.token, b.rank]
            more = b.log_prob - answer.log_probs[0]
            answer.log_probs[0] += more
            answer.raw_log_probs[0] += more
            out.append(answer)
        return out

    def _number_mentions(self, label: str, answers: Sequence[Answer]) -> List[DecodedMention]:
        """Turn the answers for a label into mentions and number them.

        RETURNS (List[DecodedMention]): If decoded by index, in the order of the indices. If decoded
            by beginning, in the order of the text, where the k-th copy of a string has the position of
            the string's k-th occurrence.
        """
        out = []
        copies: Dict[Tuple[Tuple[int, int], ...], int] = {}
        for k, answer in enumerate(answers, 1):
            occurrences = self.mentions.spans(answer.state) if answer.complete else []
            out.append(
                DecodedMention(
                    label, k, occurrences, answer.log_probs[:-1], answer.raw_log_probs[:-1]
                )
            )
        if self.settings.count_threshold is None:
            return out
        offsets = []
        for mention in out:
            key = tuple(mention.occurrences)
            copies[key] = copies.get(key, -1) + 1
            offsets.append(key[min(copies[key], len(key) - 1)] if key else (0, 0))
        order = sorted(range(len(out)), key=lambda i: offsets[i])
        return [replace(out[i], index=k) for k, i in enumerate(order, 1)]

    def _add_mention_prompt(
        self, nodes: _LabelNodes, n: int, k: int, guess: Sequence[int]
    ) -> Tuple[Node, int]:
        """Add the question about mention k, followed by drafted tokens of its answer.

        RETURNS (Tuple[Node, int]): The new node, and how many of its tokens belong to the question.
        """
        prompt = self.prompt_encoder.mention(n, k)
        asks, guessed = look_ahead(
            self.mentions, self.mentions.start, guess, self.settings.draft, self.settings.raw
        )
        last = len(prompt) - 1
        ask = {last + i: tokens for i, tokens in enumerate(asks)}
        return self.tree.add(nodes.prompt, [*prompt, *guessed], ask), len(prompt)

    def _decode_after(self, node: Node, n_read: int, first: Optional[int] = None) -> Branch:
        """Decode a mention after the question about it.

        node (Node): A node that begins with the question.
        n_read (int): How many of its tokens belong to the question.
        first (Optional[int]): The mention's first token; None for the most likely one.
        """
        settings = self.settings
        return decode(
            self.tree,
            node,
            [],
            self.mentions,
            draft=settings.draft,
            raw=settings.raw,
            max_tokens=settings.max_tokens,
            first=first,
            n_read=n_read,
        )

    def _decode_mentions(
        self, nodes: _LabelNodes, n: int, indices: Sequence[int]
    ) -> Generator[None, None, List[Answer]]:
        guesses = self._guesses(nodes, n)
        settings = self.settings
        branches = []
        for k in indices:
            node, prompt, guess = (
                nodes.prompt,
                self.prompt_encoder.mention(n, k),
                guesses[k - 1 : k],
            )
            if k == 1 and nodes.first is not None:
                node, prompt, guess = nodes.first, [], []
            branches.append(
                decode(
                    self.tree,
                    node,
                    prompt,
                    self.mentions,
                    guess=guess,
                    draft=settings.draft,
                    raw=settings.raw,
                    max_tokens=settings.max_tokens,
                )
            )
        return (yield from run_parallel(self.tree, branches))

    def _guesses(self, nodes: _LabelNodes, n: int) -> List[int]:
        """Guess how the mentions begin: with the tokens that the first mention could begin with.

        RETURNS (List[int]): One first token for each index, in the order of the text; empty if there
            is nothing to guess from.
        """
        if nodes.first is None or n < 2 or not self.settings.draft:
            return []
        scores = nodes.first.scores(-1)
        likely = [int(scores.ids[k]) for k in np.argsort(-scores.log_probs, kind="stable")[:n]]
        at = {int(t): k for k, t in reversed(list(enumerate(self._first_tokens())))}
        return sorted(likely, key=lambda token: at[token])

    def _first_tokens(self) -> np.ndarray:
        return self.mentions.tokens[self.mentions.first]
