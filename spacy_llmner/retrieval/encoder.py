"""Embed sentences and spans with a small sentence transformer."""

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
from ..util import CharSpan, batches_by_length
from .pooling import fill_spans, span_mean, unit

DEFAULT = "all-minilm-l6-v2"
# Number of texts that are tokenized and sorted by length together.
CHUNK = 2048
# The settings file that sentence-transformers saves with a model.
SETTINGS = "sentence_bert_config.json"

_LOADED: Dict[Tuple[str, str], "LoadedEncoder"] = {}
_LOCK = threading.RLock()


class Encoder(Protocol):
    """An encoder, as `ExampleIndex` needs it.

    name (str): The name that the user gave.
    options (str): The options of `spacy llmner index` that create an index with this encoder.
    fingerprint (str): Identifies the weights.
    width (int): The length of a vector.
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
    """A handle on a sentence transformer. Creating, copying or pickling it loads nothing.

    The weights are loaded at first use. All handles in a process share them.

    name (str): A name from the catalogue, a local folder or a hub id.
    device (str): "auto", "cpu", "cuda" or "cuda:N".
    batch_tokens (int): Maximum number of tokens in a forward pass, including padding.
    """

    def __init__(self, name: str = DEFAULT, device: str = "auto", batch_tokens: int = 1024) -> None:
        LLMSpec(name=name, device=device)  # checks the device
        if batch_tokens < 1:
            raise wrong("batch_tokens", name, batch_tokens, "1 or more")
        self.name = name
        self.device = device
        self.batch_tokens = batch_tokens

    def encode(self, texts: Sequence[str], *, progress: bool = False) -> np.ndarray:
        """Embed texts. The vector of a text is the mean of its token vectors, including special tokens,
        as in the training of the sentence transformers. Texts longer than the model's window are truncated.

        texts (Sequence[str]): The texts.
        progress (bool): Show a progress bar if standard error is a terminal.
        RETURNS (ndarray): Vectors of length 1, or zeros for an empty text. float32, shape (texts, width).
        """
        model = self.load()
        out = np.zeros((len(texts), model.width), dtype=np.float32)
        with tqdm(total=len(texts), unit="text", disable=None if progress else True) as bar:
            for numbers, _, hidden, mask in model.read(texts, self.batch_tokens):
                mean = (hidden * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)
                out[numbers] = unit(mean.cpu().numpy())
                bar.update(len(numbers))
            bar.update(len(texts) - bar.n)  # blank texts
        return out

    def encode_spans(
        self, texts: Sequence[str], spans: Sequence[Sequence[CharSpan]]
    ) -> List[np.ndarray]:
        """Embed spans in the context of their texts. The vector of a span is the mean of the vectors of its
        tokens, including tokens that are only partly inside. A span beyond the model's window is embedded
        like a text of its own.

        texts (Sequence[str]): The texts.
        spans (Sequence[Sequence[Tuple[int, int]]]): For each text, the spans: the first character, and one
            past the last.
        RETURNS (List[ndarray]): For each text, vectors of length 1. float32, shape (spans, width).
        """
        model = self.load()
        found: List[List[Any]] = [[None] * len(of_text) for of_text in spans]
        with_spans = [i for i, of_text in enumerate(spans) if of_text]
        some = [texts[i] for i in with_spans]
        for numbers, tokens, hidden, _ in model.read(some, self.batch_tokens):
            for row, (n, t) in enumerate(zip(numbers, tokens)):
                vectors, i = hidden[row].cpu()[t.inside], with_spans[n]
                found[i] = [span_mean(vectors, t.starts, t.ends, span) for span in spans[i]]
        return fill_spans(found, texts, spans, self)

    @property
    def options(self) -> str:
        """RETURNS (str): The options of `spacy llmner index` that create an index with this encoder."""
        return f"--encoder {shlex.quote(self.name)}"

    @property
    def fingerprint(self) -> str:
        """RETURNS (str): The fingerprint of the weights. Loads them."""
        return self.load().fingerprint

    @property
    def width(self) -> int:
        """RETURNS (int): The length of a vector. Loads the weights."""
        return self.load().width

    def load(self) -> "LoadedEncoder":
        """Get the shared weights. The first call in a process loads them.

        RETURNS (LoadedEncoder): The model.
        RAISES (LLMNERError): If the model or the device doesn't exist, or the model can't be loaded.
        """
        with _LOCK:
            if self._key not in _LOADED:
                _LOADED[self._key] = _load(*self._key)
            return _LOADED[self._key]

    def unload(self) -> None:
        """Free the shared weights. The next use of any handle loads them again."""
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
    """Create a sentence encoder. Registered as `spacy_llmner.SentenceEncoder.v1` in `@misc`.

    name (Optional[str]): A name from the catalogue, a local folder or a hub id. None for the default,
        all-minilm-l6-v2.
    device (str): "auto" (default, a GPU if there is one), "cpu", "cuda" or "cuda:N".
    batch_tokens (int): Maximum number of tokens in a forward pass, including padding. Default 1024.
    RETURNS (SentenceEncoder): A handle. The weights are loaded at first use.
    """
    return SentenceEncoder(name or DEFAULT, device, batch_tokens)


@dataclass
class Tokens:
    """The tokens of a text that fit into the model's window.

    ids (List[int]): The token ids, including special tokens.
    inside (List[int]): The indices in `ids` of the tokens that are not special tokens.
    starts (ndarray): The first character of each of these tokens.
    ends (ndarray): One past the last character of each.
    """

    ids: List[int]
    inside: List[int]
    starts: np.ndarray
    ends: np.ndarray


class LoadedEncoder:
    """A sentence transformer in memory: in eval mode, without gradients, in float32.

    tokenizer (PreTrainedTokenizerFast): The model's tokenizer.
    model (PreTrainedModel): An encoder model of transformers.
    window (int): Maximum number of tokens in an input, including special tokens.
    width (int): The length of a vector.
    fingerprint (str): Identifies the weights.
    """

    def __init__(self, tokenizer: Any, model: Any, window: int) -> None:
        self.tokenizer = tokenizer
        self.model = model
        self.window = window
        self.width: int = model.config.hidden_size
        self.fingerprint = _fingerprint(model)
        # Fast tokenizers store the settings of a call in shared state, so a second thread raises an error.
        self._lock = threading.Lock()

    def tokenize(self, texts: Sequence[str]) -> List[Tokens]:
        """RETURNS (List[Tokens]): The tokens of each text, truncated to the window."""
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
            # With tokenizers like XLM-R's, the token of a word includes the space before it.
            starts, ends = trim_offsets([offsets[i] for i in inside], text)
            tokens.append(Tokens(ids, inside, starts, ends))
        return tokens

    @torch.inference_mode()
    def read(
        self, texts: Sequence[str], batch_tokens: int
    ) -> Iterator[Tuple[List[int], List["Tokens"], torch.Tensor, torch.Tensor]]:
        """Run the model on texts. Texts without tokens are left out.

        texts (Sequence[str]): The texts.
        batch_tokens (int): Maximum number of tokens in a forward pass, including padding.
        YIELDS (Tuple[List[int], List[Tokens], Tensor, Tensor]): For each batch: the indices of its texts;
            their tokens; their last hidden states, shape (texts, tokens, width); and the attention mask, 1
            for a token and 0 for padding, shape (texts, tokens).
        """
        device = self.model.device
        for first in range(0, len(texts), CHUNK):
            tokens = self.tokenize(texts[first : first + CHUNK])
            not_empty = [i for i, t in enumerate(tokens) if t.inside]
            for batch in batches_by_length([len(tokens[i].ids) for i in not_empty], batch_tokens):
                numbers = [not_empty[i] for i in batch]
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
    """Load a tokenizer and a model as the `transformer` component of spacy-transformers does."""
    try:
        from spacy_transformers.layers.transformer_model import huggingface_from_pretrained
    except ImportError:  # it can't be installed next to transformers 5
        from transformers import AutoConfig, AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(path, use_fast=True)
        return tokenizer, _Complete.from_pretrained(path, AutoConfig.from_pretrained(path))
    loaded = huggingface_from_pretrained(path, {"use_fast": True}, {}, model_cls=_Complete)
    return loaded.tokenizer, loaded.transformer


class _Complete:
    """Like AutoModel, but raises an error if weights are missing. transformers would initialize these at
    random."""

    @staticmethod
    def from_pretrained(path: str, config: Any) -> Any:
        from transformers import AutoModel

        model, info = AutoModel.from_pretrained(path, config=config, output_loading_info=True)
        # The pooler is not used, and many sentence encoders don't have its weights.
        missing = sorted(key for key in info["missing_keys"] if "pooler" not in key)
        if missing:
            raise ValueError(f"no weights for {', '.join(missing[:3])}")
        return model


def _window(path: str, tokenizer: Any, config: Any) -> int:
    limits = [tokenizer.model_max_length, getattr(config, "max_position_embeddings", 512)]
    if tokenizer.model_max_length > limits[1]:
        # The tokenizer sets no limit, and models like RoBERTa don't use their first two positions.
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
