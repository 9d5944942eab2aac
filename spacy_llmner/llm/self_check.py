"""The self-check of an LLM: what is computed on it here equals what transformers computes.

The reference is the model's own forward pass with eager attention, over whole texts. Four uses of the LLM
are compared with it: reading whole texts, streaming, trees of prompts, and attention rows. The check runs
on copies of the module tree that share the parameters, so the shared model is never changed. The copies
have short sliding windows, so that a short text is longer than them.
"""

import copy
import hashlib
import inspect
import math
import re
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Tuple
from weakref import WeakKeyDictionary

import torch
import transformers

from ..errors import Errors, LLMNERError
from .attention import Recorder
from .findings import Finding, load_findings, save_findings
from .hidden_states import FeatureSpec, StepReader, read_texts
from .loading import LoadedLLM, out_of_memory
from .tree_attention import KVCache, TreePass, run_decoder
from .views import copy_modules, generating_view, reading_view

TEXT = (
    "The ferry from Larvik was late again, so Mira Holt walked up the hill to the old mill and asked "
    "the owner, Jonas Weber, for three bags of flour, two eggs and a lamp."
)
# Tokens of the prefix, of each branch after it, and of the branches that follow step by step.
PREFIX, BRANCH, STEPS = 5, 10, 3
# Sliding windows are shortened to this many tokens.
WINDOW = 8
# Names of the sizes of windows and chunks in the configs and attention modules of transformers.
WINDOW_NAMES = ("sliding_window", "attention_chunk_size")
# Keys per attention row, as `attention` is checked.
ROWS = 3
# Largest acceptable differences of hidden states or attention rows, and of log-probabilities (in nats), for
# LLMs in float32 and for others. Rounding alone causes 1e-6 in float32, and a few percent in bfloat16.
LIMITS = {True: (1e-3, 1e-3), False: (0.15, 0.15)}

Reference = Tuple[torch.Tensor, torch.Tensor, Optional[torch.Tensor]]


def self_check(llm: LoadedLLM, remember: bool = True) -> Dict[str, Finding]:
    """Check an LLM. Findings are stored in SPACY_LLMNER_HOME, by weights, dtype, device and versions, so
    the check usually runs only once.

    llm (LoadedLLM): The LLM.
    remember (bool): Use stored findings if there are any.
    RETURNS (Dict[str, Finding]): By use: "reads", "streams", "trees" and "attention".
    RAISES (LLMNERError): If the model's layers can't be found.
    RAISES (MemoryError): If the memory is not enough.
    """
    facts = _facts(llm)
    findings = load_findings(facts) if remember else None
    if findings is None:
        # Tensors created in inference mode can't be used in training, but views are stored.
        with torch.inference_mode(False), torch.no_grad():
            findings = _check(llm)
        save_findings(facts, findings)
    return findings


