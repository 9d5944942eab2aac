"""Small GGUF files with random weights."""

import numpy
import torch
from gguf import GGUFWriter
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from spacy_llmner.models import gguf_weights

SHAPE = {
    "vocab_size": 8,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 7,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "max_position_embeddings": 64,
    "rope_theta": 1234.0,
    "tie_word_embeddings": True,
}
TOKENS = ["<unk>", "<s>", "</s>", "<pad>", "a", "b", "ab", "1"]

FIELDS = {
    "llama": {"model": "gpt2", "pre": "smollm"},
    "gemma3": {"model": "llama", "pre": "default"},
    "qwen2": {"model": "gpt2", "pre": "qwen2"},
}
for made_up in FIELDS.values():
    made_up.update(
        tokens=TOKENS,
        types=[3, 3, 3, 3, 1, 1, 1, 1],
        scores=[0.0, 0.0, 0.0, 0.0, -3.0, -4.0, -1.0, -5.0],
        merges=["a b"],
    )


def tiny_model(kind):
    """A model with random weights: "llama", "gemma3" or "qwen2"."""
    torch.manual_seed(0)
    if kind == "llama":
        model = LlamaForCausalLM(LlamaConfig(**SHAPE, rms_norm_eps=1e-5))
    elif kind == "qwen2":
        model = Qwen2ForCausalLM(Qwen2Config(**SHAPE))
    else:
        model = Gemma3ForCausalLM(
            Gemma3TextConfig(**SHAPE, query_pre_attn_scalar=4, sliding_window=3)
        )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model.eval()


def write_gguf(path, model, fields, head=None):
    """Write a model as llama.cpp does.

    model (PreTrainedModel): A Llama, Gemma 3 or Qwen2.
    fields (Dict): The tokenizer: "model", "pre", "tokens", "types", "scores", "merges".
    head (Optional[ndarray]): The LM head, if the file has one. The embeddings are then in float16.
    """
    config = model.config
    name = {"llama": "llama", "gemma3_text": "gemma3", "qwen2": "qwen2"}[config.model_type]
    names = {new: old for old, new in gguf_weights.LAYER_NAMES[name].items()}
    names.update({new: old for old, new in gguf_weights.OTHER_NAMES.items()})
    writer = GGUFWriter(path, name)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(SHAPE["head_dim"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(1234.0)
    if name == "gemma3":
        writer.add_sliding_window(config.sliding_window)
    writer.add_tokenizer_model(fields["model"])
    writer.add_tokenizer_pre(fields["pre"])
    writer.add_token_list(fields["tokens"])
    writer.add_token_types(fields["types"])
    writer.add_token_scores(fields["scores"])
    writer.add_token_merges(fields["merges"])
    for token_id, add in enumerate(("unk", "bos", "eos", "pad")):
        getattr(writer, f"add_{add}_token_id")(token_id)
    for key, weights in model.state_dict().items():
        if key == "lm_head.weight":
            continue
        name_of_layer, _, kind = key.rpartition(".")
        parts = name_of_layer.removeprefix("model.").split(".")
        weights = weights.numpy()
        if parts[0] == "layers":
            new = f"blk.{parts[1]}.{names['.'.join(parts[2:])]}.{kind}"
        else:
            new = f"{names[name_of_layer]}.{kind}"
        if name == "llama" and kind == "weight" and parts[-1] in ("q_proj", "k_proj"):
            heads = config.num_attention_heads if "q" in parts[-1] else config.num_key_value_heads
            split = weights.reshape(heads, 2, -1, weights.shape[1])
            weights = numpy.ascontiguousarray(split.swapaxes(1, 2).reshape(weights.shape))
        if name == "gemma3" and "norm" in parts[-1]:
            weights = weights + 1
        if new == "token_embd.weight" and head is not None:
            weights = weights.astype("float16")
        writer.add_tensor(new, weights)
    if head is not None:
        writer.add_tensor("output.weight", head)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
