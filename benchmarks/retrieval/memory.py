"""Memory and progress bar of `spacy llmner index` with 100,000 texts.

    python -m benchmarks.retrieval.memory DATA

The texts of all public data sets are written to a temporary file. The command runs in a separate process
with a pseudo-terminal, so that its progress can be read from the progress bar.
"""

import fcntl
import os
import pty
import re
import struct
import sys
import termios
import time
from itertools import islice
from pathlib import Path
from subprocess import Popen
from tempfile import TemporaryDirectory
from threading import Thread
from typing import Any, Dict, Iterator, List

import psutil
import srsly
import typer

from benchmarks.lib.common import save
from benchmarks.retrieval.data_sets import read_sets
from spacy_llmner.retrieval.index import EXAMPLES, VECTORS

MB = 2**20
BAR = re.compile(rb"(\d+)/(\d+) \[")
# Seconds between two measurements of the memory.
INTERVAL = 0.2


def main(data: Path, texts: int = 100_000) -> None:
    with TemporaryDirectory() as folder:
        corpus, out = Path(folder) / "texts.jsonl", Path(folder) / "index"
        srsly.write_jsonl(corpus, islice(entries(data), texts))
        started = time.perf_counter()
        measured, updates = run_in_terminal(
            [sys.executable, "-m", "spacy", "llmner", "index", corpus, out]
        )
        seconds = time.perf_counter() - started
        n = len((out / EXAMPLES).read_text().splitlines())
        size_mb = (out / VECTORS).stat().st_size / MB
        characters = sum(len(entry["text"]) for entry in srsly.read_jsonl(corpus))
    marks = [texts * k // 10 for k in range(1, 11)]
    result: Dict[str, Any] = {
        "texts": texts,
        "characters": characters,
        "examples": n,
        "vectors_mb": size_mb,
        "seconds": seconds,
        "bar_updates": updates,
        "peak_mb": max(mb for _, mb in measured),
        "peak_mb_by_texts_read": {
            str(mark): max([mb for read, mb in measured if read <= mark], default=0.0)
            for mark in marks
        },
    }
    save("retrieval_memory", result)
    print(result)


def entries(data: Path) -> Iterator[Dict[str, Any]]:
    """YIELDS (Dict[str, Any]): The texts of all data sets, as lines of the file."""
    for _, examples, queries in read_sets(data):
        for text in (*examples, *queries):
            spans = [dict(zip(("start", "end", "label"), entity)) for entity in text.entities]
            yield {"text": text.text, "spans": spans}


def run_in_terminal(command: List[Any]) -> Any:
    """Run a command in a pseudo-terminal.

    RETURNS (Tuple[List[Tuple[int, float]], int]): The number of texts read and the memory in MB, once per
        interval; and the number of updates of the progress bar.
    """
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    process = Popen([str(word) for word in command], stdout=slave, stderr=slave)
    os.close(slave)
    read: List[int] = []

    def follow() -> None:
        # OSError: the terminal is closed.
        while True:
            try:
                output = os.read(master, 65536)
            except OSError:
                return
            read.extend(int(match[1]) for match in BAR.finditer(output))

    Thread(target=follow, daemon=True).start()
    measured = []
    watched = psutil.Process(process.pid)
    while process.poll() is None:
        try:
            measured.append((read[-1] if read else 0, watched.memory_info().rss / MB))
        except psutil.NoSuchProcess:
            break
        time.sleep(INTERVAL)
    if process.wait():
        raise SystemExit(f"{command} ended with {process.returncode}")
    return measured, len(set(read))


if __name__ == "__main__":
    typer.run(main)
