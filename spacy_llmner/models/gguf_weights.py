"""Convert the weights of a GGUF file to config.json and model.safetensors.

transformers has its own conversion. But the files must be the same with every version of transformers,
since components store the fingerprint of the weights that they were trained on. Besides, transformers takes
minutes for a vocabulary as large as Gemma's.
"""

import json
import re
from pathlib import Path
from typing import Any, Dict, Mapping

import numpy
from gguf import GGUFReader, ReaderTensor, dequantize
from tqdm import tqdm

from ..errors import Errors, LLMNERError

# Names of a decoder layer's tensors: GGUF to transformers.
SHARED = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
LAYER_NAMES = {
    "llama": {**SHARED, "ffn_norm": "post_attention_layernorm"},
    "gemma3": {
        **SHARED,
        "attn_q_norm": "self_attn.q_norm",
        "attn_k_norm": "self_attn.k_norm",
        "post_attention_norm": "post_attention_layernorm",
        "ffn_norm": "pre_feedforward_layernorm",
        "post_ffw_norm": "post_feedforward_layernorm",
    },
    "qwen2": {**SHARED, "ffn_norm": "post_attention_layernorm"},
}
OTHER_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
# Names of the dtypes in a safetensors file.
DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
# If the embeddings and the LM head were one matrix before quantization, rows of both have at least this
# mean cosine. It is 0.997 and 0.999 for two files of Qwen2.5.
TIED_COSINE = 0.98


def read_fields(reader: GGUFReader) -> Dict[str, Any]:
    """Read all metadata of a GGUF file as plain Python values.

    reader (GGUFReader): The open file.
    RETURNS (Dict[str, Any]): The values by name, such as "llama.block_count".
    """
    return {name: field.contents() for name, field in reader.fields.items()}


def save_weights(
    reader: GGUFReader,
    fields: Mapping[str, Any],
    path: Path,
    dtype: str = "float32",
    progress: bool = False,
) -> None:
    """Write config.json, generation_config.json and model.safetensors. Only one tensor at a time is
    dequantized.

    reader (GGUFReader): The open GGUF file.
    fields (Mapping[str, Any]): Metadata of the GGUF file.
    path (Path): An existing folder.
    dtype (str): Dtype of the written weights: "float32", "bfloat16" or "float16".
    progress (bool): Show a progress bar, if standard error is a terminal.
    RAISES (LLMNERError): If the architecture or a tensor of the file is not supported.
    """
    config = build_config(fields)
    config["torch_dtype"] = dtype
    tensors = {_rename(t.name, fields["general.architecture"]): t for t in reader.tensors}
    config["tie_word_embeddings"] = _tie(tensors)
    _write_json(path / "config.json", config)
    ids = {
        key: config[key]
        for key in ("bos_token_id", "eos_token_id", "pad_token_id")
        if key in config
    }
    _write_json(path / "generation_config.json", {"_from_model_config": True, **ids})
    _write_tensors(tensors, config, path / "model.safetensors", progress)


