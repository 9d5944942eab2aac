"""Sentence and span vectors from a small sentence transformer."""

import shlex
import threading
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Protocol, Sequence, Tuple

import numpy as np
import torch
from tqdm import tqdm

from ..errors import Errors, LLMNERError, LLMNotFoundError, wrong
from ..llm.spec import LLMSpec
from ..llm.tokenization import trim_offsets
from ..models import catalogue
from ..util import batches_by_length
from .pooling import Chars, fill_spans, span_mean, unit

DEFAULT = "all-minilm-l6-v2"
# Texts that are tokenized, and sorted by length, at once.
CHUNK = 2048
# What sentence-transformers writes beside a model.
SETTINGS = "sentence_bert_config.json"

_LOADED: Dict[Tuple[str, str], "LoadedEncoder"] = {}
_LOCK = threading.RLock()


class Encoder(Protocol):
    """What an ExampleIndex needs of an encoder.

    name (str): What the user calls it.
    options (str): Which `spacy llmner index` makes an index with it.
    """

    @property
    def name(self) -> str: ...

    @property
    def options(self) -> str: ...

    @property
    def fingerprint(self) -> str: ...

    @property
    def width(self) -> int: ...

    def encode(self, texts: Sequence[str], *, progress: bool = False) -> np.ndarray: ...


class SentenceEncoder:
    """A cheap handle on a sentence transformer: building, copying and pickling it loads nothing.

    The weights are loaded at first use and held once per process, whatever the number of handles.

    name (str): Name of the catalogue, local folder or hub id.
    device (str): "auto", "cpu", "cuda" or "cuda:N".
    batch_tokens (int): Padded tokens of one forward pass.
    """

    def __init__(self, name: str = DEFAULT, device: str = "auto", batch_tokens: int = 1024) -> None:
        LLMSpec(name=name, device=device)  # checks the device
        if batch_tokens < 1:
            raise wrong("batch_tokens", name, batch_tokens, "1 or more")
        self.name = name
        self.device = device
        self.batch_tokens = batch_tokens

    def encode(self, texts: Sequence[str], *, progress: bool = False) -> np.ndarray:
        """Encode whole texts: the mean of their token vectors, special tokens among them, as the
        sentence transformers were trained. Texts longer than the model's window are cut.

        progress (bool): Show a progress bar, if standard error is a terminal.
        RETURNS (ndarray): float32, shape (texts, width), rows of length 1; zeros for an empty text.
        """
        model = self.load()
        out = np.zeros((len(texts), model.width), dtype=np.float32)
        with tqdm(total=len(texts), unit="text", disable=None if progress else True) as bar:
            for numbers, _, hidden, mask in model.read(texts, self.batch_tokens):
                mean = (hidden * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)
                out[numbers] = unit(mean.cpu().numpy())
                bar.update(len(numbers))
            bar.update(len(texts) - bar.n)  # the blank ones
        return out

    def encode_spans(
        self, texts: Sequence[str], spans: Sequence[Sequence[Chars]]
    ) -> List[np.ndarray]:
        """Encode spans in their texts: the mean of the vectors of the tokens that they touch. A span
        beyond the model's window is encoded as a text of its own.

        spans (Sequence[Sequence[Tuple[int, int]]]): Per text, first character and one past the last.
        RETURNS (List[ndarray]): Per text float32, shape (spans, width), rows of length 1.
        """
        model = self.load()
        found: List[List[Any]] = [[None] * len(inside) for inside in spans]
        wanted = [i for i, inside in enumerate(spans) if inside]
        asked = [texts[i] for i in wanted]
        for numbers, tokens, hidden, _ in model.read(asked, self.batch_tokens):
            for row, (n, t) in enumerate(zip(numbers, tokens)):
                vectors = hidden[row].cpu()[t.inside]
                found[wanted[n]] = [
                    span_mean(vectors, t.starts, t.ends, span) for span in spans[wanted[n]]
                ]
        return fill_spans(found, texts, spans, self)

    @property
    def options(self) -> str:
        """Of `spacy llmner index`."""
        return f"--encoder {shlex.quote(self.name)}"

    @property
    def fingerprint(self) -> str:
        """Of the weights; loads them."""
        return self.load().fingerprint

    @property
    def width(self) -> int:
        """Of a vector; loads the weights."""
        return self.load().width

    def load(self) -> "LoadedEncoder":
        """Get the shared weights, loading them if no one did before.

        RAISES (LLMNERError): If the model or the device is not there, or the folder is broken.
        """
        with _LOCK:
            if self._key not in _LOADED:
                _LOADED[self._key] = _load(*self._key)
            return _LOADED[self._key]

    def unload(self) -> None:
        """Free the weights; any handle loads them again at its next use."""
        with _LOCK:
            _LOADED.pop(self._key, None)

    @property
    def _key(self) -> Tuple[str, str]:
        return self.name, LLMSpec(name=self.name, device=self.device).resolve().device

    def __reduce__(self):
        return SentenceEncoder, (self.name, self.device, self.batch_tokens)

    def __repr__(self) -> str:
        return f"SentenceEncoder({self.name!r}, device={self.device!r})"


