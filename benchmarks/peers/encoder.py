"""A peer: a sentence encoder, fine-tuned with a linear layer that tags words (BIO)."""

import random
import time
from typing import Any, Dict, List, Tuple

import torch
from spacy.tokens import Doc, Span
from spacy.training import iob_to_biluo
from transformers import AutoModelForTokenClassification, AutoTokenizer, get_scheduler

from spacy_llmner.llm.location import resolve_path

BATCH = 16
MAX_TOKENS = 256


class Encoder:
    """A fine-tuned encoder.

    name (str): Folder or name of the encoder.
    """

    def __init__(self, name: str, seed: int) -> None:
        self.path = resolve_path(name)
        self.seed = seed
        self.hf = AutoTokenizer.from_pretrained(self.path)
        self.tags: List[str] = []
        self.model: Any = None

    def train(self, docs: List[Doc], epochs: int, rate: float) -> float:
        """RETURNS (float): CPU seconds."""
        started = time.process_time()
        torch.manual_seed(self.seed)
        rng = random.Random(self.seed)
        labels = sorted({ent.label_ for doc in docs for ent in doc.ents})
        self.tags = ["O", *(f"{bio}-{label}" for label in labels for bio in "BI")]
        self.model = AutoModelForTokenClassification.from_pretrained(
            self.path, num_labels=len(self.tags)
        )
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=rate, weight_decay=0.01)
        n_steps = epochs * -(-len(docs) // BATCH)
        schedule = get_scheduler("linear", optimizer, n_steps // 10, n_steps)
        self.model.train()
        for _ in range(epochs):
            for batch in _batches(docs, rng):
                inputs, firsts = self._encode(batch)
                targets = torch.full(inputs["input_ids"].shape, -100)
                for row, doc in enumerate(batch):
                    for token, k in zip(doc, firsts[row]):
                        tag = f"{token.ent_iob_}-{token.ent_type_}" if token.ent_type_ else "O"
                        if k is not None:
                            targets[row, k] = self.tags.index(tag)
                loss = self.model(**inputs, labels=targets).loss
                loss.backward()
                torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
        self.model.eval()
        return time.process_time() - started

    @torch.no_grad()
    def pipe(self, docs: List[Doc]) -> List[Doc]:
        """Set the entities of some Docs."""
        order = sorted(docs, key=len)
        for start in range(0, len(order), BATCH):
            batch = order[start : start + BATCH]
            inputs, firsts = self._encode(batch)
            best = self.model(**inputs).logits.argmax(-1)
            for row, doc in enumerate(batch):
                tags = ["O" if k is None else self.tags[int(best[row, k])] for k in firsts[row]]
                doc.set_ents(_spans(doc, tags))
        return docs

    def _encode(self, docs: List[Doc]) -> Tuple[Dict[str, torch.Tensor], List[List[Any]]]:
        """RETURNS (Tuple): The inputs, and for each Doc the index of each word's first token; None for
        words beyond the maximum."""
        inputs = self.hf(
            [[token.text for token in doc] for doc in docs],
            is_split_into_words=True,
            padding=True,
            truncation=True,
            max_length=MAX_TOKENS,
            return_tensors="pt",
        )
        firsts: List[List[Any]] = []
        for row, doc in enumerate(docs):
            found: Dict[int, int] = {}
            for k, word in enumerate(inputs.word_ids(row)):
                if word is not None:
                    found.setdefault(word, k)
            firsts.append([found.get(i) for i in range(len(doc))])
        return dict(inputs), firsts


def _batches(docs: List[Doc], rng: random.Random) -> List[List[Doc]]:
    """RETURNS (List[List[Doc]]): Shuffled batches of Docs of similar length."""
    order = sorted(rng.sample(docs, len(docs)), key=lambda doc: len(doc) // 4)
    batches = [order[k : k + BATCH] for k in range(0, len(order), BATCH)]
    rng.shuffle(batches)
    return batches


def _spans(doc: Doc, tags: List[str]) -> List[Span]:
    """RETURNS (List[Span]): The spans of BIO tags. An I after another label begins a span."""
    out, start = [], 0
    fixed = ["O"]
    for tag in tags:
        continues = tag[0] == "I" and fixed[-1][2:] == tag[2:]
        fixed.append(tag if tag[0] != "I" or continues else f"B{tag[1:]}")
    for i, tag in enumerate(iob_to_biluo(fixed[1:])):
        if tag[0] in "BU":
            start = i
        if tag[0] in "LU":
            out.append(Span(doc, start, i + 1, label=tag[2:]))
    return out
