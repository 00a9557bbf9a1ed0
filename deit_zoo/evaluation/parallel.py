"""An evaluation shared by processes of this machine, or by those that torchrun started.

Here the processes are begun afresh, and read the model and the images' names from stdin: a script
needs no `__main__` guard, and all of them see one listing. They end when stdin does, so none
outlives the process that began them.
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
from pathlib import Path
from queue import Queue
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from deit_zoo.errors import ZooError
from deit_zoo.evaluation.accuracy import EvalDataset, accumulate, evaluation_of
from deit_zoo.models.layers import ZooModel
from deit_zoo.results import Evaluation

if TYPE_CHECKING:
    from deit_zoo.distributed import DistributedContext

    Process = subprocess.Popen[bytes]

START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from deit_zoo.evaluation.parallel import main; main()"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalJob:
    """What every process does: this model, on its share of these images."""

    model: ZooModel
    images: EvalDataset
    batch_size: int
    workers: int

    @property
    def batches(self) -> int:
        """How many there are to share."""
        return -(-len(self.images) // self.batch_size)

    def share(
        self, rank: int, size: int, progress: Callable[[int, int], None] | None
    ) -> list[float]:
        """What one of `size` processes counts."""
        return accumulate(
            self.model,
            self.images,
            batch_size=self.batch_size,
            workers=self.workers,
            progress=progress,
            shard=(rank, size),
        )


def devices_for(
    device: str | torch.device | None, gpus: int | None, processes: int | None
) -> list[str | torch.device | None]:
    """The device of each process. Raises ZooError where they cannot be had."""
    if gpus is not None and device is not None:
        raise ZooError(f"device is {str(device)!r} and gpus is {gpus}; give one of them")
    if gpus and processes is not None:
        raise ZooError(
            f"processes {processes} is for the CPU; with gpus {gpus} each GPU has one process"
        )
    if (gpus or 0) < 0 or (processes is not None and processes < 1):
        raise ZooError(
            f"gpus is {gpus} and processes is {processes}; give a number of GPUs, or 0 for the "
            "CPU, and 1 process or more"
        )
    if gpus:
        found = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if found < gpus:
            seen = f"{found} here; give gpus {found}" if found else "none here; give gpus 0"
            raise ZooError(f"gpus is {gpus}, but torch sees {seen}")
        return [f"cuda:{number}" for number in range(gpus)]
    if processes is None:
        return [device if gpus is None else "cpu"]
    if device is not None and torch.device(device).type != "cpu":
        raise ZooError(f"processes {processes} is for the CPU, not for device {str(device)!r}")
    return ["cpu"] * processes


def evaluate_in_group(
    work: EvalJob, group: DistributedContext, progress: Callable[[int, int], None] | None = None
) -> Evaluation:
    """The figures, in every process of a group. What one of them raises, all of them raise."""
    mine: list[float] | ZooError
    try:
        mine = work.share(group.rank, group.size, progress)
    except ZooError as error:
        mine = error
    told: list[Any] = [mine] * group.size
    if group.size > 1:
        dist.all_gather_object(told, mine)
    return _together(work, told)


def evaluate_in_processes(
    work: EvalJob,
    devices: Sequence[str | torch.device | None],
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """The figures, by one new process for each device.

    Raises what one of them raises, and ZooError where one dies.
    """
    size = min(len(devices), work.batches)
    # The threads of one process, shared out: more of them than cores only wait for each other.
    threads = max(1, torch.get_num_threads() // size)
    payload = pickle.dumps((replace(work, model=_on_cpu(work.model)), size, threads))
    told: Queue[tuple[int, Any]] = Queue()
    done = [0] * size
    sums: list[Any] = [None] * size
    with _started(size) as processes:
        for rank, process in enumerate(processes):
            first = pickle.dumps((rank, devices[rank]))
            listener = (rank, process, first + payload, told)
            threading.Thread(target=_listen, args=listener, daemon=True).start()
        while None in sums:
            rank, message = told.get()
            if isinstance(message, int):
                done[rank] = message
                if progress:
                    progress(sum(done), len(work.images))
            else:
                _check(message, rank, processes[rank])
                sums[rank] = message
    return _together(work, sums)


def main() -> None:
    """One of the new processes: do what stdin says, and tell it to stdout, pickled."""
    source, replies = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what anything else prints is talk
    rank, device = pickle.load(source)
    work, size, threads = pickle.load(source)
    threading.Thread(target=_end_with, args=(source.fileno(),), daemon=True).start()
    torch.set_num_threads(threads)

    def tell(message: Any) -> None:
        pickle.dump(message, replies)
        replies.flush()

    try:
        work.model.to(device)
        tell(work.share(rank, size, lambda done, _: tell(done)))
    except ZooError as error:
        tell(error)


def _together(work: EvalJob, told: Sequence[list[float] | ZooError]) -> Evaluation:
    """The sum of all counts, in the order of the ranks, or the first error."""
    counts: list[list[float]] = []
    for message in told:
        if isinstance(message, ZooError):
            raise message
        counts.append(message)
    return evaluation_of([sum(column) for column in zip(*counts, strict=True)], work.images)


@contextmanager
def _started(size: int) -> Iterator[list[Process]]:
    """New processes, out of reach of the terminal's Ctrl-C; afterwards all of them are gone."""
    # What is imported here is imported there, wherever it lies.
    paths = [*sys.path, str(Path(__file__).resolve().parent.parent)]
    command = [sys.executable, "-c", START, json.dumps(paths, default=str)]
    processes: list[Process] = []
    try:
        for _ in range(size):
            processes.append(
                subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    start_new_session=True,
                )
            )
        yield processes
    finally:
        for process in processes:
            _end(process)


def _end(process: Process) -> None:
    if process.poll() is None:
        if hasattr(os, "killpg"):  # with the processes that read its images
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with suppress(OSError):
                stream.close()


def _listen(rank: int, process: Process, payload: bytes, told: Queue[tuple[int, Any]]) -> None:
    """Hand a process its work, and pass on what it tells; None where it ends before its last."""
    assert process.stdin is not None, "the process was started without a pipe"
    assert process.stdout is not None, "the process was started without a pipe"
    message: Any = None
    try:
        process.stdin.write(payload)
        process.stdin.flush()
        while isinstance(message := pickle.load(process.stdout), int):
            told.put((rank, message))
    except (OSError, EOFError, ValueError, pickle.UnpicklingError):  # it died, or was ended
        message = None
    told.put((rank, message))


def _check(message: Any, rank: int, process: Process) -> None:
    """Raises the error that a process told, or ZooError where it ended without a word."""
    if isinstance(message, ZooError):
        raise message
    if message is None:
        code = process.wait()
        how = f"of {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        raise ZooError(
            f"process {rank + 1} died {how} before its images were done; what it printed is "
            "above, and fewer processes or a smaller batch size need less memory"
        )


def _end_with(source: int) -> None:
    """End this process when the one that began it is gone, and with it the other end of a pipe."""
    while os.read(source, 1):
        pass
    os._exit(1)


def _on_cpu(model: ZooModel) -> ZooModel:
    if next(model.parameters()).device.type == "cpu":
        return model
    return deepcopy(model).cpu()