def make_sentence_encoder(
    name: Optional[str] = DEFAULT, device: str = "auto", batch_tokens: int = 1024
) -> SentenceEncoder:
    """Registered as `spacy_llmner.SentenceEncoder.v1` in `@misc`.

    name (Optional[str]): Name of the catalogue, local folder or hub id. None for all-minilm-l6-v2.
    device (str): "auto", "cpu", "cuda" or "cuda:N".
    batch_tokens (int): Padded tokens of one forward pass.
    RETURNS (SentenceEncoder): A handle; nothing is loaded.
    """
    return SentenceEncoder(name or DEFAULT, device, batch_tokens)


@dataclass
class Tokens:
    """The tokens of a text that fit into the window.

    ids (List[int]): With special tokens.
    inside (List[int]): Which of them are of the text.
    starts (ndarray): First character of each token of the text.
    ends (ndarray): One past the last.
    """

    ids: List[int]
    inside: List[int]
    starts: np.ndarray
    ends: np.ndarray


class LoadedEncoder:
    """Weights in memory: in eval mode, without gradients, in float32.

    tokenizer (PreTrainedTokenizerFast): The model's tokenizer.
    model (PreTrainedModel): An encoder of transformers.
    window (int): Longest input in tokens, special ones among them.
    """

    def __init__(self, tokenizer: Any, model: Any, window: int) -> None:
        self.tokenizer = tokenizer
        self.model = model
        self.window = window
        self.width: int = model.config.hidden_size
        self.fingerprint = _fingerprint(model)
        # Fast tokenizers keep settings of a call in shared state and refuse a second thread.
        self._lock = threading.Lock()

    def tokenize(self, texts: Sequence[str]) -> List[Tokens]:
        """RETURNS (List[Tokens]): Cut to the window."""
        with self._lock:
            out = self.tokenizer(
                list(texts),
                truncation=True,
                max_length=self.window,
                return_offsets_mapping=True,
                return_special_tokens_mask=True,
                split_special_tokens=True,
                verbose=False,
            )
        tokens = []
        for text, ids, offsets, special in zip(
            texts, out["input_ids"], out["offset_mapping"], out["special_tokens_mask"]
        ):
            inside = [i for i, is_special in enumerate(special) if not is_special]
            # Tokenizers like XLM-R's count the space in front of a word to its token.
            starts, ends = trim_offsets([offsets[i] for i in inside], text)
            tokens.append(Tokens(ids, inside, starts, ends))
        return tokens

    @torch.inference_mode()
    def read(
        self, texts: Sequence[str], batch_tokens: int
    ) -> Iterator[Tuple[List[int], List["Tokens"], torch.Tensor, torch.Tensor]]:
        """Run the model over texts. Those without a token of their own are left out.

        YIELDS (Tuple[List[int], List[Tokens], Tensor, Tensor]): Numbers of the texts in a batch, their
            tokens, their last hidden states, shape (texts, tokens, width), and 1 where there is no
            padding, shape (texts, tokens).
        """
        device = self.model.device
        for first in range(0, len(texts), CHUNK):
            tokens = self.tokenize(texts[first : first + CHUNK])
            kept = [i for i, t in enumerate(tokens) if t.inside]
            for batch in batches_by_length([len(tokens[i].ids) for i in kept], batch_tokens):
                numbers = [kept[i] for i in batch]
                longest = max(len(tokens[i].ids) for i in numbers)
                ids = torch.full((len(batch), longest), self.tokenizer.pad_token_id or 0)
                mask = torch.zeros(ids.shape)
                for row, i in enumerate(numbers):
                    ids[row, : len(tokens[i].ids)] = torch.tensor(tokens[i].ids)
                    mask[row, : len(tokens[i].ids)] = 1
                mask = mask.to(device)
                out = self.model(input_ids=ids.to(device), attention_mask=mask)
                inside = [tokens[i] for i in numbers]
                yield [first + i for i in numbers], inside, out.last_hidden_state, mask


