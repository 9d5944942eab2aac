"""Training on generated text: the LLM writes, another pipeline annotates, a probe learns from it.

EMBER, arXiv 2403.11747 (methods.md 1a.6): a probe that was fitted on short annotated sentences meets longer
texts and the LLM's own words when it streams. Only what the LLM wrote counts in training.
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
    """Let the LLM continue each prompt, and annotate what it wrote.

    llm (Union[LLMNERPipe, LLM, LoadedLLM]): Who writes: an LLM, or the one of a component.
    prompts (Iterable[str]): The beginnings, such as sentences of a corpus.
    annotator (Language): A pipeline that sets doc.ents.
    max_new_tokens (int): Tokens written at most.
    repetition_penalty (float): Above 1, tokens that were there become less probable. Without it, small LLMs
        say the same again and again.
    batch_size (int): Prompts continued at once.
    YIELDS (Example): With the entities of what was written. Nothing is said about the prompt's tokens
        (their `ent_iob` is 0). Prompts that leave no room, or that nothing follows, are left out.
    """
    loaded = _loaded(llm)
    for batch in minibatch(prompts, size=batch_size):
        written = continue_prompts(loaded, list(batch), max_new_tokens, repetition_penalty)
        pairs = [(prompt, more) for prompt, more in zip(batch, written) if more.strip()]
        docs = annotator.pipe(prompt + more for prompt, more in pairs)
        for (prompt, _), doc in zip(pairs, docs):
            reference = mask_prompt(doc, len(prompt))
            yield Example(Doc(doc.vocab, *_words(reference)), reference)


def continue_prompts(
    llm: LoadedLLM, prompts: List[str], max_new_tokens: int, repetition_penalty: float
) -> List[str]:
    """Continue prompts with the most probable tokens, all at once.

    RETURNS (List[str]): What follows each; "" if the LLM ended at once, or could not read the prompt
        and so much more.
    """
    bos, ends = llm.tokenizer.bos, llm.end_ids
    encoded = {i: bos + llm.tokenizer.encode(prompt).ids for i, prompt in enumerate(prompts)}
    room = llm.max_length - max_new_tokens
    rows = {i: ids for i, ids in encoded.items() if ids and len(ids) <= room}
    written = [""] * len(prompts)
    if not rows:
        return written
    longest = max(len(ids) for ids in rows.values())
    # Padding with what is in front of every text leaves the repetition penalty as it is.
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
            written[i] += pieces.push(token)
    return written


def mask_prompt(doc: Doc, n_chars: int) -> Doc:
    """Copy a Doc's entities, and say nothing about its beginning.

    n_chars (int): Characters of the beginning. A token or an entity that reaches into it belongs to it.
    RETURNS (Doc): Only with entities; `ent_iob` is 0 for the tokens of the beginning.
    """
    out = Doc(doc.vocab, *_words(doc))
    n_tokens = sum(1 for token in doc if token.idx < n_chars)
    n_tokens = max([n_tokens, *(ent.end for ent in doc.ents if ent.start < n_tokens)])
    ents = [Span(out, e.start, e.end, label=e.label_) for e in doc.ents if e.start >= n_tokens]
    out.set_ents(ents, missing=[out[:n_tokens]], default="outside")
    return out


def _words(doc: Doc) -> Tuple[List[str], List[bool]]:
    return [token.text for token in doc], [bool(token.whitespace_) for token in doc]


def _loaded(llm: Union[LLMNERPipe, LLM, LoadedLLM]) -> LoadedLLM:
    if isinstance(llm, LoadedLLM):
        return llm
    return llm.load() if isinstance(llm, LLM) else llm.shared_llm()
