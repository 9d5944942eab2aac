"""Which families of LLMs can be used, and for what: the self-check of a tiny random LLM of every family of
causal LMs that the installed transformers has.

    python -m benchmarks.families.check
    python -m benchmarks.families.check llama granite

Each family runs in a process of its own, with a time limit. `trains` says that a LoRA adapter leaves the
states unchanged when it is new, and gets gradients. Results of other families, and of other versions of
transformers, are kept.
"""

import contextlib
import io
import json
import math
import multiprocessing
import tempfile
import warnings
from pathlib import Path
from typing import Any, Dict, List, Optional

import torch
import transformers
import typer
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from benchmarks.lib.common import RESULTS, save
from spacy_llmner.errors import LLMNERError
from spacy_llmner.llm.lora import AdapterSettings, new_adapter
from spacy_llmner.llm.registry import make_llm
from spacy_llmner.llm.self_check import self_check
from spacy_llmner.llm.tree_attention import causal_pass, run_decoder
from tests.llm.families import save_random_llm

NAME = "families"
LIMIT = 120  # seconds for one family


def main(families: List[str] = typer.Argument(None)) -> None:
    path = RESULTS / f"{NAME}.json"
    versions: Dict[str, Any] = {}
    if path.exists():
        versions = json.loads(path.read_text())["versions"]
    rows = versions.setdefault(transformers.__version__, {})
    for family in families or sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES):
        rows[family] = _in_process(family)
        print(family, rows[family], flush=True)
        save(NAME, {"versions": versions})


def _in_process(family: str) -> Dict[str, Any]:
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=lambda: sender.send(check_family(family)), daemon=True)
    process.start()
    sender.close()
    try:
        if not receiver.poll(LIMIT):
            return {"not_built": f"took more than {LIMIT} s"}
        return receiver.recv()
    except EOFError:
        return {"not_built": "the process was killed"}
    finally:
        process.kill()
        process.join()


def check_family(family: str) -> Dict[str, Any]:
    """RETURNS (Dict[str, Any]): For each use, whether it works, and why not; or why the family was
    refused or could not be built."""
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        try:
            save_random_llm(Path(folder), family)
        except Exception as e:
            return {"not_built": f"{type(e).__name__}: {e}"[:200]}
        try:
            llm = make_llm(folder, device="cpu", self_check=False).load()
            findings = self_check(llm, remember=False)
        except LLMNERError as e:
            return {"refused": str(e).replace(folder, "FOLDER")}
        row: Dict[str, Any] = {
            use: {
                "difference": None if math.isinf(found.states) else found.states,
                "log_probs": found.log_probs,
                "reason": found.reason,
            }
            for use, found in findings.items()
        }
        reason = row["trees"]["reason"] or _training_fault(llm)
        row["trains"] = {"reason": reason or ""}
        return row


def _training_fault(llm: Any) -> Optional[str]:
    """RETURNS (Optional[str]): What is wrong with an adapter on this LLM."""
    try:
        settings = AdapterSettings(rank=2, alpha=4, first_layer=0)
        adapter, _ = new_adapter(llm, settings)
        view = adapter.attach(llm, settings)
        ids = torch.arange(3, 15)[None]
        args = ids, torch.arange(12)[None], causal_pass(0, 12, llm.device)
        with torch.no_grad():
            own = run_decoder(llm.decoder, *args)
        states = run_decoder(view, *args)
        if not torch.allclose(states, own, atol=1e-4):
            return "a new adapter changes the states"
        llm.logits(states[0]).square().sum().backward()
        gradients = [p.grad for name, p in adapter.named_parameters() if "lora_B" in name]
        if not gradients or not any(g is not None and bool(g.any()) for g in gradients):
            return "no gradient arrives at the adapter"
    except Exception as e:
        return f"{type(e).__name__}: {e}".split("\n")[0]
    return None


if __name__ == "__main__":
    typer.run(main)
