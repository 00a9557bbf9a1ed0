"""Loader and model, each measured alone at the start of a run: which of the two limits it?"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import torch
from torch import Tensor

from deit_zoo.recipes.plan import Plan
from deit_zoo.training.data import TrainLoader
from deit_zoo.training.loop import TrainState, autocast, gradient_sync
from deit_zoo.training.seeding import seed_from_key

# A run of fewer steps in an epoch is over before the answer could help.
MIN_STEPS = 100
SECONDS = 5.0
BATCHES = 64


def profile_loader_and_step(state: TrainState, plan: Plan, loader: TrainLoader) -> str | None:
    """What limits this run, in one sentence; None for runs too short to ask.

    Nothing that training depends on is touched: no optimizer step is taken, and draws are set
    before each of their uses.
    """
    if plan.steps_per_epoch < MIN_STEPS:
        return None
    state.model.train(plan.recipe.train_mode)
    batches = iter(loader.epoch(0))
    images, labels, _ = next(batches)  # the workers are up
    loader_rate = rate(lambda: len(next(batches)[0]), BATCHES)
    loader.close()
    model_rate = rate(lambda: forward_backward(state, plan, images, labels), BATCHES)
    state.optimizer.zero_grad(set_to_none=True)
    cores = (os.cpu_count() or 1) * plan.nodes // plan.processes
    return sentence(loader_rate, model_rate, plan.workers, cores)


def forward_backward(state: TrainState, plan: Plan, images: Tensor, labels: Tensor) -> int:
    """One forward and backward pass, without a step; the number of images."""
    device = state.group.device
    seed_from_key(plan.recipe.seed, "speed")
    mixed, targets = state.mix(images.to(device), labels.to(device))
    with gradient_sync(state.network, last=False):  # each process by itself, as often as it likes
        with autocast(state):
            loss = state.criterion(state.network(mixed), mixed, targets)
        torch.autograd.backward(loss)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return len(images)


def rate(act: Callable[[], int], times: int) -> float:
    """Images per second of `act`, after two calls that do not count."""
    for _ in range(2):
        act()
    started, images = time.perf_counter(), 0
    for _ in range(times):
        images += act()
        if time.perf_counter() - started > SECONDS:
            break
    return images / (time.perf_counter() - started)


def sentence(loader: float, model: float, workers: int, cores: int) -> str:
    """The two rates of one process and the next thing to try."""
    rates = f"loader {loader:,.0f} img/s, model {model:,.0f} img/s in each process"
    if loader >= model:
        return f"{rates}: the model limits, as it should"
    needed = min(cores, -(-max(workers, 1) * model // loader))
    if needed > workers:
        return f"{rates}: loader-bound; try --workers {needed:.0f}"
    return f"{rates}: loader-bound with every core in use; more cores or smaller files would help"
