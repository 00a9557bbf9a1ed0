"""One epoch of training, one thing per line."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

from deit_zoo.distributed import DistributedContext
from deit_zoo.models.layers import ZooModel
from deit_zoo.recipes.plan import Plan, learning_rate
from deit_zoo.training.ema import Ema
from deit_zoo.training.losses import Criterion
from deit_zoo.training.seeding import seed_from_key

Batches = Iterable[tuple[Tensor, Tensor, Tensor]]
MAX_NONFINITE_STEPS = 3  # steps in a row whose loss is not finite, before the run goes back


@dataclass(frozen=True, kw_only=True, slots=True)
class Parts:
    """What a step is made of, built once before the loop.

    `network` is what is called: the model itself, compiled, or wrapped for many processes.
    `dtype` is that of autocast, None for full precision; `scaler` comes with float16.
    """

    model: ZooModel
    optimizer: Optimizer
    criterion: Criterion
    mix: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    replicas: range
    group: DistributedContext
    network: nn.Module
    dtype: torch.dtype | None = None
    scaler: GradScaler | None = None
    ema: Ema | None = None


@dataclass(kw_only=True, slots=True)
class EpochStats:
    """What an epoch has counted so far; `step` steps are done. A state holds it."""

    step: int = 0
    losses: int = 0
    loss: float = 0.0
    skipped: int = 0
    in_a_row: int = 0
    bad_images: int = 0
    seconds: float = 0.0
    data_seconds: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class StepResult:
    """A finished step: its mean loss over all replicas, its rate, and the images that were bad.

    `stop` says whether any process was asked to stop.
    """

    number: int
    loss: float
    lr: float
    bad: list[int] = field(default_factory=list)
    stop: bool = False


class LossNotFinite(Exception):
    """The loss was not finite for SKIPS steps in a row, the last of which is `step`."""

    def __init__(self, step: StepResult) -> None:
        super().__init__(f"the loss is {step.loss} at step {step.number}")
        self.step = step


def train_one_epoch(
    parts: Parts,
    plan: Plan,
    epoch: int,
    batches: Batches,
    on_step: Callable[[StepResult], None],
    sums: EpochStats | None = None,
    wants_stop: Callable[[], bool] = bool,
) -> EpochStats:
    """Train from where `sums` is to the end of the epoch.

    Raises LossNotFinite, in every process at the same step.
    """
    recipe, optimizer = plan.recipe, parts.optimizer
    sums = EpochStats() if sums is None else sums
    parts.model.train(recipe.train_mode)
    rate = learning_rate(recipe, epoch)
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]
    supply = iter(batches)
    started = time.perf_counter()
    for number in range(sums.step, plan.steps_per_epoch):
        optimizer.zero_grad(set_to_none=True)
        told = Told(parts.group)
        for replica in parts.replicas:
            asked = time.perf_counter()
            images, labels, bad = next(supply)
            sums.data_seconds += time.perf_counter() - asked
            images = images.to(parts.group.device, non_blocking=True)
            labels = labels.to(parts.group.device, non_blocking=True)
            seed_from_key(recipe.seed, epoch, number, replica, "mixup")
            images, targets = parts.mix(images, labels)
            seed_from_key(recipe.seed, epoch, number, replica, "drop_path")
            last = replica == parts.replicas[-1]
            with syncing(parts.network, last):
                with autocast(parts):
                    loss = parts.criterion(parts.network(images), images, targets)
                loss = loss / plan.replicas_per_process
                told.add(loss, bad)
                if last:
                    told.send(wants_stop())
                torch.autograd.backward(loss if parts.scaler is None else parts.scaler.scale(loss))
        total, bad_images, stop = told.heard()
        step = StepResult(number=number, loss=total, lr=rate, bad=told.bad, stop=bool(stop))
        sums.bad_images += int(bad_images)
        if math.isfinite(total):
            update(parts, recipe.clip_grad)
            sums.loss += total
            sums.losses += 1
            sums.in_a_row = 0
        else:
            sums.skipped += 1
            sums.in_a_row += 1
            if sums.in_a_row == MAX_NONFINITE_STEPS:
                raise LossNotFinite(step)
        sums.step = number + 1
        sums.seconds += time.perf_counter() - started
        started = time.perf_counter()
        on_step(step)
    return sums


def update(parts: Parts, clip_grad: float | None) -> None:
    """One step of the optimizer on the gradients that are there."""
    if parts.scaler is not None and clip_grad is not None:
        parts.scaler.unscale_(parts.optimizer)
    if clip_grad is not None:
        clip_grad_norm_(parts.model.parameters(), clip_grad)
    if parts.scaler is None:
        parts.optimizer.step()
    else:
        parts.scaler.step(parts.optimizer)
        parts.scaler.update()
    if parts.ema is not None:
        parts.ema.update()


def autocast(parts: Parts) -> AbstractContextManager[Any]:
    """The precision of forward passes, the student's and the teacher's."""
    kind = parts.group.device.type
    return nullcontext() if parts.dtype is None else torch.autocast(kind, dtype=parts.dtype)


def syncing(network: nn.Module, last: bool) -> AbstractContextManager[Any]:
    """Gradients are averaged over the processes once a step, with the last replica's."""
    if last or not isinstance(network, DistributedDataParallel):
        return nullcontext()
    return network.no_sync()


class Told:
    """What the processes tell each other in a step: mean loss, bad images, wishes to stop.

    It travels while the last backward pass runs, so a GPU never waits for the answer.
    """

    def __init__(self, group: DistributedContext) -> None:
        self.group = group
        self.values = torch.zeros(3, dtype=torch.float64, device=group.device)
        self.bad: list[int] = []
        self.read: torch.cuda.Event | None = None

    def add(self, loss: Tensor, bad: Tensor) -> None:
        """One replica's share of the loss, and the images it could not have."""
        self.values[0] += loss.detach()
        self.bad += [int(number) - 1 for number in bad.tolist() if number]

    def send(self, stop: bool) -> None:
        """Tell all others, and begin to read the sums."""
        self.values[1].fill_(len(self.bad))
        self.values[2].fill_(stop)
        self.group.all_reduce(self.values)
        if self.group.device.type == "cuda":
            pinned = torch.empty(3, dtype=torch.float64, pin_memory=True)
            self.values = pinned.copy_(self.values, non_blocking=True)
            self.read = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self.read.record()

    def heard(self) -> tuple[float, float, float]:
        """The mean loss of the step, the bad images and the wishes to stop, of all processes."""
        if self.read is not None:
            self.read.synchronize()
        loss, bad, stop = self.values.tolist()
        return loss / self.group.size, bad, stop
