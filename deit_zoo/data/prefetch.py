"""Threads read while a model works: results in their order, and only so many ahead of it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future
from contextlib import closing, contextmanager
from itertools import islice
from queue import SimpleQueue
from threading import Thread
from typing import TypeVar

from deit_zoo.machine import usable_cores

Item = TypeVar("Item")
Result = TypeVar("Result")

MOST_THREADS = 16
BATCHES_AHEAD = 2
# Seconds that a thread gets to finish its image at the end; one that a disk holds is left behind.
GRACE = 1.0


@contextmanager
def prefetch(
    items: Iterable[Item],
    read: Callable[[Item], Result],
    *,
    batch_size: int,
    threads: int | None = None,
) -> Iterator[Iterator[list[Result]]]:
    """Within it, `read(item)` of every item, in batches; None chooses the threads.

    Items are taken in the caller's thread, at most `BATCHES_AHEAD` batches before their results.
    """
    most = default_threads() if threads is None else threads
    results = ordered_map(items, read, threads=most, ahead=BATCHES_AHEAD * batch_size)
    with closing(results):
        yield iter(lambda: list(islice(results, batch_size)), [])


def default_threads() -> int:
    """One for each core that this process may use, at most 16."""
    return min(MOST_THREADS, usable_cores())


def ordered_map(
    items: Iterable[Item],
    read: Callable[[Item], Result],
    *,
    threads: int,
    ahead: int,
    ending: Callable[[], None] = lambda: None,
) -> Generator[Result, None, None]:
    """`read(item)` of every item, by threads that are at most `ahead` items before the last result.

    An error of `read` is raised in the place of its result. `ending` is called once no result is
    waited for any more, before the threads are.
    """
    tasks: SimpleQueue[tuple[Future[Result], Item] | None] = SimpleQueue()
    pending: deque[Future[Result]] = deque()
    # Not a ThreadPoolExecutor: at its end the process would wait for a thread that a disk holds.
    started: list[Thread] = []
    source = iter(items)
    try:
        while True:
            for item in islice(source, ahead - len(pending)):
                if len(started) < threads:
                    thread = Thread(target=_serve, args=(tasks, read), daemon=True)
                    thread.start()  # Ctrl-C may come here: only what has begun is waited for
                    started.append(thread)
                pending.append(Future())
                tasks.put((pending[-1], item))
            if not pending:
                return
            yield pending.popleft().result()
    finally:
        ending()
        for future in pending:
            future.cancel()
        for _ in started:
            tasks.put(None)
        until = time.monotonic() + GRACE
        for thread in started:
            thread.join(max(0.0, until - time.monotonic()))


def _serve(
    tasks: SimpleQueue[tuple[Future[Result], Item] | None], read: Callable[[Item], Result]
) -> None:
    while (task := tasks.get()) is not None:
        future, item = task
        if not future.set_running_or_notify_cancel():
            continue
        try:
            future.set_result(read(item))
        except BaseException as error:  # raised again where the result is waited for
            future.set_exception(error)
