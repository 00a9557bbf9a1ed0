"""Work shared by new processes of this machine; an evaluation also by those of torchrun.

New processes read the model and the images' names from stdin: a script needs no `__main__` guard,
and all of them see one listing. They end when stdin does, so none outlives the process that
started them. (torch's launcher, which training uses, would set the caller's signal handlers and
log levels, and tell nothing on the way.)
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import reduce
from math import ceil
from operator import add
from pathlib import Path
from queue import Queue
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist

from deit_zoo.distributed import DistributedContext, how_it_ended
from deit_zoo.errors import ZooError
from deit_zoo.evaluation.accuracy import (
    EvalDataset,
    Keep,
    Sums,
    TooLargeError,
    accumulate,
    check_finite,
)
from deit_zoo.machine import check_gpus, check_processes, usable_device
from deit_zoo.models.model import ZooModel

Process = subprocess.Popen[bytes]
Device = str | torch.device | None
Progress = Callable[[int, int], None]
START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from deit_zoo.evaluation.parallel import main; main()"
)


class Shared(Protocol):
    """Work that new processes share."""

    def on_cpu(self) -> Shared:
        """The work as it is handed to another process."""

    def run_shard(self, device: Device, rank: int, size: int, progress: Progress) -> Any:
        """What one of `size` processes does on its device, and what it counts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalJob:
    """What every process does: this model, on its shard of these images."""

    model: ZooModel
    images: EvalDataset
    batch_size: int
    workers: int
    keep: Keep | None = None

    def on_cpu(self) -> EvalJob:
        """The same, of a model that another process can be handed."""
        is_there = next(self.model.parameters()).device.type == "cpu"
        return self if is_there else replace(self, model=deepcopy(self.model).cpu())

    def run_shard(self, device: Device, rank: int, size: int, progress: Progress | None) -> Sums:
        """What one of `size` processes counts; None is the device that the model is on."""
        model = self.model if device is None else self.model.to(device)
        sums = accumulate(
            model,
            self.images,
            batch_size=self.batch_size,
            workers=self.workers,
            progress=progress,
            keep=self.keep,
            shard=(rank, size),
        )
        check_finite(model, sums)
        return sums


def devices_for(device: Device, gpus: int | None, processes: int | None) -> list[Device]:
    """The device of each process; None is left to the model. Raises ZooError where they cannot be
    had."""
    if device == "auto":
        device = None if gpus is not None or processes is not None else usable_device(device)
    if gpus is not None and device is not None:
        raise ZooError(f"device is {str(device)!r} and gpus is {gpus}; give one of them")
    check_processes(gpus, processes)
    if gpus:
        check_gpus(gpus)
        return [f"cuda:{number}" for number in range(gpus)]
    if processes is None:
        return [device if gpus is None else "cpu"]
    if device is not None and str(device).partition(":")[0] != "cpu":
        raise ZooError(f"processes {processes} is for the CPU, not for device {str(device)!r}")
    return ["cpu"] * processes


def evaluate_in_group(
    job: EvalJob, group: DistributedContext, progress: Progress | None = None
) -> Sums:
    """What all count, in every process of a group. What one of them raises, all of them raise."""
    sums: Sums | ZooError
    try:
        sums = job.run_shard(None, group.rank, group.size, progress)
    except ZooError as error:
        sums = error
    shards: list[Any] = [sums] * group.size
    if group.size > 1:
        dist.all_gather_object(shards, sums)
    return merge(shards)


def in_fitting_batches(
    count: Callable[[int], Sums], group: DistributedContext, batch_size: int = 256
) -> Sums:
    """What `count` gets with this size of batch or, where some process's GPU has no room for it,
    with half of it, and so on: the same in every process of a group."""
    while True:
        try:
            sums, error = count(batch_size), None
        except TooLargeError as too_large:
            sums, error = np.zeros(0), too_large
        if not group.add_up(np.array([float(error is not None)]))[0]:
            return sums
        if batch_size == 1:
            raise error or ZooError("an image does not fit into the memory of another process")
        batch_size //= 2


