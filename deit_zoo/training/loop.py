"""One epoch of training, one thing per line."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

from deit_zoo.errors import ZooError
from deit_zoo.models.layers import ZooModel
from deit_zoo.training.draws import seed_all
from deit_zoo.training.losses import Criterion
from deit_zoo.training.plan import Plan, learning_rate


@dataclass(frozen=True, kw_only=True, slots=True)
class Parts:
    """What a step is made of, built once before the loop."""

    model: ZooModel
    optimizer: Optimizer
    criterion: Criterion
    mix: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    replicas: range
    device: torch.device


@dataclass(frozen=True, kw_only=True, slots=True)
class EpochResult:
    """Figures of one epoch: the mean loss, and where the time went."""

    lr: float
    loss: float
    images: int
    seconds: float
    data_seconds: float


def train_one_epoch(
    parts: Parts,
    plan: Plan,
    epoch: int,
    batches: Iterable[tuple[Tensor, Tensor]],
    on_step: Callable[[float], None],
) -> EpochResult:
    """Train for an epoch. Raises ZooError at the step whose loss is not finite."""
    recipe, model, optimizer = plan.recipe, parts.model, parts.optimizer
    model.train()
    rate = learning_rate(recipe, epoch)
    for group in optimizer.param_groups:
        group["lr"] = rate
    started, waited, total = time.perf_counter(), 0.0, 0.0
    supply = iter(batches)
    for step in range(plan.steps_per_epoch):
        optimizer.zero_grad(set_to_none=True)
        step_loss = 0.0
        for replica in parts.replicas:
            asked = time.perf_counter()
            images, labels = next(supply)
            waited += time.perf_counter() - asked
            images, labels = images.to(parts.device), labels.to(parts.device)
            seed_all(recipe.seed, epoch, step, replica, "mixup")
            images, targets = parts.mix(images, labels)
            seed_all(recipe.seed, epoch, step, replica, "drop_path")
            loss = parts.criterion(model(images), images, targets) / recipe.replicas
            torch.autograd.backward(loss)
            step_loss += loss.item()
        if not torch.isfinite(torch.tensor(step_loss)):
            raise ZooError(
                f"the loss is {step_loss} at epoch {epoch}, step {step}; lower the rate with "
                f"--set lr={recipe.lr / 2:g}, or bound the gradients with --set clip_grad=1"
            )
        if recipe.clip_grad is not None:
            clip_grad_norm_(model.parameters(), recipe.clip_grad)
        optimizer.step()
        total += step_loss
        on_step(step_loss)
    return EpochResult(
        lr=rate,
        loss=total / plan.steps_per_epoch,
        images=plan.steps_per_epoch * plan.replica_batch * len(parts.replicas),
        seconds=time.perf_counter() - started,
        data_seconds=waited,
    )
