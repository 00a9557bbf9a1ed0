"""Loader and model, each measured alone at the start of a run: which of the two limits it?"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import torch
from torch import Tensor

from deit_zoo.recipes.plan import Plan
from deit_zoo.training.data import Supply
from deit_zoo.training.loop import Parts, autocast, syncing
from deit_zoo.training.seeding import seed_from_key

# A run of fewer steps in an epoch is over before the answer could help.
MIN_STEPS = 100
SECONDS = 5.0
BATCHES = 64


def profile_loader_and_step(parts: Parts, plan: Plan, supply: Supply) -> str | None:
    """What limits this run, in one sentence; None for runs too short to ask.

    Nothing that training depends on is touched: no optimizer step is taken, and draws are set
    before each of their uses.
    """
    if plan.steps_per_epoch < MIN_STEPS:
        return None
    parts.model.train(plan.recipe.train_mode)
    batches = iter(supply.epoch(0))
    images, labels, _ = next(batches)  # the workers are up
    loader = rate(lambda: len(next(batches)[0]), BATCHES)
    supply.close()
    model = rate(lambda: trained(parts, plan, images, labels), BATCHES)
    parts.optimizer.zero_grad(set_to_none=True)
    cores = (os.cpu_count() or 1) * plan.nodes // plan.processes
    return sentence(loader, model, plan.workers, cores)


def trained(parts: Parts, plan: Plan, images: Tensor, labels: Tensor) -> int:
    """One forward and backward pass, without a step; the number of images."""
    device = parts.group.device
    seed_from_key(plan.recipe.seed, "speed")
    mixed, targets = parts.mix(images.to(device), labels.to(device))
    with syncing(parts.network, last=False):  # each process by itself, as often as it likes
        with autocast(parts):
            loss = parts.criterion(parts.network(mixed), mixed, targets)
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
    told = f"loader {loader:,.0f} img/s, model {model:,.0f} img/s in each process"
    if loader >= model:
        return f"{told}: the model limits, as it should"
    wanted = min(cores, -(-max(workers, 1) * model // loader))
    if wanted > workers:
        return f"{told}: loader-bound; try --workers {wanted:.0f}"
    return f"{told}: loader-bound with every core in use; more cores or smaller files would help"