def evaluate_in_processes(
    job: EvalJob, devices: Sequence[Device], progress: Progress | None = None
) -> Sums:
    """What all count, by one new process for each device. Raises as `run_in_processes`."""
    devices = devices[: ceil(len(job.images) / job.batch_size)]
    return merge(run_in_processes(job, devices, len(job.images), progress))


def run_in_processes(
    job: Shared, devices: Sequence[Device], total: int, progress: Progress | None = None
) -> list[Any]:
    """What each new process counts, one for each device; together they report `total` parts.

    Raises what one of them raises, and ZooError where one dies.
    """
    size = len(devices)
    # The threads of one process, shared out: more of them than cores only wait for each other.
    threads = max(1, torch.get_num_threads() // size)
    payload = pickle.dumps((job.on_cpu(), size, threads))
    messages: Queue[tuple[int, Any]] = Queue()
    done = [0] * size
    shards: list[Any] = [None] * size
    with start_processes(size) as processes:
        for rank, process in enumerate(processes):
            first = pickle.dumps((rank, devices[rank]))
            arguments = (rank, process, first + payload, messages)
            threading.Thread(target=_exchange, args=arguments, daemon=True).start()
        while any(shard is None for shard in shards):
            rank, message = messages.get()
            if isinstance(message, int):
                done[rank] = message
                if progress:
                    progress(sum(done), total)
            elif isinstance(message, ZooError):
                raise message
            elif message is None:
                raise ZooError(
                    f"process {rank + 1} {how_it_ended(processes[rank].wait())} before its images "
                    "were done; what it printed is above, and fewer processes or a smaller batch "
                    "size need less memory"
                )
            else:
                shards[rank] = message
    return shards


def merge(shards: Sequence[Sums | ZooError]) -> Sums:
    """The sum of all counts, in the order of the ranks, or the first error."""
    counts: list[Sums] = []
    for shard in shards:
        if isinstance(shard, ZooError):
            raise shard
        counts.append(shard)
    return reduce(add, counts)


def main() -> None:
    """One of the new processes: do what stdin says, and report to stdout, pickled."""
    source, replies = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what anything else prints is talk
    rank, device = pickle.load(source)
    job, size, threads = pickle.load(source)
    threading.Thread(target=_end_with, args=(source.fileno(),), daemon=True).start()
    torch.set_num_threads(threads)

    def reply(message: Any) -> None:
        pickle.dump(message, replies)
        replies.flush()

    try:
        reply(job.run_shard(device, rank, size, lambda done, _: reply(done)))
    except ZooError as error:
        reply(error)


@contextmanager
def start_processes(size: int) -> Iterator[list[Process]]:
    """New processes, out of reach of the terminal's Ctrl-C; afterwards all of them are gone."""
    # What is imported here is imported there, wherever it lies.
    paths = [*sys.path, str(Path(__file__).resolve().parents[2])]
    command = [sys.executable, "-c", START, json.dumps(paths, default=str)]
    pipe = subprocess.PIPE
    processes: list[Process] = []
    try:
        for _ in range(size):
            processes.append(
                subprocess.Popen(command, stdin=pipe, stdout=pipe, start_new_session=True)
            )
        yield processes
    finally:
        for process in processes:
            if process.poll() is None:
                if hasattr(os, "killpg"):  # with the processes that read its images
                    os.killpg(process.pid, signal.SIGKILL)
                process.kill()
            with suppress(OSError), process:  # waits for it, and closes its pipes
                pass


def _exchange(
    rank: int, process: Process, payload: bytes, messages: Queue[tuple[int, Any]]
) -> None:
    """Hand a process its job, and pass on what it replies; None where it ends before its last."""
    assert process.stdin is not None, "the process was started without a pipe"
    assert process.stdout is not None, "the process was started without a pipe"
    message: Any = None
    try:
        process.stdin.write(payload)
        process.stdin.flush()
        while isinstance(message := pickle.load(process.stdout), int):
            messages.put((rank, message))
    except Exception:  # it died, was ended, or replied what nobody can read
        message = None
    messages.put((rank, message))


def _end_with(source: int) -> None:
    """End this process when the one that started it is gone, and the pipe with it."""
    while os.read(source, 1):
        pass
    os._exit(1)