def _load(name: str, device: str) -> LoadedEncoder:
    path = _resolve_path(name)
    try:
        tokenizer, model = _from_pretrained(path)
    except Exception as e:
        reason = f"{type(e).__name__}: {e}"
        message = Errors.E051.format(name=name, reason=reason, command=_command(DEFAULT))
        raise LLMNotFoundError(message) from e
    if not tokenizer.is_fast:
        raise LLMNERError(Errors.E011.format(name=name))
    model.eval().requires_grad_(False).float().to(device)
    return LoadedEncoder(tokenizer, model, _window(path, tokenizer, model.config))


def _resolve_path(name: str) -> str:
    if Path(name).is_dir() or name not in catalogue.CATALOGUE:
        return name
    path = catalogue.path_of(name)
    if path is None:
        raise LLMNotFoundError(Errors.E050.format(name=name, command=_command(name)))
    return str(path)


def _command(name: str) -> str:
    return catalogue.CATALOGUE[name].command


def _from_pretrained(path: str) -> Tuple[Any, Any]:
    """Load tokenizer and model the way the `transformer` component of spacy-transformers does."""
    import transformers
    from transformers import tokenization_utils

    # spacy-transformers 1.4 looks for it where transformers 5 no longer has it.
    vars(tokenization_utils).setdefault("BatchEncoding", transformers.BatchEncoding)
    from spacy_transformers.layers.transformer_model import huggingface_from_pretrained

    loaded = huggingface_from_pretrained(path, {"use_fast": True}, {}, model_cls=_Complete)
    return loaded.tokenizer, loaded.transformer


class _Complete:
    """AutoModel, but missing weights are an error: transformers fills them with random numbers."""

    @staticmethod
    def from_pretrained(path: str, config: Any) -> Any:
        from transformers import AutoModel

        model, info = AutoModel.from_pretrained(path, config=config, output_loading_info=True)
        # Nothing is read from the pooler, which many sentence encoders come without.
        missing = sorted(key for key in info["missing_keys"] if "pooler" not in key)
        if missing:
            raise ValueError(f"no weights for {', '.join(missing[:3])}")
        return model


def _window(path: str, tokenizer: Any, config: Any) -> int:
    limits = [tokenizer.model_max_length, getattr(config, "max_position_embeddings", 512)]
    if tokenizer.model_max_length > limits[1]:
        # Of a tokenizer that knows no limit. Models like RoBERTa don't use their first positions.
        limits[1] -= 2
    if (Path(path) / SETTINGS).exists():
        import srsly

        limits.append(srsly.read_json(Path(path) / SETTINGS).get("max_seq_length") or limits[1])
    return max(min(limits), 3)


def _fingerprint(model: Any) -> str:
    digest = sha256(model.config.model_type.encode())
    for name, values in model.named_parameters():
        if "pooler" in name:
            continue
        flat = values.detach().flatten()
        digest.update(str(tuple(values.shape)).encode())
        digest.update(flat[:: max(1, len(flat) // 512)].cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
