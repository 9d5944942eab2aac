"""PaDeLLM-NER's inference as its authors run it: each branch reads the whole text again.

A first batch predicts the count of each label, a second batch writes all mentions. Batches are left-padded
and run through transformers with its attention mask, positions and cache. Decoding is greedy: at most ten
tokens for a count, and for mentions until every row of the batch has ended. The errors of the released code
in the cache, the attention mask, the counts and the probabilities are corrected. `GreedyLoop` contains only
the decoding loop; `HFGenerate` calls transformers' `generate`. Both use a component's weights, labels,
windows and template, so without a constraint they write what the component would write.
"""

import copy
import re
from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import numpy as np
import torch
from spacy.tokens import Doc
from transformers import DynamicCache

from benchmarks.padellm.autoreg import AutoReg, question
from spacy_llmner.decoding.constraints import Constraint
from spacy_llmner.decoding.substrings import substring_constraint
from spacy_llmner.decoding.tree import Scores
from spacy_llmner.llm.loading import LoadedLLM
from spacy_llmner.llm.word_tokens import WordTokens
from spacy_llmner.padellm_ner.component import PaDeLLM
from spacy_llmner.padellm_ner.templates import TemplateEncoder

COUNT_TOKENS = 10
# The authors allow 512. A model that does not end its answers would take minutes here.
MENTION_TOKENS = 64
ANSWER_TOKENS = 256

# The strings of a text's mentions, by label.
Strings = Dict[str, List[str]]


@dataclass
class Work:
    """Counts the forward passes of the LLM, and their tokens with padding."""

    passes: int = 0
    tokens: int = 0


