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
from deit_zoo.training.losses import Criterion
from deit_zoo.training.optim import Ema
from deit_zoo.training.seeding import seed_from_key

Batches = Iterable[tuple[Tensor, Tensor, Tensor]]
MAX_NONFINITE_STEPS = 3  # in a row, before the run goes back to its last state


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainState:
    """What a step is made of, built once before the loop.

    Steps change `model`, `optimizer`, `ema` and `scaler`: a state on disk holds these.
    `network` is what is called: the model itself, compiled, or wrapped for many processes.
    `replicas` are this process's virtual replicas: micro-batches, each with its own mixup draw.
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
    """What an epoch has counted so far; `step` steps are done. A state on disk holds it."""

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
    """The loss was not finite MAX_NONFINITE_STEPS times in a row, the last time in `step`."""

    def __init__(self, step: StepResult) -> None:
        super().__init__(f"the loss is {step.loss} at step {step.number}")
        self.step = step


def train_one_epoch(
    state: TrainState,
    plan: Plan,
    epoch: int,
    batches: Batches,
    on_step: Callable[[StepResult], None],
    stats: EpochStats | None = None,
    stop_requested: Callable[[], bool] = bool,
) -> EpochStats:
    """Train from where `stats` is to the end of the epoch.

    Raises LossNotFinite, in every process at the same step.
    """
    recipe, optimizer, device = plan.recipe, state.optimizer, state.group.device
    stats = EpochStats() if stats is None else stats
    state.model.train(recipe.train_mode)
    lr = learning_rate(recipe, epoch)
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]
    loader = iter(batches)
    started = time.perf_counter()
    for number in range(stats.step, plan.steps_per_epoch):
        optimizer.zero_grad(set_to_none=True)
        sums = StepSums(state.group)
        for replica in state.replicas:
            wait_started = time.perf_counter()
            images, labels, bad = next(loader)
            stats.data_seconds += time.perf_counter() - wait_started
            images = images.to(device, non_blocking=True)
            labels = labels.to(device, non_blocking=True)
            seed_from_key(recipe.seed, epoch, number, replica, "mixup")
            images, targets = state.mix(images, labels)
            seed_from_key(recipe.seed, epoch, number, replica, "drop_path")
            last = replica == state.replicas[-1]
            with gradient_sync(state.network, last):
                with autocast(state):
                    loss = state.criterion(state.network(images), images, targets)
                loss = loss / plan.replicas_per_process
                sums.add(loss, bad)
                if last:
                    sums.all_reduce(stop_requested())
                torch.autograd.backward(loss if state.scaler is None else state.scaler.scale(loss))
        step_loss, bad_images, stop = sums.wait()
        step = StepResult(number=number, loss=step_loss, lr=lr, bad=sums.bad, stop=bool(stop))
        stats.bad_images += int(bad_images)
        if math.isfinite(step_loss):
            update(state, recipe.clip_grad)
            stats.loss += step_loss
            stats.losses += 1
            stats.in_a_row = 0
        else:
            stats.skipped += 1
            stats.in_a_row += 1
            if stats.in_a_row == MAX_NONFINITE_STEPS:
                raise LossNotFinite(step)
        stats.step = number + 1
        stats.seconds += time.perf_counter() - started
        started = time.perf_counter()
        on_step(step)
    return stats


def update(state: TrainState, clip_grad: float | None) -> None:
    """One step of the optimizer on the gradients that are there."""
    if state.scaler is not None and clip_grad is not None:
        state.scaler.unscale_(state.optimizer)
    if clip_grad is not None:
        clip_grad_norm_(state.model.parameters(), clip_grad)
    if state.scaler is None:
        state.optimizer.step()
    else:
        state.scaler.step(state.optimizer)
        state.scaler.update()
    if state.ema is not None:
        state.ema.update()


def autocast(state: TrainState) -> AbstractContextManager[Any]:
    """The precision of forward passes, the student's and the teacher's."""
    device = state.group.device.type
    return nullcontext() if state.dtype is None else torch.autocast(device, dtype=state.dtype)


def gradient_sync(network: nn.Module, last: bool) -> AbstractContextManager[Any]:
    """Gradients are averaged over the processes once a step, with the last replica's."""
    if last or not isinstance(network, DistributedDataParallel):
        return nullcontext()
    return network.no_sync()


class StepSums:
    """Sums of a step over all processes: mean loss, bad images, requests to stop.

    They travel while the last backward pass runs, so a GPU never waits for them.
    """

    def __init__(self, group: DistributedContext) -> None:
        self.group = group
        self.values = torch.zeros(3, dtype=torch.float64, device=group.device)
        self.bad: list[int] = []
        self.copied: torch.cuda.Event | None = None

    def add(self, loss: Tensor, bad: Tensor) -> None:
        """One replica's share of the loss, and the images it could not have."""
        self.values[0] += loss.detach()
        self.bad += [int(number) - 1 for number in bad.tolist() if number]

    def all_reduce(self, stop: bool) -> None:
        """Add up over all processes, and begin to copy the sums to the CPU."""
        self.values[1].fill_(len(self.bad))
        self.values[2].fill_(stop)
        self.group.all_reduce(self.values)
        if self.group.device.type == "cuda":
            pinned = torch.empty(3, dtype=torch.float64, pin_memory=True)
            self.values = pinned.copy_(self.values, non_blocking=True)
            self.copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self.copied.record()

    def wait(self) -> tuple[float, float, float]:
        """The mean loss of the step, the bad images and the requests to stop, of all processes."""
        if self.copied is not None:
            self.copied.synchronize()
        loss, bad, stop = self.values.tolist()
        return loss / self.group.size, bad, stop
