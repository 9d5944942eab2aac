"""Training data from generated text: the LLM writes a text, and another pipeline annotates it.

While streaming, a probe reads the LLM's own words, and longer texts than the short annotated sentences
that it was trained on. Therefore EMBER (arXiv 2403.11747) trains on generated text. Only the tokens that
the LLM wrote count in training.
"""

from typing import Iterable, Iterator, List, Tuple, Union

import torch
from spacy.language import Language
from spacy.tokens import Doc, Span
from spacy.training import Example
from spacy.util import minibatch

from ..llm.loading import LoadedLLM
from ..llm.registry import LLM
from ..llm.tokenization import PieceDecoder
from ..pipeline.base import LLMNERPipe


def generate_examples(
    llm: Union[LLMNERPipe, LLM, LoadedLLM],
    prompts: Iterable[str],
    annotator: Language,
    *,
    max_new_tokens: int = 100,
    repetition_penalty: float = 1.2,
    batch_size: int = 8,
) -> Iterator[Example]:
    """Continue each prompt with the LLM, and annotate the continuation.

    llm (Union[LLMNERPipe, LLM, LoadedLLM]): The LLM that writes, or a component whose LLM writes.
    prompts (Iterable[str]): The beginnings of the texts, such as sentences of a corpus.
    annotator (Language): A pipeline that sets doc.ents.
    max_new_tokens (int): Maximum number of tokens per continuation.
    repetition_penalty (float): Values above 1 make tokens that have already occurred less probable. Without
        a penalty, small LLMs repeat themselves.
    batch_size (int): Prompts per batch.
    YIELDS (Example): A text with the entities of its continuation. The prompt's tokens are not annotated
        (their `ent_iob` is 0). Prompts that are too long for the LLM, or that it doesn't continue, are
        left out.
    """
    loaded = _load(llm)
    for batch in minibatch(prompts, size=batch_size):
        continuations = continue_prompts(loaded, list(batch), max_new_tokens, repetition_penalty)
        pairs = [(prompt, added) for prompt, added in zip(batch, continuations) if added.strip()]
        docs = annotator.pipe(prompt + added for prompt, added in pairs)
        for (prompt, _), doc in zip(pairs, docs):
            reference = mask_prompt(doc, len(prompt))
            yield Example(Doc(doc.vocab, *_words(reference)), reference)


def continue_prompts(
    llm: LoadedLLM, prompts: List[str], max_new_tokens: int, repetition_penalty: float
) -> List[str]:
    """Continue prompts by greedy decoding, in one batch.

    llm (LoadedLLM): The LLM.
    prompts (List[str]): The prompts.
    max_new_tokens (int): Maximum number of tokens per continuation.
    repetition_penalty (float): Values above 1 make tokens that have already occurred less probable.
    RETURNS (List[str]): The continuation of each prompt; "" if the LLM ended the text immediately, or if
        the prompt and `max_new_tokens` don't fit into its context.
    """
    bos, ends = llm.tokenizer.bos, llm.end_ids
    encoded = {i: bos + llm.tokenizer.encode(prompt).ids for i, prompt in enumerate(prompts)}
    max_prompt_tokens = llm.max_length - max_new_tokens
    rows = {i: ids for i, ids in encoded.items() if ids and len(ids) <= max_prompt_tokens}
    continuations = [""] * len(prompts)
    if not rows:
        return continuations
    longest = max(len(ids) for ids in rows.values())
    # All texts already start with this token, so padding with it doesn't change the repetition penalty.
    pad = (bos or ends or [0])[0]
    inputs = torch.tensor([[pad] * (longest - len(ids)) + ids for ids in rows.values()])
    mask = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in rows.values()])
    with torch.no_grad():
        out = llm.model.generate(
            input_ids=inputs.to(llm.device),
            attention_mask=mask.to(llm.device),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            repetition_penalty=repetition_penalty,
            pad_token_id=pad,
        )
    for (i, ids), new in zip(rows.items(), out[:, longest:].tolist()):
        pieces = PieceDecoder(llm.tokenizer.hf)
        pieces.follow(ids)
        for token in new:
            if token in ends:
                break
            continuations[i] += pieces.push(token)
    return continuations


def mask_prompt(doc: Doc, n_chars: int) -> Doc:
    """Copy a Doc with its entities, and remove the annotation of its beginning.

    n_chars (int): Number of characters in the beginning. A token or an entity that starts inside the
        beginning counts as part of it.
    RETURNS (Doc): A Doc with entities only. `ent_iob` is 0 for the tokens of the beginning.
    """
    out = Doc(doc.vocab, *_words(doc))
    n_tokens = sum(1 for token in doc if token.idx < n_chars)
    n_tokens = max([n_tokens, *(ent.end for ent in doc.ents if ent.start < n_tokens)])
    ents = [Span(out, e.start, e.end, label=e.label_) for e in doc.ents if e.start >= n_tokens]
    out.set_ents(ents, missing=[out[:n_tokens]], default="outside")
    return out


def _words(doc: Doc) -> Tuple[List[str], List[bool]]:
    return [token.text for token in doc], [bool(token.whitespace_) for token in doc]


def _load(llm: Union[LLMNERPipe, LLM, LoadedLLM]) -> LoadedLLM:
    if isinstance(llm, LoadedLLM):
        return llm
    return llm.load() if isinstance(llm, LLM) else llm.shared_llm()
