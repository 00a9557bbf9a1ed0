"""Numbers that are not finite, at chosen steps of a run: a loss, a gradient, or a weight."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from deit_zoo.training import build, loop
from deit_zoo.training.data import TrainLoader
from deit_zoo.training.loop import TrainState
from deit_zoo.training.losses import Criterion, Outputs
from deit_zoo.training.micro_batches import Batch, MicroBatch

MARK = 77.0  # what the images of a chosen step are full of; mixed ones too


class _NoGradient(torch.autograd.Function):
    """A loss that is finite, and its gradient that is not."""

    @staticmethod
    def forward(_context: Any, loss: Tensor) -> Tensor:
        return loss.clone()

    @staticmethod
    def backward(_context: Any, *gradients: Tensor) -> Tensor:
        return gradients[0] * torch.nan


def spoil(
    kind: str,
    places: Collection[tuple[int, int]],
    *,
    once: bool = False,
    replace: Callable[[Any, str, Any], None] = setattr,
) -> None:
    """Let a "loss", a "gradient" or a "weight" be no number at steps: (epoch, step), from 0.

    Each time that they are met, or once. A weight is spoiled after its step. `replace` sets an
    attribute.
    """
    left = set(places)
    real_epoch, real_pass = TrainLoader.epoch, loop.forward_backward
    real_optimizer = build.optimizer_for
    seen = False

    def epoch(loader: TrainLoader, number: int, first_step: int = 0) -> Iterator[Batch]:
        share = len(loader.replicas)
        batches = real_epoch(loader, number, first_step)
        for count, batch in enumerate(batches):
            place = (number, first_step + count // share)
            chosen = place in left
            if once and count % share == share - 1:
                left.discard(place)
            yield batch._replace(images=torch.full_like(batch.images, MARK)) if chosen else batch

    def forward_backward(state: TrainState, part: MicroBatch) -> tuple[Tensor, Tensor | None]:
        nonlocal seen
        if bool(((part.images - MARK).abs() < 1e-3).all()):
            seen = True
            state = dataclasses.replace(state, criterion=spoiled(state.criterion))
        return real_pass(state, part)

    def spoiled(real: Criterion) -> Criterion:
        def criterion(outputs: Outputs, taught: Tensor | None, targets: Tensor) -> Tensor:
            loss = real(outputs, taught, targets)
            if kind == "loss":
                return loss * torch.nan
            return _NoGradient.apply(loss) if kind == "gradient" else loss  # type: ignore[no-untyped-call,no-any-return]

        return criterion

    def optimizer_for(model: nn.Module, recipe: Any) -> Optimizer:
        optimizer = real_optimizer(model, recipe)  # type: ignore[arg-type]

        def after_step(*_: Any) -> None:
            nonlocal seen
            if seen and kind == "weight":
                with torch.no_grad():
                    next(model.parameters()).view(-1)[0] = torch.nan
            seen = False

        optimizer.register_step_post_hook(after_step)
        return optimizer

    replace(TrainLoader, "epoch", epoch)
    replace(loop, "forward_backward", forward_backward)
    replace(build, "optimizer_for", optimizer_for)
