"""What a person sees of a run, and what stays: a bar or plain lines, log.jsonl, TensorBoard."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from deit_zoo.errors import DataError
from deit_zoo.files import LOG_FILE, write_whole
from deit_zoo.recipes.plan import Plan
from deit_zoo.recipes.recipe import duration
from deit_zoo.runs.reference import compare_to_reference, plan_differences, published_curve
from deit_zoo.training.loop import EpochStats, StepResult

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

    def __init__(self, plan: Plan, output: Path, first_epoch: int, console: Console) -> None:
        self.plan = plan
        self.log = output / LOG_FILE
        self.console = console
        self.active = not console.quiet
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
        self.epoch_number = first_epoch
        self.stats = EpochStats()
        self.last_line = time.monotonic()
        self.board: Any = None
        if self.active:
            self._cut_log(first_epoch)
            from torch.utils.tensorboard import SummaryWriter

            with self._tensorboard_may_fail():
                self.board = SummaryWriter(output / "tensorboard", purge_step=first_epoch)

    def __enter__(self) -> MetricLogger:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()
        with self._tensorboard_may_fail():
            if self.board is not None:
                self.board.close()

    def begin(self, epoch: int, stats: EpochStats) -> None:
        """An epoch begins, or goes on from where `stats` is."""
        self.epoch_number, self.stats = epoch, stats
        if self.active:
            self._cut_log(epoch)
        self.progress.update(self.task, completed=epoch * self.total + stats.step)

    def step(self, step: StepResult) -> None:
        """One optimizer step is done."""
        if not self.active:
            return
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
        log = [*self._rows(), record]
        recipe = self.plan.recipe
        status = compare_to_reference(self.curve, log, recipe.band) if self.curve else None
        number, last = record["epoch"] + 1, record["epoch"] + 1 == recipe.epochs
        if last or self._due(LINE_SECONDS):
            figures = f"loss {record['train_loss']:.3f}  top-1 {record['val_top1']:.2f} %"
            figures += f"  {record['images_per_second']:,.0f} img/s"
            if status is not None:
                figures += f"  {status.sentence(plan_differences(self.plan))}"
            self._line(f"epoch {number}/{recipe.epochs}  {figures}")
        with full_disk_as_error(self.log), self.log.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(record) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        with self._tensorboard_may_fail():
            if self.board is not None:
                for figure, value in record.items():
                    self.board.add_scalar(figure, value, record["epoch"])

    @contextmanager
    def _tensorboard_may_fail(self) -> Iterator[None]:
        """Within it, a full disk ends TensorBoard's file and not the run."""
        try:
            yield
        except OSError as error:
            self.board = None
            self._line(f"no more is written for TensorBoard ({error.strerror}); the run goes on")

    def _due(self, seconds: float) -> bool:
        """Whether it is time for another line; a terminal has its bar, and lines above it."""
        return time.monotonic() - self.last_line > seconds

    def _line(self, text: str) -> None:
        self.console.print(text, markup=False)
        self.last_line = time.monotonic()

    def _rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text(encoding="utf-8").splitlines()]

    def _cut_log(self, first_epoch: int) -> None:
        """Drop what was logged beyond the state that the run continues from."""
        lines = self.log.read_text(encoding="utf-8").splitlines() if self.log.is_file() else []
        if len(lines) > first_epoch or not self.log.is_file():
            with full_disk_as_error(self.log):
                kept = "".join(f"{line}\n" for line in lines[:first_epoch])
                write_whole(self.log, kept.encode())
