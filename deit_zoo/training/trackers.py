"""Where the figures of a run go beside log.jsonl: steps.jsonl, TensorBoard, trackio or wandb.

They help to look at a run, and nothing depends on them: one that fails ends itself and not the run.
"""

from __future__ import annotations

import os
import secrets
import sys
from abc import ABC, abstractmethod
from contextlib import redirect_stdout
from importlib import import_module
from pathlib import Path
from typing import Any

from deit_zoo.files import STEPS_FILE, parse_json, write_whole
from deit_zoo.recipes.plan import Plan
from deit_zoo.runs.json_lines import append_line, cut_lines

ROLLED_BACK_FILE = "steps.rolled_back.jsonl"
RUN_ID_FILE = "run_id"
PROJECT = "deit_zoo"


class Tracker(ABC):
    """One such place; `errors` are those that end it. Nothing is opened before `go_to`."""

    name: str
    errors: tuple[type[Exception], ...] = (OSError,)

    @abstractmethod
    def go_to(self, epoch: int, step: int) -> None:
        """The run begins, continues or goes back to here; what was told from here on is void."""

    @abstractmethod
    def log_steps(self, record: dict[str, Any]) -> None:
        """Take what a line of steps.jsonl says."""

    @abstractmethod
    def log_epoch(self, record: dict[str, Any]) -> None:
        """Take what a line of log.jsonl says."""

    def close(self) -> None:  # noqa: B027 (a file has nothing to end)
        """The run ends or stops."""


def trackers_for(plan: Plan, output: Path) -> list[Tracker]:
    """The trackers of a run."""
    trackers: list[Tracker] = [StepsFile(output), TensorBoard(plan, output)]
    if plan.log_to != "none":
        trackers.append(PackageTracker(plan, output))
    return trackers


class StepsFile(Tracker):
    """steps.jsonl: a line is there at once, and on the disk when its epoch ends.

    Of a run that goes back it keeps apart what tells of a skipped step: that is what one debugs.
    """

    name = STEPS_FILE

    def __init__(self, output: Path) -> None:
        self.file = output / STEPS_FILE
        self.rolled_back = output / ROLLED_BACK_FILE

    def go_to(self, epoch: int, step: int) -> None:
        def stays(line: bytes) -> bool:
            row = _read(line)
            return bool(row) and (row["epoch"], row["step"]) < (epoch, step)

        cut = [line for line in cut_lines(self.file, stays) if _read(line)]
        if any(_read(line)["skipped"] for line in cut):
            with self.rolled_back.open("ab") as stream:
                stream.writelines(cut)

    def log_steps(self, record: dict[str, Any]) -> None:
        append_line(self.file, record)

    def log_epoch(self, record: dict[str, Any]) -> None:
        with self.file.open("rb+") as stream:
            os.fsync(stream.fileno())


class TensorBoard(Tracker):
    """`tensorboard/` by epoch and `tensorboard/steps/` by step.

    Two folders, as TensorBoard hides by one number what a run went back over: here an epoch, there
    a step.
    """

    name = "TensorBoard"

    def __init__(self, plan: Plan, output: Path) -> None:
        self.total = plan.steps_per_epoch
        self.folder = output / "tensorboard"
        self.writers: list[Any] = []

    def go_to(self, epoch: int, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.close()
        by_epoch = SummaryWriter(self.folder, purge_step=epoch)
        by_step = SummaryWriter(self.folder / "steps", purge_step=epoch * self.total + step)
        self.writers = [by_epoch, by_step]

    def log_steps(self, record: dict[str, Any]) -> None:
        by_step = self.writers[1]
        for name, value in step_figures(record).items():
            by_step.add_scalar(name, value, global_step(record, self.total))

    def log_epoch(self, record: dict[str, Any]) -> None:
        by_epoch = self.writers[0]
        for name, value in figures(record).items():
            by_epoch.add_scalar(name, value, record["epoch"])

    def close(self) -> None:
        for writer in self.writers:
            writer.close()


class PackageTracker(Tracker):
    """A run of `trackio` or `wandb`, through what both have: init, log and finish.

    A run that continues goes on in the run that it began there; what is logged twice on the way,
    each package shows as it does.
    """

    errors = (Exception,)

    def __init__(self, plan: Plan, output: Path) -> None:
        self.name = plan.log_to
        self.plan = plan
        self.output = output
        self.package: Any = None

    def go_to(self, epoch: int, step: int) -> None:
        if self.package is not None:
            return
        package = import_module(self.name)
        file = self.output / RUN_ID_FILE
        is_new = not file.is_file()
        run_id = secrets.token_hex(8) if is_new else file.read_text(encoding="utf-8").strip()
        # wandb knows a run by its id, trackio by its name, which another folder's run may have too.
        options = {"id": run_id, "resume": "allow"}
        if self.name == "trackio":
            options = {"resume": "never" if is_new else "allow"}
        chosen = os.environ if self.name == "wandb" else {}  # trackio has no such variables
        with redirect_stdout(sys.stderr):
            package.init(
                project=chosen.get("WANDB_PROJECT") or PROJECT,
                name=chosen.get("WANDB_NAME") or self.output.resolve().name,
                config=self.plan.to_dict(),
                **options,
            )
        write_whole(file, f"{run_id}\n".encode())
        self.package = package

    def log_steps(self, record: dict[str, Any]) -> None:
        step = global_step(record, self.plan.steps_per_epoch)
        self.package.log(step_figures(record), step=step)

    def log_epoch(self, record: dict[str, Any]) -> None:
        last_step = (record["epoch"] + 1) * self.plan.steps_per_epoch - 1
        self.package.log(figures(record), step=last_step)

    def close(self) -> None:
        if self.package is not None:
            with redirect_stdout(sys.stderr):
                self.package.finish()


def _read(line: bytes) -> dict[str, Any]:
    """What a line of steps.jsonl says; nothing where it is torn."""
    try:
        row = parse_json(line, STEPS_FILE) if line.endswith(b"\n") else {}
    except ValueError:
        return {}
    numbers = ("epoch", "step", "skipped")
    sound = isinstance(row, dict) and all(isinstance(row.get(name), int) for name in numbers)
    return row if sound else {}


def figures(record: dict[str, Any]) -> dict[str, float]:
    """What of a record can be drawn."""
    return {name: value for name, value in record.items() if isinstance(value, int | float)}


def step_figures(record: dict[str, Any]) -> dict[str, float]:
    """The same of a line of steps.jsonl, named apart from those of epochs."""
    return {f"step/{name}": value for name, value in figures(record).items()}


def global_step(record: dict[str, Any], steps_per_epoch: int) -> int:
    """The number of a step within the run, from 0."""
    return int(record["epoch"] * steps_per_epoch + record["step"])
