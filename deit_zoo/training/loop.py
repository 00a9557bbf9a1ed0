"""One epoch of training, one thing per line.

A step whose loss or gradient is not finite moves nothing, in any process. Where the optimizer can
be told so on the device, nothing waits for it: results are read while the next step is computed.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer

from deit_zoo.distributed import DistributedContext
from deit_zoo.models.layers import ZooModel
from deit_zoo.recipes.plan import Plan, learning_rate
from deit_zoo.training.losses import Criterion
from deit_zoo.training.micro_batches import Batches, MicroBatches, Mix
from deit_zoo.training.optim import Ema

MAX_NONFINITE_STEPS = 3  # in a row, before the run goes back to an earlier state
SCALER_HALVINGS = 16  # that a scaler may need from its first scale, 2 to the 16th, down to 1


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainState:
    """What a step is made of, built once before the loop.

    Steps change `model`, `optimizer`, `ema` and `scaler`: a state on disk holds these.
    `network` is what is called: the model itself, compiled, or wrapped for many processes.
    `replicas` are this process's virtual replicas, each with its own draws; `per_pass` of them go
    through the network together.
    `dtype` is that of autocast, None for full precision; float16 comes with a scaler.
    """

    model: ZooModel
    optimizer: Optimizer
    criterion: Criterion
    mix: Mix
    replicas: range
    per_pass: int = 1
    group: DistributedContext
    network: nn.Module
    dtype: torch.dtype | None = None
    scaler: GradScaler = field(default_factory=lambda: GradScaler(enabled=False))
    ema: Ema | None = None

    @property
    def passes(self) -> int:
        """Forward passes of a step."""
        return len(self.replicas) // self.per_pass

    @property
    def skips_on_device(self) -> bool:
        """Whether a step is left undone by the optimizer's own kernel, without asking the CPU."""
        fused = bool(self.optimizer.defaults.get("fused"))
        return fused and not self.scaler.is_enabled() and self.ema is None


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


@dataclass(frozen=True, kw_only=True, slots=True)
class StepResult:
    """A finished step: its rate, and over all processes its mean loss and the gradient's norm
    before clipping.

    Where one of the two is not finite, the step moved nothing. `bad` are this process's images that
    could not be read, `bad_images` counts everybody's. `stop`: some process was asked to stop.
    """

    number: int
    lr: float
    loss: float
    grad_norm: float
    finite: bool = True
    bad: list[int] = field(default_factory=list)
    bad_images: int = 0
    stop: bool = False


class NotFinite(Exception):
    """So many steps in a row were not finite that the run must go back; `step` is the last."""

    def __init__(self, step: StepResult) -> None:
        super().__init__(
            f"loss {step.loss} and gradient norm {step.grad_norm} at step {step.number}"
        )
        self.step = step


def train_one_epoch(
    state: TrainState,
    plan: Plan,
    epoch: int,
    batches: Batches,
    on_step: Callable[[StepResult], object],
    stats: EpochStats | None = None,
    stop_requested: Callable[[], bool] = bool,
    left_out: Collection[int] = (),
    at_rest: Callable[[], None] = lambda: None,
) -> EpochStats:
    """Train from where `stats` is to the end of the epoch, but for the steps that are `left_out`.

    Where `on_step` answers with True, the loop comes to rest: no step is under way in `at_rest`.
    Raises NotFinite, in every process at the same step.
    """
    recipe, optimizer = plan.recipe, state.optimizer
    network: Any = state.network
    stats = EpochStats() if stats is None else stats
    state.model.train(recipe.train_mode)
    lr = set_rate(optimizer, learning_rate(recipe, epoch))
    passes = micro_batches(state, recipe.seed, epoch, batches)
    under_way = UnderWay(state, stats, passes, on_step, at_rest)
    for number in range(stats.step, plan.steps_per_epoch):
        if number in left_out:
            under_way.finish()
            passes.leave_out()
            stats.leave_out(number)
            continue
        sums = StepSums(state.group, number, lr)
        for part in passes.of_step(number):
            network.require_backward_grad_sync = part.last  # DDP's; others do not ask
            with autocast(state):
                loss = state.criterion(network(part.images), part.images, part.targets)
            loss = loss / state.passes
            torch.autograd.backward(state.scaler.scale(loss))
            sums.add(loss, part.bad)
        state.scaler.unscale_(optimizer)
        grad_norm = clip_gradients(state.model.parameters(), recipe.clip_grad)
        sums.all_reduce(grad_norm, stop_requested())
        update(state, sums)
        optimizer.zero_grad(set_to_none=True)
        under_way.add(sums)
    under_way.finish()
    return stats


