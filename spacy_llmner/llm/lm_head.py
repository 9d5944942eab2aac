"""The LM head: from hidden states to logits."""

from typing import Any, Optional

import torch
from torch.nn.functional import linear

from .quantization import is_packed_tensor


def lm_logits(model: Any, hidden: torch.Tensor, ids: Optional[torch.Tensor] = None) -> torch.Tensor:
    """Apply the LM head, and what the model applies after it: a scale (Granite, Cohere) or a soft cap
    (Gemma 2).

    model (PreTrainedModel): The causal LM.
    hidden (Tensor): Shape (rows, width), after the final norm.
    ids (Optional[Tensor]): The tokens to compute logits for; None for the whole vocabulary.
    RETURNS (Tensor): float32, shape (rows, ids).
    """
    head, config = model.get_output_embeddings(), model.config
    if ids is None:
        logits = head(hidden).float()
    elif is_packed(head):
        logits = head(hidden)[:, ids.to(hidden.device)].float()
    else:
        weight = head.weight
        ids = ids.to(weight.device)
        bias = None if head.bias is None else head.bias[ids]
        logits = linear(hidden.to(weight.device), weight[ids], bias).float()
    scale = getattr(config, "logit_scale", None) or 1.0
    scale /= getattr(config, "logits_scaling", None) or 1.0
    cap = getattr(config, "final_logit_softcapping", None)
    logits = logits if scale == 1.0 else logits * scale
    return logits if cap is None else torch.tanh(logits / cap) * cap


def is_packed(head: Any) -> bool:
    """RETURNS (bool): Whether an LM head is quantized, so that its weight has no row for each token."""
    weight = getattr(head, "weight", None)
    return weight is None or is_packed_tensor(weight)
