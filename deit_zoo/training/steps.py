"""What is known of a step, and when: its sums over all processes, and what an epoch counted.

On a GPU a step is read while the next is computed, so that neither waits for the other.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from deit_zoo.distributed import DistributedContext
from deit_zoo.training.micro_batches import MicroBatches


class Requests(NamedTuple):
    """What a process asks all others to join in after a step: to save a state, to stop the run."""

    save: bool = False
    stop: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class StepResult:
    """A finished step: its rate, and over all processes its mean loss and the gradient's norm
    before clipping.

    Where one of the two is not finite, the step moved nothing. `bad` are this process's images that
    could not be read, those that were so earlier in the epoch left out; `bad_images` counts
    everybody's, and `replaced` how often another image stands in a place. `taught` is what a
    teacher said of this process's, on the device. Some process requested to `save` or to `stop`.
    """

    number: int
    lr: float
    loss: float
    grad_norm: float
    finite: bool = True
    bad: list[int] = field(default_factory=list)
    bad_images: int = 0
    replaced: int = 0
    taught: tuple[Tensor, ...] = ()
    save: bool = False
    stop: bool = False


@dataclass(kw_only=True, slots=True)
class EpochStats:
    """What an epoch has counted so far; `step` steps are done. A state on disk holds it."""

    step: int = 0
    losses: int = 0
    loss: float = 0.0
    skipped: int = 0
    in_a_row: int = 0
    bad_images: int = 0
    seconds: float = 0.0
    data_seconds: float = 0.0

    def leave_out(self, number: int) -> None:
        """Count a step that was not made."""
        self.step = number + 1
        self.skipped += 1

    def add(self, step: StepResult) -> None:
        """Count a step that is done."""
        self.step = step.number + 1
        self.bad_images += step.bad_images
        if step.finite:
            self.loss += step.loss
            self.losses += 1
            self.in_a_row = 0
        else:
            self.skipped += 1
            self.in_a_row += 1


class NotFinite(Exception):
    """So many steps in a row were not finite that the run must go back; `step` is the last."""

    def __init__(self, step: StepResult) -> None:
        super().__init__(
            f"loss {step.loss} and gradient norm {step.grad_norm} at step {step.number}"
        )
        self.step = step


class StepSums:
    """What all processes must know of a step, added up by one all-reduce.

    On a GPU the sums are copied while it computes on; `read` waits for them.
    """

    def __init__(self, group: DistributedContext, number: int, lr: float, unread: set[int]) -> None:
        self.group = group
        self.number = number
        self.lr = lr
        self.loss = torch.zeros((), dtype=group.sum_dtype, device=group.device)
        self.unread = unread  # of the steps before
        self.bad: list[int] = []
        self.replaced = 0
        self.taught: list[Tensor] = []
        self.sums: Tensor | None = None
        self.on_cpu: Tensor | None = None
        self.copied: torch.cuda.Event | None = None
        self.result: StepResult | None = None

    def add(self, loss: Tensor, bad: list[int], taught: Tensor | None = None) -> None:
        """One pass's share of the loss, the images it could not have, what was taught of them."""
        self.loss += loss.detach()
        self.replaced += len(bad)
        self.bad += [image for image in dict.fromkeys(bad) if image not in self.unread]
        self.unread.update(bad)
        if taught is not None:
            self.taught.append(taught)

    def all_reduce(self, grad_norm: Tensor, finite: Tensor, requests: Requests) -> None:
        """Add up over all processes, and begin to copy the sums to the CPU."""
        dtype = self.loss.dtype
        counts = torch.tensor([len(self.bad), self.replaced, *requests], dtype=dtype)
        measured = torch.stack((self.loss, grad_norm.to(dtype), (~finite).to(dtype)))
        self.sums = self.group.all_reduce(
            torch.cat((measured, counts.to(self.loss.device, non_blocking=self.loss.is_cuda)))
        )
        self.on_cpu = self.sums
        if self.group.device.type == "cuda":
            pinned = torch.empty(self.sums.shape, dtype=dtype, pin_memory=True)
            self.on_cpu = pinned.copy_(self.sums, non_blocking=True)
            self.copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self.copied.record()

    def not_finite(self) -> Tensor:
        """1 where any process was not finite, else 0, as a fused optimizer takes it."""
        assert self.sums is not None, "asked before all_reduce"
        return (self.sums[2] > 0.0).float()

    def read(self) -> StepResult:
        """The step as every process knows it."""
        if self.result is None:
            if self.copied is not None:
                self.copied.synchronize()
            assert self.on_cpu is not None, "read before all_reduce"
            loss, grad_norm, not_finite, bad, replaced, save, stop = self.on_cpu.tolist()
            self.result = StepResult(
                number=self.number,
                lr=self.lr,
                loss=loss / self.group.size,
                grad_norm=grad_norm / self.group.size,
                finite=not not_finite,
                bad=self.bad,
                bad_images=int(bad),
                replaced=int(replaced),
                taught=tuple(self.taught),
                save=bool(save),
                stop=bool(stop),
            )
        return self.result


@dataclass
class PendingSteps:
    """The steps that are launched and not yet read: `lag` of them while another is launched.

    Raises NotFinite after `limit` steps in a row that moved nothing.
    """

    stats: EpochStats
    passes: MicroBatches
    on_step: Callable[[StepResult], object]
    at_rest: Callable[[], None]
    lag: int
    limit: int
    steps: deque[StepSums] = field(default_factory=deque)
    started: float = field(default_factory=time.perf_counter)

    def launched(self, sums: StepSums) -> None:
        """Another step is: read what is older."""
        self.steps.append(sums)
        if len(self.steps) > self.lag and self._read():
            self.finish(rest=True)

    def finish(self, rest: bool = False) -> None:
        """Read every step, and come to rest where that was asked for."""
        while self.steps:
            rest |= self._read()
        if rest:
            self.at_rest()
            self.started = time.perf_counter()

    def _read(self) -> bool:
        """Count and report the oldest step; whether to come to rest."""
        step, stats = self.steps.popleft().read(), self.stats
        stats.add(step)
        stats.seconds += time.perf_counter() - self.started
        stats.data_seconds += self.passes.idle.read()
        if stats.in_a_row >= self.limit:
            raise NotFinite(step)
        self.on_step(step)
        self.started = time.perf_counter()
        return step.save or step.stop