def set_rate(optimizer: Optimizer, lr: float) -> float:
    """Give every group its share of the rate."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]
    return lr


def micro_batches(state: TrainState, seed: int, epoch: int, batches: Batches) -> MicroBatches:
    """The forward passes of this process in an epoch."""
    return MicroBatches(
        state.model,
        state.mix,
        batches,
        replicas=state.replicas,
        per_pass=state.per_pass,
        key=(seed, epoch),
        device=state.group.device,
    )


def autocast(state: TrainState) -> AbstractContextManager[Any]:
    """The precision of forward passes, the student's and the teacher's."""
    device = state.group.device.type
    return nullcontext() if state.dtype is None else torch.autocast(device, dtype=state.dtype)


def clip_gradients(parameters: Iterable[nn.Parameter], bound: float | None) -> Tensor:
    """The norm of the whole gradient, before it is clipped where there is a bound."""
    learning = [parameter for parameter in parameters if parameter.grad is not None]
    norm = get_total_norm([parameter.grad for parameter in learning if parameter.grad is not None])
    if bound is not None:
        clip_grads_with_norm_(learning, bound, norm)
    return norm


def update(state: TrainState, sums: StepSums) -> None:
    """One step of the optimizer, where loss and gradient are finite."""
    if state.skips_on_device:
        state.optimizer.found_inf = sums.not_finite()  # type: ignore[attr-defined]
        state.optimizer.step()
        return
    if sums.read().finite:
        state.scaler.step(state.optimizer)
        if state.ema is not None:
            state.ema.update()
    state.scaler.update()


class StepSums:
    """What all processes must know of a step, added up by one all-reduce.

    On a GPU the sums are copied while it computes on; `read` waits for them.
    """

    def __init__(self, group: DistributedContext, number: int, lr: float) -> None:
        self.group = group
        self.number = number
        self.lr = lr
        self.loss = torch.zeros((), dtype=torch.float64, device=group.device)
        self.bad: list[int] = []
        self.sums: Tensor | None = None
        self.on_cpu: Tensor | None = None
        self.copied: torch.cuda.Event | None = None
        self.result: StepResult | None = None

    def add(self, loss: Tensor, bad: list[int]) -> None:
        """One pass's share of the loss, and the images it could not have."""
        self.loss += loss.detach()
        self.bad += bad

    def all_reduce(self, grad_norm: Tensor, stop: bool) -> None:
        """Add up over all processes, and begin to copy the sums to the CPU."""
        finite = torch.isfinite(self.loss) & torch.isfinite(grad_norm)
        counts = torch.tensor([len(self.bad), stop], dtype=torch.float64)
        measured = torch.stack((self.loss, grad_norm.double(), (~finite).double()))
        self.sums = self.group.all_reduce(torch.cat((measured, counts.to(self.loss.device))))
        self.on_cpu = self.sums
        if self.group.device.type == "cuda":
            pinned = torch.empty(self.sums.shape, dtype=torch.float64, pin_memory=True)
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
            loss, grad_norm, not_finite, bad, stop = self.on_cpu.tolist()
            self.result = StepResult(
                number=self.number,
                lr=self.lr,
                loss=loss / self.group.size,
                grad_norm=grad_norm / self.group.size,
                finite=not not_finite,
                bad=self.bad,
                bad_images=int(bad),
                stop=bool(stop),
            )
        return self.result


class UnderWay:
    """The steps that are launched and not yet read: one, where the device leaves steps undone by
    itself, so that it never waits for the CPU; else none."""

    def __init__(
        self,
        state: TrainState,
        stats: EpochStats,
        passes: MicroBatches,
        on_step: Callable[[StepResult], object],
        at_rest: Callable[[], None],
    ) -> None:
        self.stats = stats
        self.passes = passes
        self.on_step = on_step
        self.at_rest = at_rest
        self.steps: deque[StepSums] = deque()
        self.most = 1 if state.skips_on_device else 0
        self.limit = MAX_NONFINITE_STEPS
        if state.scaler.is_enabled():
            self.limit += SCALER_HALVINGS
        self.started = time.perf_counter()

    def add(self, sums: StepSums) -> None:
        """Another step is launched: read what is older."""
        self.steps.append(sums)
        if len(self.steps) > self.most and self._read():
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
        stats.data_seconds += self.passes.seconds
        self.passes.seconds = 0.0
        if stats.in_a_row >= self.limit:
            raise NotFinite(step)
        rest = bool(self.on_step(step))
        self.started = time.perf_counter()
        return rest
