"""What `spacy llmner index` takes in memory for 100,000 texts, and whether it shows how far it is.

    python benchmarks/retrieval_memory.py DATA

The texts of all public sets are written to a file that is deleted afterwards. The command runs in a process
of its own and believes to be at a terminal: how far it is, is read off its progress bar.
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
from common import save
from retrieval_quality import read_sets

from spacy_llmner.retrieval.index import EXAMPLES, VECTORS

MB = 2**20
BAR = re.compile(rb"(\d+)/(\d+) \[")
# Seconds between two looks at the memory.
EVERY = 0.2


def main(data: Path, texts: int = 100_000) -> None:
    with TemporaryDirectory() as folder:
        corpus, out = Path(folder) / "texts.jsonl", Path(folder) / "index"
        srsly.write_jsonl(corpus, islice(entries(data), texts))
        started = time.perf_counter()
        seen, shown = watched([sys.executable, "-m", "spacy", "llmner", "index", corpus, out])
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
        "bar_updates": shown,
        "peak_mb": max(mb for _, mb in seen),
        "peak_mb_by_texts_read": {
            str(mark): max([mb for read, mb in seen if read <= mark], default=0.0) for mark in marks
        },
    }
    save("retrieval_memory", result)
    print(result)


def entries(data: Path) -> Iterator[Dict[str, Any]]:
    """YIELDS (Dict[str, Any]): The texts of all sets, as lines of the file."""
    for _, examples, asked in read_sets(data):
        for text in (*examples, *asked):
            spans = [dict(zip(("start", "end", "label"), entity)) for entity in text.entities]
            yield {"text": text.text, "spans": spans}


def watched(command: List[Any]) -> Any:
    """Run a command at a terminal.

    RETURNS (Tuple[List[Tuple[int, float]], int]): Again and again how many texts were read, and how much
        memory was taken, in MB; and how often the bar moved.
    """
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    process = Popen([str(word) for word in command], stdout=slave, stderr=slave)
    os.close(slave)
    read = []

    def follow() -> None:
        # An OSError is the terminal's end.
        while True:
            try:
                said = os.read(master, 65536)
            except OSError:
                return
            read.extend(int(match[1]) for match in BAR.finditer(said))

    Thread(target=follow, daemon=True).start()
    seen = []
    watched = psutil.Process(process.pid)
    while process.poll() is None:
        try:
            seen.append((read[-1] if read else 0, watched.memory_info().rss / MB))
        except psutil.NoSuchProcess:
            break
        time.sleep(EVERY)
    if process.wait():
        raise SystemExit(f"{command} ended with {process.returncode}")
    return seen, len(set(read))


if __name__ == "__main__":
    typer.run(main)
