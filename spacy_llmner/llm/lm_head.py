"""The LM head: from hidden states to logits, and a check that these match the whole model's."""

from typing import Any, Optional

import torch
from torch.nn.functional import linear

from .quantization import is_packed_tensor

# Number of tokens in the check, and the largest acceptable difference between log-probabilities, by the
# size of the dtype in bytes.
CHECKED_TOKENS = 8
# Without a model's scale, the difference is several nats. In bfloat16, logits above 16 are multiples of
# 0.125.
TOLERANCES = {4: 1e-3, 2: 0.5}


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


@torch.no_grad()
def log_prob_difference(model: Any, decoder: Any) -> float:
    """Compare log-probabilities from `lm_logits` with those that the model itself computes.

    model (PreTrainedModel): The causal LM.
    decoder (PreTrainedModel): The same model without its LM head.
    RETURNS (float): The largest difference over the whole vocabulary, in nats.
    """
    n_rows = model.get_input_embeddings().weight.shape[0]
    # IDs that are far apart. They are the same in every process.
    ids = torch.arange(CHECKED_TOKENS) * 7919 % n_rows
    ids = ids[None].to(model.get_input_embeddings().weight.device)
    ours = lm_logits(model, decoder(input_ids=ids, use_cache=False).last_hidden_state[0])
    own = model(input_ids=ids, use_cache=False).logits[0].float()
    difference = torch.log_softmax(ours, -1) - torch.log_softmax(own, -1)
    return float(difference.abs().max())


def tolerance(dtype: torch.dtype) -> float:
    """RETURNS (float): The largest acceptable `log_prob_difference` for weights of this dtype."""
    return TOLERANCES.get(dtype.itemsize, TOLERANCES[2])
