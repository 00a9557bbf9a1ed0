"""The processes of a run: who this one is, and how all of them come to one mind."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from deit_zoo.errors import ZooError
from deit_zoo.machine import world_size

T = TypeVar("T")
TIMEOUT = timedelta(minutes=30)  # the first rank may be writing, or evaluating, meanwhile


@dataclass(frozen=True, kw_only=True, slots=True)
class DistributedContext:
    """`size` processes, of which this is number `rank`; alone, everything here costs nothing."""

    device: torch.device
    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process speaks, writes and decides."""
        return self.rank == 0

    def all_reduce(self, values: Tensor) -> Tensor:
        """The sum over all processes, in place; every process has it afterwards."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def add_up(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """The sums over all processes of numbers of the CPU's, in float64."""
        if self.size == 1:
            return values
        return self.all_reduce(torch.from_numpy(values.copy())).numpy()

    @property
    def sum_dtype(self) -> torch.dtype:
        """In what sums are kept on the device: float64, which Apple's GPUs do not have."""
        return torch.float32 if self.device.type == "mps" else torch.float64

    def neighbours(self, count: int) -> dist.ProcessGroup | None:
        """The processes among which this one is, if `count` after another belong together.

        None means all. Every process must ask, at the same time.
        """
        if count in (1, self.size):
            return None
        group, _ = dist.new_subgroups(group_size=count)
        return group

    def exchange(
        self,
        values: Tensor,
        sends: list[int],
        receives: list[int],
        among: dist.ProcessGroup | None = None,
    ) -> Tensor:
        """Rows for others, the first `sends[0]` for the first of them, against rows from them."""
        received = values.new_empty(sum(receives), *values.shape[1:])
        dist.all_to_all_single(received, values.contiguous(), receives, sends, group=among)
        return received

    def run_on_main(self, act: Callable[[], T]) -> T:
        """What the first process got from `act`; its ZooError is raised in every process."""
        if self.size == 1:
            return act()
        outcome: list[Any] = [None, None]
        if self.is_main:
            try:
                outcome[0] = act()
            except ZooError as error:
                outcome[1] = error
        dist.broadcast_object_list(outcome, src=0, device=torch.device("cpu"))
        result, raised = outcome
        if raised is not None:
            raise raised
        return result


@contextmanager
def init_distributed(
    device: str, parent: int | None = None, number: int | None = None
) -> Iterator[DistributedContext]:
    """The group that torchrun's variables describe, or this process alone without them.

    Alone, it has the GPU of this number. Of many, each ends when `parent`, the process that started
    it, is gone.
    """
    size = world_size() or 1
    if size == 1:
        # Kernels run on the current GPU, which is the caller's again afterwards.
        with torch.cuda.device(number) if device == "cuda" else nullcontext():
            yield DistributedContext(device=torch.device(device))
        return
    own_device = torch.device(device)
    if device == "cuda":
        own_device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(own_device)
    die_with_parent(os.getppid() if parent is None else parent)
    backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
    try:
        dist.init_process_group(backend, timeout=TIMEOUT)
    except (RuntimeError, ValueError) as error:
        raise ZooError(
            f"the {size} processes do not meet ({str(error).splitlines()[0]}); set MASTER_ADDR of "
            "all of them to the first one's host, and MASTER_PORT to a port that is free there"
        ) from error
    try:
        yield DistributedContext(device=own_device, rank=dist.get_rank(), size=size)
    finally:
        dist.destroy_process_group()


def die_with_parent(parent: int) -> None:
    """End this process when the one that started it is gone: nobody writes into a later run."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.2)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="parent watch").start()


def is_peer_lost(error: RuntimeError) -> bool:
    """Whether gloo says that another process is gone; that one said why."""
    return "gloo/transport" in str(error)


def how_it_ended(exit_code: int) -> str:
    """How a process ended, in words."""
    if exit_code < 0:
        return f"was killed by {signal.Signals(-exit_code).name}"
    return f"ended with exit code {exit_code}"
