"""Memory of an LLM by dtype and quantization, and how far its hidden states are from float32.

    python -m benchmarks.llm.memory smollm2-135m-instruct
    python -m benchmarks.llm.memory smollm2-135m-instruct --device cuda --name llm_memory_gpu

Each setting is measured in a new process. This needs bitsandbytes.
"""

import gc
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any, Dict, List, Optional

import psutil
import torch
import typer

from benchmarks.lib.common import save
from spacy_llmner.cli.peak import peak_mb, reset_peak
from spacy_llmner.llm.hidden_states import FeatureSpec, read_texts
from spacy_llmner.llm.location import resolve_path
from spacy_llmner.llm.memory import needed_bytes
from spacy_llmner.llm.registry import make_llm

MB = 2**20
SETTINGS = [
    ("float32", None),
    ("bfloat16", None),
    ("float32", "bitsandbytes-8bit"),
    ("float32", "bitsandbytes-4bit"),
    ("bfloat16", "bitsandbytes-4bit"),
]
TEXTS = [
    "Amara Lindqvist left Trondheim for the Southern Star Company.",
    "The old bridge in Varnholm was closed on Monday, said Dr. Oskar Blum.",
    "Nobody came to the meeting of Hale & Sons in Port Ellam.",
    "In 1998 Mira Stone won the Grey Harbour Prize for her third novel.",
]


def main(llm: str, device: str = "cpu", name: str = "llm_memory") -> None:
    rows = []
    reference = None
    for dtype, quantization in SETTINGS:
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            row, states = pool.submit(measure, llm, dtype, quantization, device).result()
        reference = states if reference is None else reference
        row["cosine"] = cosine(states, reference)
        print(row)
        rows.append(row)
    save(name, {"llm": llm, "llm_device": device, "rows": rows})


def measure(name: str, dtype: str, quantization: Optional[str], device: str) -> Any:
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message=".*W023.*")
    if quantization:
        import bitsandbytes  # noqa: F401  its own memory isn't that of the LLM
    process = psutil.Process()
    gc.collect()
    before = process.memory_info().rss
    reset_peak()
    started = time.process_time()
    llm = make_llm(name, dtype=dtype, device=device, quantization=quantization).load()
    seconds, loading_peak = time.process_time() - started, peak_mb()
    gc.collect()
    loaded = process.memory_info().rss
    bos = llm.tokenizer.hf.bos_token_id
    texts = [[bos, *llm.tokenizer.hf(text)["input_ids"]] for text in TEXTS]
    spec = FeatureSpec((llm.n_layers // 2,))
    read_texts(llm, texts, spec)
    started = time.process_time()
    found = read_texts(llm, texts, spec)
    on_gpu = {"gpu_mb": torch.cuda.memory_allocated() / MB} if device != "cpu" else {}
    row: Dict[str, Any] = {
        **on_gpu,
        "dtype": dtype,
        "quantization": quantization,
        "estimated_mb": (needed_bytes(resolve_path(name), None, dtype, quantization) or 0) / MB,
        "rss_mb": (loaded - before) / MB,
        "loading_peak_mb": None if loading_peak is None else loading_peak - before / MB,
        "loading_seconds": seconds,
        "reading_seconds": time.process_time() - started,
    }
    # Position 0 has values a thousand times as large as all others.
    return row, [features.hidden[1:, 0].tolist() for features in found]


def cosine(found: List[Any], expected: List[Any]) -> float:
    """RETURNS (float): Median cosine of the hidden states with those in float32."""
    a, b = (torch.cat([torch.tensor(states) for states in x]) for x in (found, expected))
    return float(torch.nn.functional.cosine_similarity(a, b, dim=-1).median())


if __name__ == "__main__":
    typer.run(main)
