"""What a person sees of a run, and what stays: a bar or plain lines, log.jsonl, and trackers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from deit_zoo.errors import DataError
from deit_zoo.files import LOG_FILE
from deit_zoo.recipes.plan import Plan
from deit_zoo.recipes.recipe import duration
from deit_zoo.runs.json_lines import append_line, cut_lines, finite
from deit_zoo.runs.reference import (
    compare_to_reference,
    plan_differences,
    published_curve,
    read_log,
    shown_figure,
)
from deit_zoo.training.step_meter import StepMeter
from deit_zoo.training.steps import EpochStats, StepResult
from deit_zoo.training.trackers import Tracker, trackers_for

LINE_SECONDS, STEP_LINE_SECONDS = 10.0, 60.0


@contextmanager
def full_disk_as_error(path: Path) -> Iterator[None]:
    """Within it, a full disk is one sentence, and nothing that was kept is lost."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{path} cannot be written ({error.strerror}); make room there and type the same "
            "command: it continues from the last state"
        ) from error


class MetricLogger:
    """Progress on stderr (a bar on a terminal, lines elsewhere) and the logs.

    One process of a run has it; in the others nothing is seen and nothing is written.
    """

    def __init__(self, plan: Plan, output: Path, console: Console) -> None:
        self.plan = plan
        self.log = output / LOG_FILE
        self.console = console
        self.active = not console.quiet
        self.trackers = trackers_for(plan, output) if self.active else []
        self.meter = StepMeter(plan)
        self.reached: tuple[int, int] | None = None  # epoch and step, of what is logged so far
        self.curve = published_curve(plan.recipe)
        self.progress = Progress(
            TextColumn("[bold]epoch {task.fields[epoch]}[/]"),
            BarColumn(bar_width=None),
            TextColumn("step {task.fields[step]}  {task.fields[figures]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=not (console.is_terminal and self.active),
            speed_estimate_period=600.0,
        )
        self.total = plan.steps_per_epoch
        self.task = self.progress.add_task(
            "", total=self.total * plan.recipe.epochs, epoch="", step="", figures=""
        )
        self.epoch_number = 0
        self.stats = EpochStats()
        self.last_line = time.monotonic()

    def __enter__(self) -> MetricLogger:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()
        self._each(lambda tracker: tracker.close())

    def begin(self, epoch: int, stats: EpochStats) -> None:
        """An epoch begins, or goes on from where `stats` is."""
        self.epoch_number, self.stats = epoch, stats
        self.meter.begin(epoch, stats)
        position = epoch, stats.step
        if self.active and (self.reached is None or position < self.reached):
            self._cut_log(epoch)
            self._each(lambda tracker: tracker.go_to(*position))
        self.reached = position
        self.progress.update(self.task, completed=epoch * self.total + stats.step)

    def step(self, step: StepResult) -> None:
        """One optimizer step is done."""
        if not self.active:
            return
        self.reached = self.epoch_number, step.number + 1
        if record := self.meter.add(step):
            self._each(lambda tracker: tracker.log_steps(record))
        stats = self.stats
        rate = stats.step * self.plan.recipe.batch_size / max(stats.seconds, 1e-9)
        wait = stats.data_seconds / max(stats.seconds, 1e-9)
        figures = f"loss {step.loss:.3f}  lr {step.lr:.2e}  {rate:,.0f} img/s  data wait {wait:.0%}"
        epochs = f"{self.epoch_number + 1}/{self.plan.recipe.epochs}"
        steps = f"{step.number + 1}/{self.total}"
        self.progress.update(self.task, advance=1, epoch=epochs, step=steps, figures=figures)
        if self._due(STEP_LINE_SECONDS):
            left = (self.plan.recipe.epochs - self.epoch_number) * self.total - step.number - 1
            left_seconds = left * stats.seconds / max(stats.step, 1)
            self._line(f"epoch {epochs}  step {steps}  {figures}  {duration(left_seconds)} left")

    def epoch(self, record: dict[str, Any]) -> None:
        """One epoch is done: show it, and append it to the log on disk."""
        if not self.active:
            return
        row = finite(record)
        log = [*read_log(self.log), row]
        recipe = self.plan.recipe
        status = compare_to_reference(self.curve, log, recipe.band) if self.curve else None
        number, last = record["epoch"] + 1, record["epoch"] + 1 == recipe.epochs
        if last or self._due(LINE_SECONDS):
            figures = f"loss {shown_figure(row['train_loss'], '{:.3f}')}"
            figures += f"  top-1 {shown_figure(row['val_top1'], '{:.2f} %')}"
            figures += f"  {row['images_per_second']:,.0f} img/s"
            if status is not None:
                figures += f"  {status.sentence(plan_differences(self.plan))}"
            self._line(f"epoch {number}/{recipe.epochs}  {figures}")
        with full_disk_as_error(self.log):
            append_line(self.log, record, sync=True)
        self._each(lambda tracker: tracker.log_epoch(record))

    def _each(self, act: Callable[[Tracker], None]) -> None:
        """Have every tracker do something; one that fails ends itself and not the run."""
        for tracker in list(self.trackers):
            try:
                act(tracker)
            except tracker.errors as error:
                self.trackers.remove(tracker)
                why = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
                why = " ".join(why.split()).removesuffix(".")
                self._line(f"no more is written for {tracker.name} ({why}); the run goes on")

    def _due(self, seconds: float) -> bool:
        """Whether it is time for another line; a terminal has its bar, and lines above it."""
        return time.monotonic() - self.last_line > seconds

    def _line(self, text: str) -> None:
        self.console.print(text, markup=False)
        self.last_line = time.monotonic()

    def _cut_log(self, first_epoch: int) -> None:
        """Drop what was logged beyond the state that the run continues from."""
        with full_disk_as_error(self.log):
            cut_lines(self.log, lambda number, _: number < first_epoch)