def _facts(llm: LoadedLLM) -> Dict[str, str]:
    device, config = llm.device, llm.model.config.to_json_string()
    return {
        "code": _code(),
        "weights": llm.fingerprint,
        "config": hashlib.sha256(config.encode()).hexdigest(),
        "spec": repr(replace(llm.spec, name="")),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


@lru_cache(maxsize=1)
def _code() -> str:
    """RETURNS (str): A hash of the code that is checked, and of the check."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def _check(llm: LoadedLLM) -> Dict[str, Finding]:
    ids = _text_ids(llm)
    ours = _copy_llm(llm)
    reading_view(ours, (0,), 1)  # raises an error if the layers can't be found
    try:
        expected = _reference(_copy_llm(llm, "eager"), ids.to(llm.device))
    except Exception as e:
        _raise_if_out_of_memory(llm, e)
        reason = f"its own forward pass with eager attention fails ({_summary(e)})"
        return {use: Finding(math.inf, None, reason) for use in USES}
    limits = LIMITS[_is_exact(llm)]
    findings = {use: _finding(use, ours, ids, expected, limits) for use in USES}
    in_doubt = [f for f in findings.values() if f.reason and not math.isinf(f.states)]
    if in_doubt and not _is_exact(llm):
        limits = _rounding_limits(llm, ids, expected, limits)
        findings = {use: _finding(use, ours, ids, expected, limits) for use in USES}
    return findings


def _rounding_limits(
    llm: LoadedLLM, ids: torch.Tensor, expected: Reference, limits: Tuple[float, float]
) -> Tuple[float, float]:
    """Measure how much rounding changes the results of the model itself. If experts are chosen by close
    scores, this can be much.

    RETURNS (Tuple[float, float]): The limits, raised to twice these changes.
    """
    copied, dtype = _copy_llm(llm, "eager"), llm.model.dtype
    rounding = torch.finfo(torch.bfloat16 if dtype == torch.float32 else dtype).eps
    noise = 1 + rounding * (torch.arange(llm.width, device=llm.device) % 3 - 1)
    copied.model.get_input_embeddings().register_forward_hook(
        lambda module, args, out: (out.float() * noise).to(dtype)
    )
    states, log_probs, _ = _reference(copied, ids.to(llm.device))
    change = _ratios(states, expected[0]).flatten(0, 1).quantile(0.9, dim=0).max()
    log_prob_change = _nats(log_probs, expected[1]).quantile(0.9)
    return max(limits[0], 2 * float(change)), max(limits[1], 2 * float(log_prob_change))


def _finding(
    use: str,
    llm: LoadedLLM,
    ids: torch.Tensor,
    expected: Reference,
    limits: Tuple[float, float],
) -> Finding:
    max_states, max_log_probs = limits
    try:
        found = USES[use](llm, ids, expected)
    except Exception as e:
        _raise_if_out_of_memory(llm, e)
        return Finding(math.inf, None, _summary(e))
    if found.reason:
        return found
    reason = ""
    if found.states > max_states:
        what = "attention weights" if use == "attention" else "hidden states"
        reason = f"its {what} differ from those of transformers by {found.states:.1%}"
    elif found.log_probs is not None and found.log_probs > max_log_probs:
        difference = f"{found.log_probs:.2g} nats"
        reason = f"its log-probabilities differ from those of transformers by {difference}"
    return replace(found, reason=reason)


def _raise_if_out_of_memory(llm: LoadedLLM, error: Exception) -> None:
    """RAISES (MemoryError): If this was the error. It says nothing about the LLM and must not be stored."""
    if out_of_memory(error):
        name = llm.spec.name
        raise MemoryError(f"no room for the self-check of the LLM '{name}' ({error})") from error


def _text_ids(llm: LoadedLLM) -> torch.Tensor:
    """RETURNS (Tensor): int64, shape (2, PREFIX + BRANCH): two texts with the same first tokens."""
    bos, found = llm.tokenizer.bos, llm.tokenizer.encode(TEXT).ids
    if not found:
        found = list(range(llm.model.get_input_embeddings().weight.shape[0]))
    needed = PREFIX + 2 * BRANCH
    ids = bos + (found * (needed // len(found) + 1))[: needed - len(bos)]
    first = ids[: PREFIX + BRANCH]
    return torch.tensor([first, first[:PREFIX] + ids[PREFIX + BRANCH :]])


def _copy_llm(llm: LoadedLLM, attention: Optional[str] = None) -> LoadedLLM:
    """Copy an LLM's module tree, with short sliding windows.

    attention (Optional[str]): Another implementation of attention; None to keep that of the LLM.
    RETURNS (LoadedLLM): The copy. It shares parameters and buffers, but has its own configs.
    """
    out = copy_modules(llm.model)
    memo: Dict[int, Any] = {}
    copy.deepcopy(llm.model.config, memo)  # a nested config is part of the copy of the outer one
    for module in out.modules():
        holders: List[Any] = [module]
        if hasattr(module.__dict__.get("config"), "to_dict"):
            module.config = copy.deepcopy(module.config, memo)
            if attention is not None:
                module.config._attn_implementation = attention
            holders.append(module.config)
        for holder in holders:
            for name in WINDOW_NAMES:
                size = holder.__dict__.get(name)
                if isinstance(size, int) and size > WINDOW:
                    setattr(holder, name, WINDOW)
    return replace(llm, model=out, views={}, prefixes=WeakKeyDictionary(), findings={})


def _reference(llm: LoadedLLM, ids: torch.Tensor) -> Reference:
    """RETURNS (Tuple[Tensor, Tensor, Optional[Tensor]]): Hidden states, shape (texts, tokens, layers + 1,
    width); log-probabilities, shape (texts, tokens, vocabulary); and attention maps, shape (texts, layers,
    heads, tokens, tokens), or None if the model does not return them for all layers."""
    layers = _all_layers(llm).layers
    model = generating_view(llm, layers)
    # In transformers 4, models without attention have no such argument. In 5, it is a keyword argument.
    parameters = inspect.signature(model.forward).parameters
    has_maps = "output_attentions" in parameters or "kwargs" in parameters
    with Recorder() as recorder:
        out = model(
            input_ids=ids, use_cache=False, **({"output_attentions": True} if has_maps else {})
        )
    states = [recorder.hidden[layer].float().to(ids.device) for layer in layers]
    if any(state.shape != states[0].shape or state.dim() != 3 for state in states):
        shapes = " and ".join(sorted({str(tuple(state.shape)) for state in states}))
        raise LLMNERError(Errors.E144.format(shapes=shapes))
    maps = getattr(out, "attentions", None) or ()
    is_complete = len(maps) == llm.n_layers and all(m is not None for m in maps)
    attention = torch.stack([m.float().to(ids.device) for m in maps], 1) if is_complete else None
    log_probs = torch.log_softmax(out.logits.float().to(ids.device), -1)
    return torch.stack(states, 2), log_probs, attention


def _reads(llm: LoadedLLM, ids: torch.Tensor, expected: Reference) -> Finding:
    """Check whole texts of different lengths in one batch."""
    texts = [ids[0].tolist(), ids[1, : PREFIX + BRANCH // 2].tolist()]
    spec, exact = _all_layers(llm), _is_exact(llm)
    found = read_texts(llm, texts, spec)
    difference = max(
        _state_difference(features.hidden, states[: len(text)], exact)
        for text, features, states in zip(texts, found, expected[0])
    )
    if difference > LIMITS[False][0]:
        alone = read_texts(llm, [ids[1].tolist()], spec)[0].hidden
        if _state_difference(alone, expected[0][1], exact) < difference / 10:
            reason = "it is not a causal LM, since its tokens also depend on later tokens"
            return Finding(difference, None, reason)
    return Finding(difference)


def _streams(llm: LoadedLLM, ids: torch.Tensor, expected: Reference) -> Finding:
    """Check a prompt, and tokens after it that are read one at a time, with the model's own cache."""
    reader = StepReader(llm, _all_layers(llm))
    text, start = ids[0].tolist(), ids.shape[1] - STEPS
    logits, features = reader.feed(text[:start])
    states, log_probs = [features.hidden], [torch.log_softmax(logits.float(), -1)]
    for token in text[start:-1]:
        logits, features = reader.feed([token])
        states.append(features.hidden)
        log_probs.append(torch.log_softmax(logits.float(), -1))
    states.append(reader.feed_last(text[-1:]).hidden)
    # The few tokens after the prompt count as much as the prompt.
    parts = ((states[0], expected[0][0, :start]), (torch.cat(states[1:]), expected[0][0, start:]))
    return Finding(
        max(_state_difference(ours, own, _is_exact(llm)) for ours, own in parts),
        _log_prob_difference(torch.stack(log_probs), expected[1][0, start - 1 : -1]),
    )


def _trees(llm: LoadedLLM, ids: torch.Tensor, expected: Reference) -> Finding:
    """Check two branches after a prefix: in one pass, with a cache for their last tokens, and as two texts
    after a cached prefix."""
    reason = _layers_without_attention(llm, ids)
    if reason:
        return Finding(math.inf, None, reason)
    n, device = ids.shape[1], llm.device
    spec = _all_layers(llm)
    view = reading_view(llm, spec.layers, llm.n_layers)
    # The tokens in the order in which they are sent: the prefix, the branches, and their last tokens.
    rows = [(0, k) for k in range(PREFIX)]
    rows += [(text, k) for text in range(2) for k in range(PREFIX, n - STEPS)]
    rows += [(text, k) for text in range(2) for k in range(n - STEPS, n)]
    branch, place = torch.tensor(rows).T
    visible = (place < PREFIX) | (branch == branch[:, None])
    visible = (visible & (place <= place[:, None]))[None].to(device)
    positions, slots = place[None].to(device), torch.arange(len(rows), device=device)
    tokens = ids[branch, place][None].to(device)
    cache, states, final = KVCache(), [], []
    split = len(rows) - 2 * STEPS
    for start, end in ((0, split), (split, len(rows))):
        tree_pass = TreePass(
            visible[:, start:end, :end],
            positions[:, start:end],
            positions[:, :end],
            cache,
            slots[start:end],
        )
        with Recorder() as recorder:
            last = run_decoder(view, tokens[:, start:end], positions[:, start:end], tree_pass)
        final.append(last[0].to(device))
        found = [recorder.hidden[layer][0].float().to(device) for layer in spec.layers]
        states.append(torch.stack(found, 1))
    log_probs = torch.log_softmax(llm.logits(torch.cat(final)), -1)
    branch, place = branch.to(device), place.to(device)
    own, exact = expected[0][branch, place], _is_exact(llm)
    difference = max(
        _state_difference(states[0], own[:split], exact),
        _state_difference(states[1], own[split:], exact),
    )
    prefix, texts = tuple(ids[0, :PREFIX].tolist()), ids[:, PREFIX:].tolist()
    for features, own in zip(read_texts(llm, texts, spec, prefix=prefix), expected[0]):
        difference = max(difference, _state_difference(features.hidden, own[PREFIX:], exact))
    return Finding(difference, _log_prob_difference(log_probs, expected[1][branch, place]))


def _attention(llm: LoadedLLM, ids: torch.Tensor, expected: Reference) -> Finding:
    """Check the rows of attention weights."""
    reason = _layers_without_attention(llm, ids)
    if reason:
        return Finding(math.inf, None, reason)
    maps = expected[2]
    if maps is None:
        return Finding(math.inf, None, "transformers returns no attention weights for some layers")
    found = read_texts(llm, [ids[0].tolist()], FeatureSpec((llm.n_layers,), window=ROWS))
    attention = found[0].attention
    assert attention is not None
    difference = 0.0
    for offset in range(ROWS):
        own = maps[0].diagonal(-offset, dim1=2, dim2=3).permute(2, 0, 1)
        difference = max(difference, float((attention[offset:, ..., offset] - own).abs().mean()))
    return Finding(difference)


USES: Dict[str, Callable[[LoadedLLM, torch.Tensor, Reference], Finding]] = {
    "reads": _reads,
    "streams": _streams,
    "trees": _trees,
    "attention": _attention,
}


def _layers_without_attention(llm: LoadedLLM, ids: torch.Tensor) -> str:
    """RETURNS (str): Which layers can't attend along a tree; "" if all can."""
    with Recorder(window=1) as recorder:
        llm.decoder(input_ids=ids[:1, :1].to(llm.device), use_cache=False)
    missing = sorted(set(range(llm.n_layers)) - set(recorder.rows))
    if not missing:
        return ""
    shown = ", ".join(map(str, missing[:3])) + (", ..." if len(missing) > 3 else "")
    return f"some layers ({shown}) are recurrent or convolutional, or have attention that can't be replaced"


def _is_exact(llm: LoadedLLM) -> bool:
    """RETURNS (bool): Whether rounding has no visible effect. Quantized LLMs may round activations, too."""
    return llm.model.dtype == torch.float32 and not llm.quantization


def _all_layers(llm: LoadedLLM) -> FeatureSpec:
    return FeatureSpec(tuple(range(llm.n_layers + 1)))


def _state_difference(ours: torch.Tensor, own: torch.Tensor, exact: bool) -> float:
    """RETURNS (float): Difference of hidden states, shape (tokens, layers, width), relative to their
    length: the mean over the tokens, for the worst layer. If it is not exact, the median, because single
    tokens can differ much more, for example if other experts compute them."""
    ratios = _ratios(ours, own)
    typical = ratios.mean(0) if exact else ratios.median(0).values
    return float(typical.max())


def _ratios(ours: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    """RETURNS (Tensor): Lengths of the differences of hidden states, relative to the states' own."""
    both_nan = torch.isnan(ours) & torch.isnan(own)
    distance = torch.where(both_nan, 0.0, ours - own).norm(dim=-1)
    length = torch.nan_to_num(own).norm(dim=-1).clamp(min=1e-6)
    return torch.nan_to_num(distance / length, nan=math.inf)


def _log_prob_difference(ours: torch.Tensor, own: torch.Tensor) -> float:
    return float(_nats(ours, own).mean())


def _nats(ours: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    """RETURNS (Tensor): Difference of each token's log-probabilities: the mean over the vocabulary,
    weighted by probability. In half precision, rounding has a large effect on improbable tokens."""
    difference = torch.where(torch.isnan(ours) & torch.isnan(own), 0.0, ours - own).abs()
    difference = torch.nan_to_num(difference, nan=math.inf)
    return (torch.nan_to_num(own.exp()) * difference).sum(-1)


def _summary(error: Exception) -> str:
    first = str(error).strip().split("\n")[0]
    if isinstance(error, LLMNERError):
        return re.sub(
            r"^\[LLMNER\d+\] ", "", first
        )  # the code belongs to the message that contains this
    return f"{type(error).__name__}: {first}"
