"""Annotate shards in this process, or in several processes with one LLM each."""

import multiprocessing
import os
import signal
import threading
import traceback
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from typing import Any, Callable, Dict, Generator, Iterable, Iterator, List, Optional

from ..errors import Errors, LLMNERError
from .shards import Shard, ShardAnnotator, ShardResult

# How often a shard is given to a new process after one has died.
RETRIES = 1
# How long to wait for the exit code of a process that has closed its connection.
EXIT_SECONDS = 10.0
# What a worker sends before its first shard.
READY = "ready"


def annotate_here(
    annotate: ShardAnnotator, shards: Iterable[Shard]
) -> Generator[ShardResult, None, None]:
    """Annotate shards in this process.

    annotate (ShardAnnotator): Annotates a shard.
    shards (Iterable[Shard]): The shards.
    YIELDS (ShardResult): The annotated shards, in order.
    """
    yield from map(annotate, shards)


def annotate_in_processes(
    annotate: ShardAnnotator, shards: Iterable[Shard], places: List[Dict[str, str]], threads: int
) -> Generator[ShardResult, None, None]:
    """Annotate shards in several processes. The next shard is read, and finished ones are written, while
    the processes work.

    annotate (ShardAnnotator): Annotates a shard. It is sent to each process.
    shards (Iterable[Shard]): The shards.
    places (List[Dict[str, str]]): The additional environment variables of each process.
    threads (int): The number of CPU threads of each process.
    YIELDS (ShardResult): The annotated shards, as they are finished.
    RAISES (LLMNERError): If a process can't work, or if two processes died with the same shard.
    """
    stream = iter(shards)
    upcoming = next(stream, None)
    workers: List[_Worker] = []
    try:
        for place in places if upcoming is not None else []:
            workers.append(_Worker(annotate, place, threads))
        while True:
            for worker in workers:
                if upcoming is not None and worker.is_ready and worker.shard is None:
                    worker.send(upcoming)
                    upcoming = next(stream, None)
            if upcoming is None and all(worker.shard is None for worker in workers):
                return
            for connection in wait([worker.connection for worker in workers]):
                (i,) = [i for i, w in enumerate(workers) if w.connection is connection]
                try:
                    result = workers[i].receive()
                except (EOFError, OSError):
                    workers[i] = workers[i].replaced()
                    continue
                if result is not None:
                    if upcoming is not None:  # don't let it wait until its result is written
                        workers[i].send(upcoming)
                        upcoming = None
                    yield result
                    if upcoming is None:
                        upcoming = next(stream, None)
    finally:
        for worker in workers:
            worker.stop()


class _Worker:
    """A process that annotates shards. If it dies, `replaced` starts another.

    annotate (ShardAnnotator): Annotates a shard.
    place (Dict[str, str]): Additional environment variables.
    threads (int): The number of CPU threads.
    """

    def __init__(self, annotate: ShardAnnotator, place: Dict[str, str], threads: int) -> None:
        self._settings = (annotate, place, threads)
        self.shard: Optional[Shard] = None
        self.is_ready = False
        self._deaths = 0
        # A forked process could use neither a GPU nor torch's threads.
        context = multiprocessing.get_context("spawn")
        self.connection, other = context.Pipe()
        self.process = context.Process(target=_work, args=(other, annotate, threads), daemon=True)
        with _environment({"OMP_NUM_THREADS": str(threads), **place}):
            self.process.start()
        # If only the process has this end, it is closed when the process dies.
        other.close()

    def send(self, shard: Shard) -> None:
        """Give it a shard, if it has none."""
        self.shard = shard
        with suppress(OSError):  # if it has just died, `receive` finds out
            self.connection.send(shard)

    def receive(self) -> Optional[ShardResult]:
        """RETURNS (Optional[ShardResult]): The annotated shard. None if the process has only started.
        RAISES (EOFError, OSError): If the process has died.
        RAISES (LLMNERError): If it can't work."""
        answer = self.connection.recv()
        if answer == READY:
            self.is_ready = True
            return None
        if isinstance(answer, LLMNERError):
            raise answer
        self.shard, self._deaths = None, 0
        return answer

    def replaced(self) -> "_Worker":
        """RETURNS (_Worker): A new process that has the shard of this one, which has died.
        RAISES (LLMNERError): If this was the last attempt."""
        self.process.join(EXIT_SECONDS)  # it has closed the connection, so it is ending
        self.stop()
        if self._deaths >= RETRIES or self.shard is None:
            where = self.shard or "(none: it was starting)"
            raise LLMNERError(Errors.E175.format(code=self.process.exitcode, where=where))
        new = _Worker(*self._settings)
        new._deaths = self._deaths + 1
        new.send(self.shard)
        return new

    def stop(self) -> None:
        """End the process at once."""
        self.connection.close()
        self.process.kill()
        self.process.join()


def _work(connection: Connection, annotate: ShardAnnotator, threads: int) -> None:
    """Annotate shards until the connection is closed. This is the main function of a process."""
    # The main process gets the same signal from the terminal, and ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    import torch

    torch.set_num_threads(threads)
    connection.send(READY)
    while True:
        try:
            shard = connection.recv()
        except EOFError:
            return
        connection.send(answer_to(annotate, shard))


def answer_to(annotate: Callable[[Shard], ShardResult], shard: Shard) -> Any:
    """RETURNS (Any): The ShardResult, or an LLMNERError that can be sent to the main process."""
    try:
        return annotate(shard)
    except LLMNERError as e:
        return LLMNERError(str(e))  # subclasses and what caused them may not be picklable
    except Exception:
        return LLMNERError(Errors.E182.format(where=shard, trace=traceback.format_exc()))


def _die_with_parent() -> None:
    """Nobody would end this process if the main one was killed, and it would keep its memory."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@contextmanager
def _environment(values: Dict[str, str]) -> Iterator[None]:
    """Set environment variables, which new processes inherit."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
