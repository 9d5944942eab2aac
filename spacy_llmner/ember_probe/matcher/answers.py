"""Choose labels by how likely the LLM answers a question about a mention with their words.

The matcher finds mentions well, but often gives them the wrong label. The LLM knows more about names than
its hidden states show to a small probe, so with `ask_llm`, it is asked: after the text it reads a question
about each mention, and all labels are scored as answers in the same forward pass.
"""

from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import (
    Dict,
    Generator,
    Iterable,
    List,
    Mapping,
    NamedTuple,
    Sequence,
    Set,
    Tuple,
)

import numpy as np
from spacy.tokens import Doc

from ...decoding.engine import DecodingEngine
from ...decoding.tree import Node, Tree
from ...llm.loading import LoadedLLM
from ..probes.segmentation import IMPOSSIBLE

# The question, in two parts: the first is the same for all mentions.
QUESTION = "\nQuestion: What is"
ABOUT = " {mention}?\nAnswer: {mention} is"
# Words of the text that the LLM reads before the question.
WINDOW = 128
# Spans that are asked about: those that are at least this probable, whatever their label.
MIN_PROBABILITY = 0.2
# Labels that are asked for: those with the highest scores of the probe.
MAX_ASKED = 8
# Weight of the answers' log-probabilities when they are added to the probe's scores.
WEIGHT = 0.5
# Mentions of many kinds. How likely an answer is on average is subtracted, since "person" is always more
# likely than "programming language".
USUAL: Tuple[Tuple[str, str], ...] = (
    ("Yesterday Elena Brandt opened the exhibition.", "Elena Brandt"),
    ("The train to Norwick leaves at nine.", "Norwick"),
    ("Shares of Halden Motors fell again on Monday.", "Halden Motors"),
    ("She was treated for severe asthma last winter.", "asthma"),
    ("They watched The Silent Harbour at the old cinema.", "The Silent Harbour"),
    ("We sorted the records with quicksort and counted them.", "quicksort"),
    ("The band closed the evening with Paper Lanterns.", "Paper Lanterns"),
    ("The sample contained traces of sodium chloride.", "sodium chloride"),
    ("A grey heron stood at the edge of the pond.", "grey heron"),
    ("Thousands of people came to the Spring Lantern Festival.", "Spring Lantern Festival"),
    ("He won the Arden Prize for his second novel.", "Arden Prize"),
    ("The court applied the Clean Rivers Act.", "Clean Rivers Act"),
    ("The interview was held in Swahili.", "Swahili"),
    ("The Velvet Foxes will tour in June.", "The Velvet Foxes"),
    ("Lower Hill United lost two to one.", "Lower Hill United"),
    ("He studied physics at Marlow University.", "Marlow University"),
    ("The telescope showed the rings of Saturn.", "Saturn"),
    ("My grandmother made apple strudel on Sundays.", "apple strudel"),
    ("The old ferry Queen Maud sank near the coast.", "Queen Maud"),
    ("The senator from the Labour Party voted against it.", "Labour Party"),
    ("I wrote the script in Python.", "Python"),
    ("The meeting is on 14 March 2019.", "14 March 2019"),
    ("The gene BRCA1 is expressed in these cells.", "BRCA1"),
    ("Her new phone is a Lumo X2.", "Lumo X2"),
)


class Question(NamedTuple):
    """A question about a mention.

    mention (str): The mention.
    phrases (Sequence[str]): Words of labels, the possible answers.
    """

    mention: str
    phrases: Sequence[str]


