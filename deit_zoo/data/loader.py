"""Batches from worker processes, which hear no request to stop and whose errors are their own."""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from multiprocessing import Process, active_children, get_start_method
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from threading import current_thread, main_thread
from typing import Any

from torch.utils.data import DataLoader, Dataset

from deit_zoo.distributed import how_it_ended
from deit_zoo.errors import ZooError
from deit_zoo.terminal import Terminal

DYING_SECONDS = 5  # on a busy machine
LOOK_SECONDS = 10.0  # between two looks at whether a worker is stopped
_NO_MEMORY = "memory is mostly what they lack: give fewer --workers"
_NO_ROOM = (
    "/dev/shm, through which they hand over images, has no room: give it more (docker run "
    "--shm-size=8g), or type --workers 0"
)
_UNGUARDED = (
    "a loader worker imports the script that starts it, and ended at that; put what the script "
    'does below `if __name__ == "__main__":`, or give 0 workers'
)
_BUS_ERROR = -getattr(signal, "SIGBUS", 0)
_END = object()


class WorkersDiedError(ZooError):
    """Processes that read for a loader ended before their work: how each, and what would help.

    Pickle makes it anew from its sentence alone.
    """

    def __init__(self, ends: str, advice: str = "") -> None:
        super().__init__(f"{ends}; {advice}" if advice else ends)
        self.ends, self.advice = ends, advice


class Loader:
    """Batches of keys, or keys one by one, read by workers that live as long as it does."""

    def __init__(
        self, dataset: Dataset[Any], keys: Iterable[Any], workers: int, *, batched: bool = True
    ) -> None:
        self.workers: list[BaseProcess] = []
        self._closed = threading.Event()
        self._loader: DataLoader[Any] = DataLoader(
            dataset,
            **({"batch_sampler": keys} if batched else {"sampler": keys, "batch_size": None}),
            num_workers=workers,
            persistent_workers=workers > 0,
            worker_init_fn=_begin_worker,
        )

    def read(self) -> Iterator[Any]:
        """One pass, by workers that start now, or go on. Raises WorkersDiedError."""
        if self._loader.num_workers:
            _check_guard()
        others = active_children()
        with _block_signals(), _deaths_wait_for_the_next_batch(), self._own_errors():
            batches = iter(self._loader)
        if not self.workers:
            self.workers = [one for one in active_children() if one not in others]
            if self.workers:
                threading.Thread(target=self._watch, daemon=True, name="loader watch").start()
        return self._read(batches)

    def close(self) -> None:
        """End the workers."""
        self._closed.set()
        for worker in self.workers:
            worker.kill()
            worker.join()
        self.workers = []

    def _read(self, batches: Iterator[Any]) -> Iterator[Any]:
        while True:
            with self._own_errors():
                batch = next(batches, _END)
            if batch is _END:
                return
            yield batch

    def _watch(self) -> None:
        """Report a stopped worker; with a time-out torch could not name a worker that died."""
        reported: set[int | None] = set()
        while not self._closed.wait(LOOK_SECONDS):
            stopped = {worker.pid for worker in self.workers if _is_stopped(worker.pid)}
            for pid in stopped - reported:
                sentence = "is stopped, and what it reads is waited for; type: kill -CONT"
                Terminal(stderr=True).print(f"loader worker {pid} {sentence} {pid}")
            reported = stopped

    @contextmanager
    def _own_errors(self) -> Iterator[None]:
        """Within it, what a worker raised or died of is one sentence."""
        try:
            yield
        except ZooError as error:  # without the traceback that a worker put into its text
            kind = type(error)
            _, name, sentence = str(error).rpartition(f"\n{kind.__module__}.{kind.__qualname__}: ")
            raise (kind(sentence.strip()) if name else error) from None
        except (RuntimeError, OSError, EOFError) as error:
            if _is_about_shared_memory(error):
                raise WorkersDiedError("loader workers cannot go on", _NO_ROOM) from error
            # Between what a dying worker breaks off and its end.
            wait([worker.sentinel for worker in self.workers], timeout=DYING_SECONDS)
            codes = [worker.exitcode for worker in self.workers if worker.exitcode is not None]
            if not codes:
                raise
            ends = ", ".join(f"a loader worker {how_it_ended(code)}" for code in codes)
            raise WorkersDiedError(ends, _NO_ROOM if _BUS_ERROR in codes else _NO_MEMORY) from error


def _is_stopped(pid: int | None) -> bool:
    """Whether a process is stopped by a signal, as Linux says it; elsewhere nobody knows."""
    try:
        facts = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return False
    return facts.rpartition(b") ")[2].startswith(b"T")


@cache
def _check_guard() -> None:
    """Raises ZooError where a process that imports the program anew ends at that.

    By a process without work: while it hands over more than a pipe holds, Python waits for ever.
    """
    if get_start_method() == "fork":
        return
    process = Process(target=os.getpid)
    try:
        process.start()
        process.join()
    except (ConnectionError, EOFError) as error:  # of a forkserver that ended
        raise ZooError(_UNGUARDED) from error
    if process.exitcode is not None and process.exitcode > 0:
        raise ZooError(_UNGUARDED)


def _is_about_shared_memory(error: Exception) -> bool:
    """Whether torch or multiprocessing got none of it, as its words or its number say."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOSPC
    return "shared memory" in str(error) or "No space left on device" in str(error)


def _begin_worker(_worker: int) -> None:
    """In a worker: a request to stop is for the main process; SIGTERM ends a worker."""
    # The thread that hands tensors over would print a traceback when the main process leaves early.
    sys.excepthook = lambda *_error: None
    # At exit, multiprocessing ends workers by SIGTERM and waits: deaf ones would be waited for.
    for name, action in (
        ("SIGINT", signal.SIG_IGN),
        ("SIGUSR1", signal.SIG_IGN),
        ("SIGTERM", signal.SIG_DFL),
    ):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), action)


@contextmanager
def _block_signals() -> Iterator[None]:
    """While workers are started, Ctrl-C and SIGUSR1 wait; the workers hear neither, ever."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, signal.SIGUSR1])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _deaths_wait_for_the_next_batch() -> Iterator[None]:
    """Take torch's SIGCHLD handler away again: it raises wherever the program is, as in a step."""
    if not hasattr(signal, "SIGCHLD") or current_thread() is not main_thread():
        yield
        return
    previous = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        of_torch = str(getattr(previous, "__module__", "")).startswith("torch.")
        keep = signal.SIG_DFL if of_torch or previous is None else previous
        signal.signal(signal.SIGCHLD, keep)
