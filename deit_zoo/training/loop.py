"""One epoch of training, one thing per line.

A step whose loss or gradient is not finite moves nothing, in any process. Where the optimizer can
be told so on the device, nothing waits for it: results are read while the next step is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import AdamW, Optimizer

from deit_zoo.distributed import DistributedContext
from deit_zoo.models.model import ZooModel
from deit_zoo.recipes.plan import Plan
from deit_zoo.recipes.schedule import learning_rate
from deit_zoo.training.losses import Criterion, Teach
from deit_zoo.training.micro_batches import Batch, MicroBatch, MicroBatches, Mix
from deit_zoo.training.optim import Ema
from deit_zoo.training.steps import EpochStats, PendingSteps, Requests, StepResult, StepSums

MAX_NONFINITE_STEPS = 3  # in a row
SCALER_HALVINGS = 16  # that a scaler may need from its first scale, 2 to the 16th, down to 1


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainState:
    """What a step is made of, built once before the loop.

    Steps change `model`, `optimizer`, `ema` and `scaler`: a state on disk holds these.
    `network` is what is called: the model itself, compiled, or wrapped for many processes.
    `replicas` are this process's virtual replicas, each with its own draws; `per_pass` of them go
    through the network together.
    `teacher` says what the student learns of it, where it is not kept already.
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
    teacher: Teach | None = None
    dtype: torch.dtype | None = None
    scaler: GradScaler = field(default_factory=lambda: GradScaler(enabled=False))
    ema: Ema | None = None

    @property
    def passes(self) -> int:
        """Forward passes of a step."""
        return len(self.replicas) // self.per_pass

    @property
    def max_nonfinite(self) -> int:
        """Steps in a row that may move nothing, before the run goes back to an earlier state."""
        return MAX_NONFINITE_STEPS + (SCALER_HALVINGS if self.scaler.is_enabled() else 0)

    @property
    def skips_on_device(self) -> bool:
        """Whether a step is left undone by the optimizer's own kernel, without asking the CPU."""
        # SGD's leaves its first momentum unset where the first step is left undone.
        fused = isinstance(self.optimizer, AdamW) and bool(self.optimizer.defaults["fused"])
        return fused and not self.scaler.is_enabled() and self.ema is None


def train_one_epoch(
    state: TrainState,
    plan: Plan,
    epoch: int,
    batches: Iterable[Batch],
    on_step: Callable[[StepResult], object],
    stats: EpochStats | None = None,
    *,
    requests: Callable[[], Requests] = Requests,
    left_out: Collection[int] = (),
    at_rest: Callable[[], None] = lambda: None,
) -> EpochStats:
    """Train from where `stats` is to the end of the epoch, but for the steps that are `left_out`.

    Where any process requests to save or to stop, all come to rest: in `at_rest` no step is under
    way. Raises NotFinite, in every process at the same step.
    """
    recipe, optimizer = plan.recipe, state.optimizer
    stats = EpochStats() if stats is None else stats
    state.model.train(recipe.train_mode)
    lr = learning_rate(recipe, epoch)
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]
    passes = micro_batches(state, recipe.seed, epoch, batches)
    statistics = [buffer for buffer in state.model.buffers() if buffer.is_floating_point()]
    lag, unread = int(state.skips_on_device), set[int]()
    pending = PendingSteps(stats, passes, on_step, at_rest, lag, state.max_nonfinite)
    for number in range(stats.step, plan.steps_per_epoch):
        if number in left_out:
            pending.finish()
            passes.leave_out()
            stats.leave_out(number)
            continue
        sums = StepSums(state.group, number, lr, unread)
        for part in passes.of_step(number):
            loss, taught = forward_backward(state, part)
            sums.add(loss, part.bad, taught)
        passes.look_ahead()
        state.scaler.unscale_(optimizer)
        grad_norm = clip_gradients(state.model.parameters(), recipe.clip_grad)
        # Running statistics too: a forward pass moves them before anything can be skipped.
        values = (sums.loss, grad_norm, *statistics)
        finite = torch.stack([value.isfinite().all() for value in values]).all()
        sums.all_reduce(grad_norm, finite, requests())
        update(state, sums)
        optimizer.zero_grad(set_to_none=True)
        pending.launched(sums)
    pending.finish()
    return stats


def forward_backward(state: TrainState, part: MicroBatch) -> tuple[Tensor, Tensor | None]:
    """One pass through the network and back; its share of the step's loss, and what was taught."""
    network: Any = state.network
    network.require_backward_grad_sync = part.last  # DDP's; others do not ask
    with autocast(state.group.device, state.dtype):
        outputs = network(part.images)
        taught = part.taught
        if taught is None and state.teacher is not None:
            taught = state.teacher(part.images)
        loss = state.criterion(outputs, taught, part.targets)
    loss = loss / state.passes
    torch.autograd.backward(state.scaler.scale(loss))
    return loss, taught


def micro_batches(
    state: TrainState, seed: int, epoch: int, batches: Iterable[Batch]
) -> MicroBatches:
    """The forward passes of this process in an epoch."""
    return MicroBatches(
        state.model,
        state.mix,
        iter(batches),
        replicas=state.replicas,
        per_pass=state.per_pass,
        key=(seed, epoch),
        device=state.group.device,
    )


def autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    """The precision of forward passes, the student's and the teacher's."""
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)


def autocast_dtype(plan: Plan, device: torch.device) -> torch.dtype | None:
    """The precision of forward passes on a device; None is float32 throughout."""
    precision = plan.precision
    if precision == "auto":
        if device.type != "cuda":
            return None
        precision = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": None}[precision]


def clip_gradients(parameters: Iterable[nn.Parameter], bound: float | None) -> Tensor:
    """The norm of the whole gradient, before it is clipped where there is a bound."""
    learning = [parameter for parameter in parameters if parameter.grad is not None]
    norm = get_total_norm([parameter.grad for parameter in learning if parameter.grad is not None])
    if bound is not None:
        clip_grads_with_norm_(learning, bound, norm)
    return norm


def update(state: TrainState, sums: StepSums) -> None:
    """One step of the optimizer, where everything is finite in every process.

    Unless the device decides that by itself, this is where the CPU waits for it.
    """
    if state.skips_on_device:
        state.optimizer.found_inf = sums.not_finite()  # type: ignore[attr-defined]
        state.optimizer.step()
        return
    if sums.read().finite:
        state.scaler.step(state.optimizer)
        if state.ema is not None:
            state.ema.update()
    state.scaler.update()
