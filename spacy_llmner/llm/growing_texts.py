"""Read several texts that grow at the same time, such as the answers of several chats."""

from typing import Any, Dict, List, Sequence, Tuple, Union

import torch

from .attention import Recorder
from .hidden_states import Features, FeatureSpec, StepReader, recorded
from .loading import LoadedLLM
from .tree_attention import KVCache, TextRows, TreePass, causal_pass, run_decoder
from .views import generating_view

# Logits of the position after the last token, shape (vocabulary,), and the features of the tokens.
Read = Tuple[torch.Tensor, Features]


def growing_texts(llm: LoadedLLM, probed: FeatureSpec) -> "Union[GrowingTexts, SeparateTexts]":
    """RETURNS (Union[GrowingTexts, SeparateTexts]): The fastest way to read these features."""
    finding = llm.findings.get("trees")
    is_tree = not probed.window and not (finding and finding.reason)
    return GrowingTexts(llm, probed) if is_tree else SeparateTexts(llm, probed)


class GrowingTexts:
    """Reads texts that grow token by token. One forward pass reads the next token of all of them.

    The prompt of each text is read on its own, in as many parts as the caller likes.

    llm (LoadedLLM): The shared LLM.
    probed (FeatureSpec): The features to read, without attention.
    """

    def __init__(self, llm: LoadedLLM, probed: FeatureSpec) -> None:
        llm.require("trees")
        self.llm = llm
        self.probed = probed
        self.decoder = getattr(generating_view(llm, probed.layers), llm.decoder_name)
        self._rows = TextRows()
        self._texts: List[Any] = []
        # Texts whose prompt is not complete, with the number of tokens that were read.
        self._prompts: Dict[Any, Tuple[KVCache, int]] = {}

    def read_prompt(self, text: Any, ids: Sequence[int], complete: bool) -> Read:
        """Read the next part of a text's prompt.

        text (Hashable): The text.
        ids (Sequence[int]): The tokens.
        complete (bool): Whether this is the last part. After that, the text has to be in each `step`.
        RETURNS (Read): The logits and the features.
        """
        cache, n_before = self._prompts.pop(text, (KVCache(len(ids)), 0))
        n = n_before + len(ids)
        slots = torch.arange(n_before, n, device=self.llm.device)
        causal = causal_pass(n_before, len(ids), self.llm.device)
        causal.cache, causal.slots = cache, slots
        logits, (features,) = self._pass(torch.tensor([list(ids)]), slots[None], causal)
        if complete:
            self._rows.add(cache, n)
            self._texts.append(text)
        else:
            self._prompts[text] = cache, n
        return logits[0], features

    def step(self, tokens: Dict[Any, int]) -> Dict[Any, Read]:
        """Read the next token of each text.

        tokens (Dict[Hashable, int]): The token of each text whose prompt was read. None may be left out.
        RETURNS (Dict[Hashable, Read]): The logits and the features of each text.
        """
        assert len(tokens) == len(self._texts)
        lengths = torch.tensor(self._rows.lengths, device=self.llm.device)[:, None]
        keys = torch.arange(max(self._rows.lengths) + 1, device=self.llm.device)[None]
        step = TreePass((keys <= lengths)[:, None], lengths, keys, rows=self._rows)
        ids = torch.tensor([[tokens[text]] for text in self._texts])
        logits, features = self._pass(ids, lengths, step)
        self._rows.lengths = [n + 1 for n in self._rows.lengths]
        return dict(zip(self._texts, zip(logits, features)))

    def remove(self, text: Any) -> None:
        """Forget a text, to free its memory."""
        self._prompts.pop(text, None)
        if text in self._texts:
            row = self._texts.index(text)
            self._rows.remove(row)
            last = self._texts.pop()
            if last is not text:
                self._texts[row] = last
        if not self._texts:
            self._rows = TextRows()

    @torch.no_grad()
    def _pass(
        self, ids: torch.Tensor, positions: torch.Tensor, tree_pass: TreePass
    ) -> Tuple[torch.Tensor, List[Features]]:
        """RETURNS (Tuple[Tensor, List[Features]]): For each text of the batch, the logits after its last
        token, and its features."""
        with Recorder() as recorder:
            last = run_decoder(self.decoder, ids.to(self.llm.device), positions, tree_pass)
        logits = self.llm.logits(last[:, -1]).to(self.llm.device)
        hidden, _ = recorded(self.llm, self.probed, recorder)
        # Copies, since a slice would keep the states of all texts in memory.
        return logits, [Features(of_text.clone()) for of_text in hidden]


class SeparateTexts:
    """Reads growing texts one after the other, with the LLM's own cache, like GrowingTexts. For LLMs whose
    tree attention is not supported, and for features with attention.
    """

    def __init__(self, llm: LoadedLLM, probed: FeatureSpec) -> None:
        self.llm = llm
        self.probed = probed
        self._readers: Dict[Any, StepReader] = {}

    def read_prompt(self, text: Any, ids: Sequence[int], complete: bool = True) -> Read:
        """See GrowingTexts. Other parts than the prompt can also have several tokens."""
        if text not in self._readers:
            self._readers[text] = StepReader(self.llm, self.probed)
        return self._readers[text].feed(ids)

    def step(self, tokens: Dict[Any, int]) -> Dict[Any, Read]:
        """See GrowingTexts."""
        return {text: self._readers[text].feed([token]) for text, token in tokens.items()}

    def remove(self, text: Any) -> None:
        """See GrowingTexts."""
        self._readers.pop(text, None)
