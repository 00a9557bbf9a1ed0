"""What a line of steps.jsonl says of the steps that it covers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from deit_zoo.machine import peak_mb
from deit_zoo.recipes.plan import Plan
from deit_zoo.training.steps import EpochStats, StepResult


class StepMeter:
    """Figures of the steps since the last line of steps.jsonl.

    A line is due every `log_steps` steps, at the end of an epoch, and at a step that is skipped.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.begin(0, EpochStats())

    def begin(self, epoch: int, stats: EpochStats) -> None:
        """An epoch begins, or goes on from where `stats` is."""
        self.epoch, self.stats = epoch, stats
        self._start_line()

    def add(self, step: StepResult) -> dict[str, Any] | None:
        """Count a step; what its line says where one is due.

        `loss` is the mean over the covered steps that were taken and `max_grad_norm` the largest of
        their norms; `last_loss` and `grad_norm` are this step's own.
        """
        self.steps += 1
        self.last = step
        if step.finite:
            self.losses.append(step.loss)
            self.norms.append(step.grad_norm)
        done = step.number + 1
        ends_epoch = done == self.plan.steps_per_epoch
        if step.finite and done % self.plan.log_steps and not ends_epoch:
            return None
        return self.flush()

    def flush(self) -> dict[str, Any]:
        """What a line says of the steps since the line before, of which there are some."""
        now, start, step = self.stats, self.start, self.last
        seconds = max(now.seconds - start.seconds, 1e-9)
        record = {
            "epoch": self.epoch,
            "step": step.number,
            "steps": self.steps,
            "loss": sum(self.losses) / len(self.losses) if self.losses else None,
            "last_loss": step.loss,
            "grad_norm": step.grad_norm,
            "max_grad_norm": max(self.norms, default=None),
            "lr": step.lr,
            "images_per_second": self.steps * self.plan.recipe.batch_size / seconds,
            "data_share": (now.data_seconds - start.data_seconds) / seconds,
            "memory": peak_memory(self.plan.device),
            "skipped": now.skipped - start.skipped,
        }
        self._start_line()
        return record

    def _start_line(self) -> None:
        self.start = replace(self.stats)
        self.steps = 0
        self.losses: list[float] = []
        self.norms: list[float] = []


def peak_memory(device: str) -> int | None:
    """The most bytes in use: of tensors on a GPU since the last call, else of this process ever."""
    if device == "cuda":
        peak = torch.cuda.max_memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        return peak
    megabytes = peak_mb()
    return None if megabytes is None else round(megabytes * 2**20)