@dataclass(frozen=True)
class LabelJudge:
    """Changes the scores of labels by what the LLM answers.

    llm (LoadedLLM): The shared LLM.
    phrases (List[List[str]]): The words of each label, in the order of the probe's outputs.
    usual (Dict[str, float]): The average log-probability of each phrase, from `usual_log_probs`.
    max_batch_tokens (int): Tokens per forward pass.
    only_best (bool): Only the best label of a span is possible (`mode = "mentions"`).
    """

    llm: LoadedLLM
    phrases: List[List[str]]
    usual: Dict[str, float]
    max_batch_tokens: int
    only_best: bool = False

    def judge(
        self,
        docs: Sequence[Doc],
        texts: Sequence[np.ndarray],
        spans: Sequence[Iterable[Tuple[int, int]]],
    ) -> List[np.ndarray]:
        """Change the scores of the labels of some spans. How probable it is that a span is an entity,
        whatever its label, stays the same.

        docs (Sequence[Doc]): The Docs.
        texts (Sequence[ndarray]): The probe's scores of each Doc, shape (words, max_words, labels).
        spans (Sequence[Iterable[Tuple[int, int]]]): The spans of each Doc: first word, and one past the
            last.
        RETURNS (List[ndarray]): The new scores of each Doc.
        """
        out = [rows.copy() for rows in texts]
        if len(self.phrases) < 2:
            return out
        asked = [
            (doc, rows, window, [_Asked.about(doc, rows, *span) for span in of_window])
            for doc, rows, of_doc in zip(docs, out, spans)
            for window, of_window in groupby(sorted(of_doc), key=lambda span: span[0] // WINDOW)
        ]
        jobs = [
            (
                doc[window * WINDOW : (window + 1) * WINDOW].text,
                [
                    Question(a.mention, [p for k in a.labels for p in self.phrases[k]])
                    for a in of_window
                ],
            )
            for doc, _, window, of_window in asked
        ]
        answers = answer_log_probs(self.llm, jobs, self.max_batch_tokens)
        for (_, rows, _, of_window), of_job in zip(asked, answers):
            for a, log_probs in zip(of_window, of_job):
                rows[a.end - 1, a.end - a.start - 1] = self._scores(a, log_probs)
        return out

    def _scores(self, asked: "_Asked", log_probs: Mapping[str, float]) -> np.ndarray:
        """RETURNS (ndarray): The new scores of a span, for each label."""
        fit = [
            np.mean([log_probs[p] - self.usual[p] for p in self.phrases[k]]) for k in asked.labels
        ]
        total = np.logaddexp.reduce(asked.scores)
        new = asked.scores[asked.labels] + WEIGHT * np.array(fit)
        out = np.full_like(asked.scores, IMPOSSIBLE)
        if self.only_best:
            out[asked.labels[int(new.argmax())]] = total
        else:
            out[asked.labels] = new + total - np.logaddexp.reduce(new)
        return out


class _Asked(NamedTuple):
    """A span that is asked about, with the probe's scores of all labels, and the labels to ask for."""

    start: int
    end: int
    mention: str
    scores: np.ndarray
    labels: List[int]

    @classmethod
    def about(cls, doc: Doc, rows: np.ndarray, start: int, end: int) -> "_Asked":
        scores = rows[end - 1, end - start - 1].copy()
        labels = np.argsort(-scores, kind="stable")[:MAX_ASKED]
        return cls(start, end, doc[start:end].text, scores, sorted(labels.tolist()))


def usual_log_probs(
    llm: LoadedLLM, phrases: Sequence[str], max_batch_tokens: int
) -> Dict[str, float]:
    """RETURNS (Dict[str, float]): The average log-probability of each phrase over different mentions."""
    jobs = [(text, [Question(mention, phrases)]) for text, mention in USUAL]
    found = answer_log_probs(llm, jobs, max_batch_tokens)
    return {phrase: float(np.mean([answers[phrase] for (answers,) in found])) for phrase in phrases}


def answer_log_probs(
    llm: LoadedLLM, jobs: Sequence[Tuple[str, Sequence[Question]]], max_batch_tokens: int
) -> List[List[Dict[str, float]]]:
    """Let the LLM answer questions.

    llm (LoadedLLM): The LLM.
    jobs (Sequence[Tuple[str, Sequence[Question]]]): Texts, with the questions about each.
    max_batch_tokens (int): Tokens per forward pass.
    RETURNS (List[List[Dict[str, float]]]): For each text and question, the log-probability of each phrase
        as the answer.
    """
    encode = llm.tokenizer.encode_inside
    phrases = {p for _, questions in jobs for question in questions for p in question.phrases}
    answers = {phrase: tuple(encode(answer_of(phrase)).ids) for phrase in phrases}
    engine = DecodingEngine(llm, raw=True, max_batch_tokens=max_batch_tokens)
    return engine.run([partial(_ask, llm, answers, *job) for job in jobs])


def answer_of(phrase: str) -> str:
    """RETURNS (str): The answer to the question what a mention is, such as " a person."."""
    if phrase.split()[0].lower() in ("a", "an", "the"):
        return f" {phrase}."
    return f" {'an' if phrase[0].lower() in 'aeiou' else 'a'} {phrase}."


def _ask(
    llm: LoadedLLM,
    answers: Mapping[str, Tuple[int, ...]],
    text: str,
    questions: Sequence[Question],
    tree: Tree,
) -> Generator[None, None, List[Dict[str, float]]]:
    """The request for the questions about a text."""
    encode = llm.tokenizer.encode_inside
    bos, question = llm.tokenizer.bos, encode(QUESTION).ids
    abouts = {q.mention: encode(ABOUT.format(mention=q.mention)).ids for q in questions}
    n_after = max(map(len, abouts.values())) + max(
        len(answers[p]) for q in questions for p in q.phrases
    )
    # Of a text with too many tokens, the LLM reads the beginning.
    n_text = max(llm.max_length - len(bos) - len(question) - n_after, 0)
    node = tree.add(None, [*bos, *llm.tokenizer.encode(text).ids[:n_text], *question])
    asked: Dict[Tuple[str, Tuple[str, ...]], Dict[Tuple[int, ...], Node]] = {}
    # The same mention can be asked about twice.
    keys = [(question.mention, tuple(question.phrases)) for question in questions]
    for mention, phrases in keys:
        if (mention, phrases) not in asked:
            of_phrases = [answers[phrase] for phrase in phrases]
            asked[mention, phrases] = _add_answers(tree, node, abouts[mention], of_phrases)
    yield
    return [{p: _log_prob(asked[key], answers[p]) for p in key[1]} for key in keys]


def _add_answers(
    tree: Tree, parent: Node, question: Sequence[int], answers: Sequence[Tuple[int, ...]]
) -> Dict[Tuple[int, ...], Node]:
    """RETURNS (Dict[Tuple[int, ...], Node]): A node with scores for each beginning of an answer."""
    following: Dict[Tuple[int, ...], Set[int]] = {}
    for answer in answers:
        for k, token in enumerate(answer):
            following.setdefault(answer[:k], set()).add(token)
    nodes: Dict[Tuple[int, ...], Node] = {}
    for begin in sorted(following, key=len):
        ask = {-1: np.array(sorted(following[begin]))}
        if begin:
            nodes[begin] = tree.add(nodes[begin[:-1]], begin[-1:], ask)
        else:
            nodes[begin] = tree.add(parent, question, ask)
    return nodes


def _log_prob(nodes: Mapping[Tuple[int, ...], Node], answer: Tuple[int, ...]) -> float:
    """RETURNS (float): The log-probability of an answer, over the whole vocabulary."""
    total = 0.0
    for k, token in enumerate(answer):
        scores = nodes[answer[:k]].scores(-1)
        total += scores.raw(scores.of(token))
    return total