def _tie(tensors: Dict[str, ReaderTensor]) -> bool:
    """Find out whether the embeddings are also the LM head. A GGUF file can contain both matrices although
    the model has only one. Then the one with more bits per weight becomes the embeddings.

    tensors (Dict[str, ReaderTensor]): Tensors by their names in transformers. The LM head of tied
        embeddings is removed.
    RETURNS (bool): Whether they are tied.
    """
    head, embeddings = tensors.get("lm_head.weight"), tensors["model.embed_tokens.weight"]
    if head is None:
        return True
    step = max(1, len(head.data) // 1000)
    rows = [dequantize(t.data[::step], t.tensor_type) for t in (head, embeddings)]
    rows = [x / numpy.maximum(numpy.linalg.norm(x, axis=1, keepdims=True), 1e-9) for x in rows]
    if (rows[0] * rows[1]).sum(axis=1).mean() < TIED_COSINE:
        return False
    del tensors["lm_head.weight"]
    tensors["model.embed_tokens.weight"] = max(head, embeddings, key=lambda t: t.n_bytes)
    return True


def _write_tensors(
    tensors: Mapping[str, ReaderTensor], config: Mapping[str, Any], file: Path, progress: bool
) -> None:
    # safetensors can only write tensors that are all in memory. This writes the same bytes.
    import torch

    dtype = config["torch_dtype"]
    torch_dtype = getattr(torch, dtype)
    header: Dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in sorted(tensors):
        start, end = end, end + int(tensors[name].n_elements) * torch_dtype.itemsize
        # GGUF lists the last dimension first.
        shape = [int(size) for size in reversed(tensors[name].shape)]
        header[name] = {"dtype": DTYPES[dtype], "shape": shape, "data_offsets": [start, end]}
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with file.open("wb") as written:
        written.write(len(encoded).to_bytes(8, "little") + encoded)
        for name in tqdm(sorted(tensors), "Converting", disable=None if progress else True):
            values = dequantize(tensors[name].data, tensors[name].tensor_type)
            values = numpy.require(_as_transformers(values, name, config), "float32", ["C", "W"])
            converted = torch.from_numpy(values).to(torch_dtype)
            written.write(converted.view(torch.uint8).numpy().data)


def build_config(fields: Mapping[str, Any]) -> Dict[str, Any]:
    """Convert the metadata of a GGUF file to a config of transformers.

    fields (Mapping[str, Any]): Metadata of the GGUF file.
    RETURNS (Dict[str, Any]): The content of config.json.
    RAISES (LLMNERError): If the architecture of the file is not supported.
    """
    name = fields["general.architecture"]
    if name not in LAYER_NAMES:
        raise LLMNERError(Errors.E090.format(name=name, known=", ".join(LAYER_NAMES)))
    n_heads = fields[f"{name}.attention.head_count"]
    hidden_size = fields[f"{name}.embedding_length"]
    config = {
        "vocab_size": len(fields["tokenizer.ggml.tokens"]),
        "hidden_size": hidden_size,
        "intermediate_size": fields[f"{name}.feed_forward_length"],
        "num_hidden_layers": fields[f"{name}.block_count"],
        "num_attention_heads": n_heads,
        "num_key_value_heads": fields[f"{name}.attention.head_count_kv"],
        "head_dim": fields.get(f"{name}.attention.key_length", hidden_size // n_heads),
        "max_position_embeddings": fields[f"{name}.context_length"],
        "rms_norm_eps": _float32(fields[f"{name}.attention.layer_norm_rms_epsilon"]),
        "rope_theta": _float32(fields[f"{name}.rope.freq_base"]),
        "attention_bias": False,
        "tie_word_embeddings": True,
        "bos_token_id": fields["tokenizer.ggml.bos_token_id"],
        "eos_token_id": fields["tokenizer.ggml.eos_token_id"],
        "pad_token_id": fields["tokenizer.ggml.padding_token_id"],
        "torch_dtype": "float32",
    }
    if name == "llama":
        return {"architectures": ["LlamaForCausalLM"], "model_type": "llama", **config}
    if name == "qwen2":
        # Its q, k and v always have biases, and no other layer has one.
        del config["attention_bias"]
        return {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", **config}
    # The following values are not in the file, but are the same for every Gemma 3. Every sixth layer has
    # full attention, and the others have a sliding window.
    n_layers = config["num_hidden_layers"]
    config["layer_types"] = [
        "sliding_attention" if (i + 1) % 6 else "full_attention" for i in range(n_layers)
    ]
    config["sliding_window"] = fields["gemma3.attention.sliding_window"]
    config["rope_local_base_freq"] = 10000.0
    config["query_pre_attn_scalar"] = config["head_dim"]
    config["hidden_activation"] = "gelu_pytorch_tanh"
    return {"architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", **config}


def _rename(name: str, architecture: str) -> str:
    in_layer = re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", name)
    has_bias = architecture == "qwen2"
    if (
        in_layer
        and in_layer[2] in LAYER_NAMES[architecture]
        and (in_layer[3] == "weight" or has_bias)
    ):
        new = LAYER_NAMES[architecture][in_layer[2]]
        return f"model.layers.{in_layer[1]}.{new}.{in_layer[3]}"
    other = OTHER_NAMES.get(name.removesuffix(".weight"))
    if other is None:
        raise LLMNERError(Errors.E091.format(name=name))
    return f"{other}.weight"


def _as_transformers(values: numpy.ndarray, name: str, config: Mapping[str, Any]) -> numpy.ndarray:
    # Revert the changes that llama.cpp makes to the weights when it creates a GGUF file.
    if config["model_type"] == "llama":
        # llama.cpp rotates neighboring dimensions of a head together. transformers rotates each dimension
        # of the first half together with one of the second half.
        heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}
        for projection, n_heads in heads.items():
            if projection in name:
                split = values.reshape(config[n_heads], -1, 2, values.shape[1])
                return split.swapaxes(1, 2).reshape(values.shape)
    elif config["model_type"] == "gemma3_text" and name.endswith("norm.weight"):
        return values - 1.0  # Gemma's layers multiply by 1 + weight
    return values


def _float32(value: float) -> float:
    # As a float32, 1e-05 is 9.999999747378752e-06. Write the shorter number.
    return float(str(numpy.float32(value)))


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf8")
