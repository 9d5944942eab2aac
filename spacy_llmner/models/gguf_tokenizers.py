"""Build the tokenizer of a GGUF file, so that it encodes exactly like the original tokenizer.

The conversion in transformers is wrong for these models. For SmolLM2 it adds `<|im_start|>` before the
text, uses it as the end token too, and doesn't split digits. For Gemma it builds a unigram model from a
BPE vocabulary.
"""

import json
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from ..errors import Errors, LLMNERError

# The relevant token types of a GGUF vocabulary. Only normal tokens take part in merges. Control tokens and
# user-defined tokens are matched in the text before any merge. Unused tokens fill up the embeddings.
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
SPACE = "\u2581"  # stands for a space in sentencepiece
# How Qwen2 splits a text before any merge. Each digit stands alone.
QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def save_tokenizer(fields: Mapping[str, Any], path: Path, max_length: int) -> None:
    """Write tokenizer.json, tokenizer_config.json and special_tokens_map.json. save_pretrained is not used,
    because transformers 5 writes a class name that transformers 4 doesn't have.

    fields (Mapping[str, Any]): Metadata of the GGUF file.
    path (Path): An existing folder.
    max_length (int): Maximum length of an input, in tokens.
    RAISES (LLMNERError): If the tokenizer of the file is not supported.
    """
    build_tokenizer(fields).save(str(path / "tokenizer.json"))
    special = special_tokens(fields)
    config = {
        # The generic class adds nothing to tokenizer.json, such as a BOS token or token_type_ids.
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
    """Build the tokenizer of a GGUF file.

    fields (Mapping[str, Any]): Metadata of the GGUF file.
    RETURNS (Tokenizer): The tokenizer. It adds no tokens before or after the text.
    RAISES (LLMNERError): If the tokenizer of the file is not supported.
    """
    model, pre = fields.get("tokenizer.ggml.model"), fields.get("tokenizer.ggml.pre")
    tokens: List[str] = fields["tokenizer.ggml.tokens"]
    types: List[int] = fields["tokenizer.ggml.token_type"]
    if model == "gpt2" and pre == "smollm":
        digits = pre_tokenizers.Digits(individual_digits=True)
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        return byte_level_bpe(tokens, types, fields["tokenizer.ggml.merges"], [digits, byte_level])
    if model == "gpt2" and pre == "qwen2":
        split = pre_tokenizers.Split(Regex(QWEN2_SPLIT), "isolated")
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer = byte_level_bpe(
            tokens, types, fields["tokenizer.ggml.merges"], [split, byte_level]
        )
        tokenizer.normalizer = normalizers.NFC()
        return tokenizer
    if model == "llama":
        unk = tokens[fields["tokenizer.ggml.unknown_token_id"]]
        return sentencepiece_bpe(tokens, types, fields["tokenizer.ggml.scores"], unk)
    raise LLMNERError(Errors.E089.format(model=model, pre=pre))


def byte_level_bpe(
    tokens: Sequence[str], types: Sequence[int], merges: Sequence[str], splits: Sequence[Any]
) -> Tokenizer:
    """Build a tokenizer with byte-level BPE, such as SmolLM2's or Qwen2's. Bytes without a token are
    dropped, as in the original of SmolLM2. There, this affects six control characters, and code points from
    U+40000 on.

    tokens (Sequence[str]): The vocabulary, in the order of the token ids.
    types (Sequence[int]): The type of each token.
    merges (Sequence[str]): Pairs "left right", in the order of priority.
    splits (Sequence[PreTokenizer]): How a text is split before any merge. The last one is ByteLevel.
    RETURNS (Tokenizer): The tokenizer.
    """
    pairs = [_pair(merge) for merge in merges]
    vocab = {token: i for i, token in enumerate(tokens) if types[i] != UNUSED}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(list(splits))
    tokenizer.decoder = decoders.ByteLevel()
    _add_tokens(tokenizer, tokens, types)
    return tokenizer


def sentencepiece_bpe(
    tokens: Sequence[str], types: Sequence[int], scores: Sequence[float], unk: str
) -> Tokenizer:
    """Build Gemma's tokenizer: BPE over characters. Characters without a token are encoded as bytes.

    tokens (Sequence[str]): The vocabulary, in the order of the token ids.
    types (Sequence[int]): The type of each token.
    scores (Sequence[float]): The priority of each token. Tokens with higher scores are merged earlier.
    unk (str): The token for unknown text. It is never used, since every byte has a token.
    RETURNS (Tokenizer): The tokenizer.
    """
    # llama.cpp writes spaces in tokens as spaces, but the normalized text contains SPACE instead.
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
    """List the merges of a sentencepiece vocabulary. sentencepiece merges the two neighboring tokens whose
    concatenation has the highest score. BPE needs all pairs in that order, so every split of a token into
    two tokens becomes a pair.

    scores (Mapping[str, float]): The score of every token that a merge can produce.
    RETURNS (List[Tuple[str, str]]): The pairs, in the order of priority.
    """
    pairs: List[Tuple[str, str]] = []
    for token in sorted(scores, key=lambda token: -scores[token]):
        for i in range(1, len(token)):
            if token[:i] in scores and token[i:] in scores:
                pairs.append((token[:i], token[i:]))
    return pairs


def special_tokens(fields: Mapping[str, Any]) -> Dict[str, str]:
    """Get the special tokens of a GGUF file.

    fields (Mapping[str, Any]): Metadata of the GGUF file.
    RETURNS (Dict[str, str]): The tokens for "bos_token", "eos_token", "pad_token" and "unk_token". Keys
        that the file doesn't define are missing.
    """
    names = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}
    if fields.get("tokenizer.ggml.pre") == "qwen2":
        # The file names <|endoftext|>, but the original has no BOS token. It is only the padding.
        del names["bos"]
    found = {}
    for name, gguf_name in names.items():
        token_id: Optional[int] = fields.get(f"tokenizer.ggml.{gguf_name}_token_id")
        if token_id is not None:
            found[f"{name}_token"] = fields["tokenizer.ggml.tokens"][token_id]
    return found


def _add_tokens(
    tokenizer: Tokenizer, tokens: Sequence[str], types: Sequence[int], normalized: bool = False
) -> None:
    # With normalized=True, tokens are matched in the normalized text, as in sentencepiece. Otherwise, runs
    # of spaces would not match their tokens.
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
