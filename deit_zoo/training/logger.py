"""What a person sees of a run, and what stays: a bar or plain lines, log.jsonl, and trackers."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import Progress, Task
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from deit_zoo.errors import DataError
from deit_zoo.files import LOG_FILE, write_whole
from deit_zoo.recipes.plan import Plan
from deit_zoo.recipes.recipe import duration
from deit_zoo.runs.json_lines import finite, to_line
from deit_zoo.runs.log import counted
from deit_zoo.runs.reference import (
    compare_to_reference,
    plan_differences,
    published_curve,
    rows_of_log,
    shown_figure,
)
from deit_zoo.terminal import Cell, clock
from deit_zoo.training.step_meter import StepMeter
from deit_zoo.training.steps import EpochStats, StepResult
from deit_zoo.training.trackers import Tracker, trackers_for

LINE_SECONDS, STEP_LINE_SECONDS = 10.0, 60.0
# What a line says in its order, and, where there is no room for all, what is kept first.
IN_LINES = ("epoch", "step", "loss", "lr", "rate", "wait", "best", "memory")
BY_WORTH = ("epoch", "left", "loss", "step", "bar", "best", "rate", "wait", "memory", "lr")
STYLES = {"epoch": "bold"}
BAR_WIDTH, GAP = 10, 2


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


class FittedProgress(Progress):
    """A bar with as many figures as the terminal has room for, the most useful first."""

    def get_renderables(self) -> Iterable[RenderableType]:
        """One line for each task, never longer than the terminal is wide."""
        yield from map(self._line, self.tasks)

    def _line(self, task: Task) -> Table:
        left = task.time_remaining
        shown = task.fields["figures"] | {"left": "" if left is None else f"{clock(left)} left"}
        widths = {name: len(shown[name]) for name in shown if shown[name]} | {"bar": BAR_WIDTH}
        kept, room = set[str](), self.console.width + GAP
        for name in (name for name in BY_WORTH if name in widths):
            if (width := widths[name] + GAP) > room:
                break
            kept.add(name)
            room -= width
        line = Table.grid(padding=(0, GAP, 0, 0), pad_edge=False)
        cells: list[RenderableType] = []
        for name in (IN_LINES[0], "bar", *IN_LINES[1:], "left"):
            if name in kept:
                bar = ProgressBar(task.total, task.completed, width=BAR_WIDTH + room)
                cells.append(bar if name == "bar" else Text(shown[name], STYLES.get(name, "")))
        line.add_row(*cells)
        return line


class MetricLogger:
    """Progress on stderr (a bar on a terminal and in a notebook, lines elsewhere) and the logs."""

    def __init__(self, plan: Plan, output: Path, console: Console) -> None:
        self.plan = plan
        self.log = output / LOG_FILE
        self.lines: list[str] = []  # of the log
        self.console = console
        self.active = not console.quiet
        self.trackers = trackers_for(plan, output) if self.active else []
        self.meter = StepMeter(plan)
        self.reached: tuple[int, int] | None = None  # epoch and step, of what is logged so far
        self.curve = published_curve(plan.recipe)
        self.progress = FittedProgress(
            console=console,
            disable=not (console.is_terminal and self.active),
            speed_estimate_period=600.0,
        )
        self.cell = Cell()
        self.total = plan.steps_per_epoch
        self.task = self.progress.add_task("", total=self.total * plan.recipe.epochs, figures={})
        self.best: float | None = None  # of all epochs, the figure that counts
        self.memory: int | None = None  # bytes, at the last line of steps.jsonl
        self.epoch_number = 0
        self.stats = EpochStats()
        self.last_line = time.monotonic()

    def __enter__(self) -> MetricLogger:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()
        self.cell.clear()
        self._each(lambda tracker: tracker.close())

    def begin(self, epoch: int, stats: EpochStats, lines: Sequence[str]) -> None:
        """An epoch begins, or goes on from where `stats` is; `lines` are the log so far."""
        self.epoch_number, self.stats = epoch, stats
        self.meter.begin(epoch, stats)
        position = epoch, stats.step
        if self.active and (self.reached is None or position < self.reached):
            self.keep_log(lines)
            self._each(lambda tracker: tracker.go_to(*position))
            self.best = None  # which an epoch that was given up may have been
            for row in rows_of_log(self.lines, self.log):
                self._keep_best(counted(row)[1])
        self.reached = position
        self.progress.update(self.task, completed=epoch * self.total + stats.step)

    def step(self, step: StepResult) -> None:
        """One optimizer step is done."""
        if not self.active:
            return
        done = step.number + 1
        self.reached = self.epoch_number, done
        if record := self.meter.add(step):
            self._each(lambda tracker: tracker.log_steps(record))
            self.memory = record["memory"]
        stats = self.stats
        rate = stats.step * self.plan.recipe.batch_size / max(stats.seconds, 1e-9)
        wait = stats.data_seconds / max(stats.seconds, 1e-9)
        shown = {
            "epoch": f"epoch {self.epoch_number + 1}/{self.plan.recipe.epochs}",
            "step": f"step {done}/{self.total}" if done < self.total else "measuring",
            "loss": f"loss {step.loss:.3f}",
            "lr": f"lr {step.lr:.2e}",
            "rate": f"{rate:,.0f} img/s",
            "wait": f"data wait {wait:.0%}",
            "best": "" if self.best is None else f"best {self.best:.2f} %",
            "memory": "" if self.memory is None else f"{self.memory / 2**30:.1f} GiB",
        }
        self.progress.update(self.task, advance=1, figures=shown)
        self.cell.show(self.progress.tasks[0], *filter(None, map(shown.get, IN_LINES)))
        if self._due(STEP_LINE_SECONDS):
            left = (self.plan.recipe.epochs - self.epoch_number) * self.total - done
            left_seconds = left * stats.seconds / max(stats.step, 1)
            figures = [shown[name] for name in IN_LINES if shown[name]]
            self._line(f"{'  '.join(figures)}  {duration(left_seconds)} left")

    def epoch(self, record: dict[str, Any]) -> None:
        """One epoch is done: show it, and append it to the log on disk."""
        if not self.active:
            return
        row = finite(record)
        self._keep_best(counted(row)[1])
        log = [*rows_of_log(self.lines, self.log), row]
        recipe = self.plan.recipe
        status = compare_to_reference(self.curve, log, recipe.band) if self.curve else None
        number, last = record["epoch"] + 1, record["epoch"] + 1 == recipe.epochs
        if last or self._due(LINE_SECONDS):
            figures = f"loss {shown_figure(row['train_loss'], '{:.3f}')}"
            name, value = counted(row)
            figures += f"  {name} {shown_figure(value, '{:.2f} %')}"
            if "ema_loss" in row:
                average = row.get("ema_mean_ap", row["ema_top1"])
                figures += f" (moving average {shown_figure(average, '{:.2f} %')})"
            figures += f"  {row['images_per_second']:,.0f} img/s"
            if status is not None:
                figures += f"  {status.sentence(plan_differences(self.plan))}"
            self._line(f"epoch {number}/{recipe.epochs}  {figures}")
        self.keep_log([*self.lines, to_line(record)])
        if self.meter.steps:  # those after them were left out
            steps = self.meter.flush()
            self._each(lambda tracker: tracker.log_steps(steps))
        self._each(lambda tracker: tracker.log_epoch(record))

    def _keep_best(self, figure: float | None) -> None:
        if figure is not None:
            self.best = max(figure, self.best or 0.0)

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

    def keep_log(self, rows: Sequence[str]) -> None:
        """Have the log on the disk be these lines, whatever was done to the file."""
        if not self.active:
            return
        self.lines = list(rows)
        lines = "".join(rows).encode()
        with full_disk_as_error(self.log):
            written = self.log.read_bytes() if self.log.is_file() else b""
            if self.log.is_file() and lines.startswith(written):
                with self.log.open("ab") as stream:  # who follows the file sees the line
                    stream.write(lines[len(written) :])
                    stream.flush()
                    os.fsync(stream.fileno())
                return
            if not written.startswith(lines):
                self._line(f"{self.log} is not as this run wrote it; it is written again")
            self.log.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self.log, lines)
