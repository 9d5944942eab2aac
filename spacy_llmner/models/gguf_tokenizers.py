"""Build the tokenizer a GGUF file describes, so that it encodes as the original one did.

transformers has a conversion of its own. For SmolLM2 it puts `<|im_start|>` in front, takes that
for the end token too and forgets to split digits; for Gemma it builds a unigram model out of what
is a BPE vocabulary. So the tokenizers are built here, from the fields of the file.
"""

import json
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from ..errors import LLMNERError

# Token types of a GGUF vocabulary that matter here. Only normal tokens take part in merges; control
# and user-defined ones are found in the text before anything is merged.
NORMAL, CONTROL, USER_DEFINED = 1, 3, 4
SPACE = "\u2581"  # what sentencepiece writes for a space

UNKNOWN_TOKENIZER = (
    "Can't build the tokenizer of this GGUF file: tokenizer.ggml.model is '{model}' and "
    "tokenizer.ggml.pre is '{pre}'. Supported are 'gpt2' with 'smollm', and 'llama' (sentencepiece "
    "BPE). Use a folder in the Hugging Face format instead."
)


def save_tokenizer(fields: Mapping[str, Any], path: Path, max_length: int) -> None:
    """Write tokenizer.json and tokenizer_config.json. The files are written by hand and not with
    save_pretrained, because transformers 5 writes a class name that transformers 4 doesn't know.

    fields (Mapping[str, Any]): Metadata of the GGUF file.
    path (Path): An existing folder.
    max_length (int): Longest input of the model, in tokens.
    RAISES (LLMNERError): If the file's kind of tokenizer is not supported.
    """
    build_tokenizer(fields).save(str(path / "tokenizer.json"))
    special = special_tokens(fields)
    config = {
        # The generic class adds nothing to what tokenizer.json says: no BOS, no token_type_ids.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": max_length,
        "clean_up_tokenization_spaces": False,
        **special,
    }
    template = fields.get("tokenizer.chat_template")
    if template is not None:
        config["chat_template"] = template
    _write_json(path / "tokenizer_config.json", config)
    _write_json(path / "special_tokens_map.json", special)


def build_tokenizer(fields: Mapping[str, Any]) -> Tokenizer:
    """Build the tokenizer that a GGUF file describes.

    fields (Mapping[str, Any]): Metadata of the GGUF file.
    RETURNS (Tokenizer): The tokenizer. It puts nothing in front of the text and nothing behind it.
    RAISES (LLMNERError): If the file's kind of tokenizer is not supported.
    """
    model, pre = fields.get("tokenizer.ggml.model"), fields.get("tokenizer.ggml.pre")
    tokens: List[str] = fields["tokenizer.ggml.tokens"]
    types: List[int] = fields["tokenizer.ggml.token_type"]
    if model == "gpt2" and pre == "smollm":
        return byte_level_bpe(tokens, types, fields["tokenizer.ggml.merges"])
    if model == "llama":
        unk = tokens[fields["tokenizer.ggml.unknown_token_id"]]
        return sentencepiece_bpe(tokens, types, fields["tokenizer.ggml.scores"], unk)
    raise LLMNERError(UNKNOWN_TOKENIZER.format(model=model, pre=pre))


def byte_level_bpe(tokens: Sequence[str], types: Sequence[int], merges: Sequence[str]) -> Tokenizer:
    """SmolLM2's tokenizer: byte-level BPE in which every digit stands alone. As in the original, a
    byte without a token is left out: six control characters, and code points from U+40000 on.

    tokens (Sequence[str]): The vocabulary, in the order of ids.
    types (Sequence[int]): The type of each token.
    merges (Sequence[str]): "left right", in the order of priority.
    RETURNS (Tokenizer): The tokenizer.
    """
    pairs = [_pair(merge) for merge in merges]
    vocab = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=pairs))
    digits = pre_tokenizers.Digits(individual_digits=True)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    _add_tokens(tokenizer, tokens, types)
    return tokenizer


def sentencepiece_bpe(
    tokens: Sequence[str], types: Sequence[int], scores: Sequence[float], unk: str
) -> Tokenizer:
    """Gemma's tokenizer: BPE over characters, bytes for characters without a token.

    tokens (Sequence[str]): The vocabulary, in the order of ids.
    types (Sequence[int]): The type of each token.
    scores (Sequence[float]): The higher, the earlier a token is merged.
    unk (str): The token for what is unknown (never used, as every byte is known).
    RETURNS (Tokenizer): The tokenizer.
    """
    # llama.cpp writes runs of spaces as such; sentencepiece, and so the text after the normalizer,
    # has SPACE there.
    tokens = [token.replace(" ", SPACE) for token in tokens]
    vocab = {token: i for i, token in enumerate(tokens)}
    mergeable = {
        token: score for token, kind, score in zip(tokens, types, scores) if kind == NORMAL
    }
    bpe = models.BPE(
        vocab=vocab,
        merges=merges_from_scores(mergeable),
        unk_token=unk,
        fuse_unk=True,
        byte_fallback=True,
    )
    tokenizer = Tokenizer(bpe)
    tokenizer.normalizer = normalizers.Replace(" ", SPACE)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    _add_tokens(tokenizer, tokens, types, normalized=True)
    return tokenizer


def merges_from_scores(scores: Mapping[str, float]) -> List[Tuple[str, str]]:
    """sentencepiece merges the two neighbours whose union has the highest score. BPE wants the
    pairs in that order, so every split of a token into two tokens becomes a pair.

    scores (Mapping[str, float]): The score of every token that can come out of a merge.
    RETURNS (List[Tuple[str, str]]): The pairs, first to merge first.
    """
    pairs: List[Tuple[str, str]] = []
    for token in sorted(scores, key=lambda token: -scores[token]):
        for i in range(1, len(token)):
            if token[:i] in scores and token[i:] in scores:
                pairs.append((token[:i], token[i:]))
    return pairs


def special_tokens(fields: Mapping[str, Any]) -> Dict[str, str]:
    """Look up which tokens begin, end and pad a text.

    fields (Mapping[str, Any]): Metadata of the GGUF file.
    RETURNS (Dict[str, str]): The token for "bos_token", "eos_token", "pad_token", "unk_token".
    """
    names = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}
    found = {}
    for name, gguf_name in names.items():
        token_id: Optional[int] = fields.get(f"tokenizer.ggml.{gguf_name}_token_id")
        if token_id is not None:
            found[f"{name}_token"] = fields["tokenizer.ggml.tokens"][token_id]
    return found


def _add_tokens(
    tokenizer: Tokenizer, tokens: Sequence[str], types: Sequence[int], normalized: bool = False
) -> None:
    # With normalized=True they are looked for after the normalizer, where sentencepiece does it:
    # only there does a run of spaces look like the token that stands for it.
    for kind in (CONTROL, USER_DEFINED):
        special = kind == CONTROL
        added = [
            AddedToken(token, special=special, normalized=normalized and not special)
            for token, token_kind in zip(tokens, types)
            if token_kind == kind
        ]
        tokenizer.add_special_tokens(added) if special else tokenizer.add_tokens(added)


def _pair(merge: str) -> Tuple[str, str]:
    left, right = merge.split(" ")
    return left, right


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf8")
