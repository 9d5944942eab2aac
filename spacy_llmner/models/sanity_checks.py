"""Check whether a model was converted correctly, with quick tests that a wrong conversion fails."""

import json
from pathlib import Path
from typing import Optional, Tuple

from ..errors import Errors, LLMNERError
from .versions import dtype_argument

# Plain English text, for causal LMs.
SENTENCES = (
    "The old bridge over the river was closed in spring because its stones had become loose.",
    "She opened the window, looked at the rain and decided to stay at home for the day.",
    "In 1998 the town had about 12,000 inhabitants, most of whom worked in the paper mill.",
    "The doctor said that he should drink more water and sleep at least seven hours a night.",
    "After the meeting in Geneva, the two ministers told the press that they would meet again.",
)
# Two sentences with the same meaning and one with a different meaning, for sentence encoders.
SIMILAR_AND_OTHER = (
    "A man is playing the guitar on the street.",
    "Someone plays guitar outside.",
    "The parliament voted against the new tax.",
)


def likelihood(path: Path) -> float:
    """Measure how well a causal LM and its tokenizer predict plain English. In measurements, a wrong
    tokenizer or wrongly converted weights increased the value by 0.6 to 14 nats.

    path (Path): Folder of the model.
    RETURNS (float): Mean negative log-likelihood, in nats per token.
    RAISES (LLMNERError): If the model is not a causal LM.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    config = json.loads((Path(path) / "config.json").read_text(encoding="utf8"))
    kinds = config.get("architectures") or ["?"]
    if not kinds[0].endswith(("ForCausalLM", "LMHeadModel")):
        raise LLMNERError(Errors.E092.format(path=path, kind=kinds[0]))
    tokenizer = AutoTokenizer.from_pretrained(path)
    # Weights of 16 bits would take twice the memory in float32. In bfloat16, the value differs by 0.01.
    stored = config.get("dtype", config.get("torch_dtype"))
    dtype = torch.float32 if stored in (None, "float32") else torch.bfloat16
    model = AutoModelForCausalLM.from_pretrained(
        path, attn_implementation="eager", **dtype_argument(dtype)
    ).eval()
    bos = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    total, n_tokens = 0.0, 0
    with torch.inference_mode():
        for sentence in SENTENCES:
            ids = tokenizer(sentence, add_special_tokens=False)["input_ids"]
            logits = model(torch.tensor([[bos, *ids]])).logits[0, :-1].float()
            log_probs = logits.log_softmax(-1)[range(len(ids)), ids]
            total -= float(log_probs.sum())
            n_tokens += len(ids)
    return total / n_tokens


def find_fault(path: Path, max_nats: Optional[float]) -> Optional[str]:
    """Check a model after its conversion.

    path (Path): Folder of the model.
    max_nats (Optional[float]): Maximum of a causal LM's likelihood, in nats per token; None for a sentence
        encoder.
    RETURNS (Optional[str]): The fault, or None if the model passes.
    """
    if max_nats is not None:
        nats = likelihood(path)
        if not nats <= max_nats:
            return (
                f"plain English costs {nats:.2f} nats per token, but must cost at most {max_nats}"
            )
        return None
    near, far = _similarities(path)
    if not near > far + 0.3:
        return (
            f"the similarity of two sentences with the same meaning is {near:.2f}, but of two with "
            f"different meanings {far:.2f}"
        )
    return None


def _similarities(path: Path) -> Tuple[float, float]:
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModel.from_pretrained(path).float().eval()
    vectors = []
    with torch.inference_mode():
        for sentence in SIMILAR_AND_OTHER:
            inputs = tokenizer(sentence, return_tensors="pt")
            vectors.append(model(**inputs).last_hidden_state[0].mean(0))
    first, second, other = vectors
    near = torch.nn.functional.cosine_similarity(first, second, dim=0)
    return float(near), float(torch.nn.functional.cosine_similarity(first, other, dim=0))