class GreedyLoop:
    """Greedy decoding of a left-padded batch.

    llm (LoadedLLM): The LLM.
    decoder (Any): Its decoder, with the component's adapter.
    """

    def __init__(self, llm: LoadedLLM, decoder: Any) -> None:
        self.llm = llm
        self.decoder = decoder
        self.work = Work()

    @torch.no_grad()
    def __call__(
        self,
        prompts: Sequence[List[int]],
        ends: Sequence[int],
        max_tokens: int,
        *,
        forced: Optional[Sequence[List[int]]] = None,
        constraints: Optional[Sequence[Constraint]] = None,
    ) -> List[List[int]]:
        """Write the answers to some prompts.

        prompts (Sequence[List[int]]): Tokens of the prompts.
        ends (Sequence[int]): Tokens that end an answer.
        max_tokens (int): Maximum number of tokens of an answer.
        forced (Optional[Sequence[List[int]]]): Write these answers and ignore the scores of the LLM, to
            measure the time.
        constraints (Optional[Sequence[Constraint]]): A constraint for each prompt.
        RETURNS (List[List[int]]): The answers, with their end tokens.
        """
        device, pad = self.llm.device, ends[0]
        ids, mask = left_padded(prompts, pad)
        ids, mask = ids.to(device), mask.to(device)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        cache = DynamicCache()
        answers: List[List[int]] = [[] for _ in prompts]
        states: List[Any] = [c.start for c in constraints or ()]
        open_rows = set(range(len(prompts)))
        for step in range(max_tokens):
            self.work.passes += 1
            self.work.tokens += ids.numel()
            hidden = self.decoder(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state[:, -1]
            logits = self.llm.logits(hidden)
            chosen = logits.argmax(dim=-1).tolist()
            for row in sorted(open_rows):
                if forced is not None:
                    chosen[row] = forced[row][step]
                elif constraints is not None:
                    allowed = constraints[row].allowed(states[row])
                    scores = logits[row].cpu().numpy()[allowed]
                    chosen[row] = Scores(allowed, scores).best()[0]
                    states[row] = constraints[row].advance(states[row], chosen[row])
                answers[row].append(chosen[row])
                if chosen[row] in ends:
                    open_rows.remove(row)
            if not open_rows:
                break
            ids = torch.tensor(chosen, device=device)[:, None]
            mask = torch.cat([mask, mask.new_ones(len(prompts), 1)], dim=1)
            positions = positions[:, -1:] + 1
        return answers


class SimulatedParallel(GreedyLoop):
    """Simulates PaDeLLM_Multi, which runs each sequence on a GPU of its own: the prompts of a batch are run
    one by one, and the slowest one counts.

    clock (Callable[[], float]): Gives seconds.
    seconds (float): Summed time of the slowest prompt of each batch.
    """

    def __init__(self, llm: LoadedLLM, decoder: Any, clock: Callable[[], float]) -> None:
        super().__init__(llm, decoder)
        self.clock = clock
        self.seconds = 0.0

    def __call__(self, prompts: Any, ends: Any, max_tokens: int, **given: Any) -> List[List[int]]:
        answers, seconds = [], []
        for k, one in enumerate(prompts):
            start = self.clock()
            mine = {name: [of_each[k]] for name, of_each in given.items()}
            answers += super().__call__([one], ends, max_tokens, **mine)
            seconds.append(self.clock() - start)
        self.seconds += max(seconds)
        return answers


class HFGenerate:
    """The same decoding by transformers' `generate`. See `GreedyLoop` for the arguments."""

    def __init__(self, llm: LoadedLLM, decoder: Any) -> None:
        self.llm = llm
        self.model = causal_view(llm, decoder)
        self.work = Work()

    @torch.no_grad()
    def __call__(
        self, prompts: Sequence[List[int]], ends: Sequence[int], max_tokens: int
    ) -> List[List[int]]:
        ids, mask = left_padded(prompts, ends[0])
        out = self.model.generate(
            input_ids=ids.to(self.llm.device),
            attention_mask=mask.to(self.llm.device),
            max_new_tokens=max_tokens,
            do_sample=False,
            num_beams=1,
            temperature=None,
            top_p=None,
            top_k=None,
            repetition_penalty=1.0,
            eos_token_id=list(ends),
            pad_token_id=ends[0],
        )[:, ids.shape[1] :].tolist()
        self.work.passes += len(out[0])
        self.work.tokens += ids.numel() + len(out) * (len(out[0]) - 1)
        return [up_to_end(row, ends) for row in out]


def published_mentions(
    pipe: PaDeLLM,
    prompt_encoder: TemplateEncoder,
    doc: Doc,
    write: Any,
    *,
    constrained: bool = False,
    forced: Optional[Dict[str, List[List[int]]]] = None,
) -> Strings:
    """Find the mentions of a Doc in the published way.

    write (Union[GreedyLoop, HFGenerate]): Decodes a batch.
    constrained (bool): Constrain the answers as the component does (GreedyLoop only).
    forced (Optional[Dict[str, List[List[int]]]]): Answers to write instead of the LLM's, by label, with
        their end tokens (GreedyLoop only).
    RETURNS (Strings): The strings of the mentions, by label.
    """
    out: Strings = {label: [] for label in pipe.labels}
    ends = list(dict.fromkeys([prompt_encoder.end, *prompt_encoder.number(1)[-1:]]))
    for window in pipe._windows(doc, prompt_encoder):
        words = window.words
        prompts = {label: prompt(prompt_encoder, words, label) for label in pipe.labels}
        count_prompts = [[*prompts[label], *prompt_encoder.count()] for label in pipe.labels]
        more: Dict[str, Any] = {}
        if forced is not None:
            more["forced"] = [prompt_encoder.number(len(forced[label])) for label in pipe.labels]
        if constrained:
            mentions = constraint(prompt_encoder, words, doc.text)
            more["constraints"] = [prompt_encoder.numbers(len(mentions.first))] * len(count_prompts)
        counts = [
            parse_count(prompt_encoder, answer, ends)
            for answer in write(count_prompts, ends, COUNT_TOKENS, **more)
        ]
        branches = [
            (label, [*prompts[label], *prompt_encoder.mention(n, k)])
            for label, n in zip(pipe.labels, counts)
            for k in range(1, n + 1)
        ]
        if not branches:
            continue
        if forced is not None:
            more["forced"] = [a for label in pipe.labels for a in forced[label]]
        if constrained:
            more["constraints"] = [mentions] * len(branches)
        answers = write([p for _, p in branches], [prompt_encoder.end], MENTION_TOKENS, **more)
        for (label, _), answer in zip(branches, answers):
            out[label].append(text_of(prompt_encoder, answer))
    return out


def autoregressive_answers(
    pipe: AutoReg, prompt_encoder: TemplateEncoder, doc: Doc, write: Any
) -> List[str]:
    """Let the autoregressive baseline write without constraint.

    RETURNS (List[str]): Its answer for each window.
    """
    out = []
    for window in pipe._windows(doc, prompt_encoder):
        (answer,) = write(
            [question(prompt_encoder, window.words)], [prompt_encoder.end], ANSWER_TOKENS
        )
        out.append(text_of(prompt_encoder, answer))
    return out


def prompt(prompt_encoder: TemplateEncoder, words: WordTokens, label: str) -> List[int]:
    return [*prompt_encoder.before, *words.ids.tolist(), *prompt_encoder.label(label)]


def constraint(prompt_encoder: TemplateEncoder, words: WordTokens, text: str) -> Any:
    tokenizer = prompt_encoder.tokenizer if prompt_encoder.template.bare else None
    return substring_constraint(words, prompt_encoder.end, tokenizer, text)


def parse_count(prompt_encoder: TemplateEncoder, answer: Sequence[int], ends: Sequence[int]) -> int:
    """Read a count as the authors do.

    RETURNS (int): The count. If the answer is not a number, its first character if that is a digit, else 0.
    """
    text = text_of(prompt_encoder, [t for t in answer if t not in ends]).strip()
    if re.fullmatch("[0-9]{1,3}", text):
        return int(text)
    return int(text[0]) if re.match("[0-9]", text) else 0


def text_of(prompt_encoder: TemplateEncoder, answer: Sequence[int]) -> str:
    ids = [t for t in answer if t != prompt_encoder.end]
    return prompt_encoder.tokenizer.hf.decode(ids, clean_up_tokenization_spaces=False).strip()


def left_padded(prompts: Sequence[List[int]], pad: int) -> Tuple[torch.Tensor, torch.Tensor]:
    """RETURNS (Tuple[Tensor, Tensor]): Token ids and attention mask, int64, shape (prompts, longest
    prompt)."""
    size = max(len(p) for p in prompts)
    ids = np.full((len(prompts), size), pad, dtype=np.int64)
    mask = np.zeros((len(prompts), size), dtype=np.int64)
    for row, p in enumerate(prompts):
        ids[row, size - len(p) :] = p
        mask[row, size - len(p) :] = 1
    return torch.from_numpy(ids), torch.from_numpy(mask)


def up_to_end(ids: List[int], ends: Sequence[int]) -> List[int]:
    """RETURNS (List[int]): The tokens up to and including the first end token."""
    for k, token in enumerate(ids):
        if token in ends:
            return ids[: k + 1]
    return ids


def causal_view(llm: LoadedLLM, decoder: Any) -> Any:
    """RETURNS (PreTrainedModel): A view of the shared causal LM with another decoder, for `generate`."""
    view = copy.copy(llm.model)
    view.__dict__["_modules"] = dict(llm.model._modules)
    name = next(n for n, module in llm.model._modules.items() if module is llm.decoder)
    view._modules[name] = decoder
    view.generation_config = copy.copy(llm.model.generation_config)
    view.generation_config.cache_implementation = None
    return view
