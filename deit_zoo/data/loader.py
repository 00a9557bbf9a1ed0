"""Batches from worker processes, which hear no request to stop and whose errors are their own."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch.utils.data import DataLoader, Dataset

from deit_zoo.errors import ZooError


def make_loader(
    dataset: Dataset[Any], keys: Iterable[Any], workers: int, *, batched: bool = True
) -> DataLoader[Any]:
    """A loader of batches of keys, or of keys, whose workers live as long as it does."""
    return DataLoader(
        dataset,
        **({"batch_sampler": keys} if batched else {"sampler": keys, "batch_size": None}),
        num_workers=workers,
        persistent_workers=workers > 0,
        worker_init_fn=_begin_worker,
    )


def read_batches(loader: DataLoader[Any]) -> Iterator[Any]:
    """One pass over a loader, whose workers start now, or go on."""
    with _block_signals():
        batches = iter(loader)
    return _with_own_errors(batches)


def _with_own_errors(batches: Iterator[Any]) -> Iterator[Any]:
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except ZooError as error:
            raise _as_raised(error) from None
        yield batch


def _as_raised(error: ZooError) -> ZooError:
    """An error without the traceback that a loader's worker put into its text."""
    kind = type(error)
    _, name, sentence = str(error).rpartition(f"\n{kind.__module__}.{kind.__qualname__}: ")
    return kind(sentence.strip()) if name else error


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
