"""What a person sees of a run, and what stays: a progress bar or plain lines, and log.jsonl."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from deit_zoo.files import write_whole
from deit_zoo.training.plan import Plan

LOG_FILE = "log.jsonl"


class Watch:
    """Progress on stderr (a bar on a terminal, one line per epoch elsewhere) and the log file."""

    def __init__(self, plan: Plan, output: Path, first_epoch: int) -> None:
        self.plan = plan
        self.log = output / LOG_FILE
        self.console = Console(stderr=True)
        self.progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        steps = plan.steps_per_epoch
        self.task = self.progress.add_task(
            "steps",
            total=steps * plan.recipe.epochs,
            completed=steps * first_epoch,
            figures="",
        )
        self._cut_log(first_epoch)

    def __enter__(self) -> Watch:
        self.progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.progress.stop()

    def step(self, _loss: float) -> None:
        """One optimizer step is done."""
        self.progress.advance(self.task)

    def epoch(self, record: dict[str, Any]) -> None:
        """One epoch is done: show it, and append it to the log on disk."""
        figures = f"loss {record['train_loss']:.3f}"
        if record["val_top1"] is not None:
            figures += f"  top-1 {record['val_top1']:.2f} %"
        self.progress.update(self.task, figures=figures)
        if not self.console.is_terminal:
            epochs = self.plan.recipe.epochs
            speed = f"{record['images_per_second']:.0f} img/s"
            self.console.print(f"epoch {record['epoch'] + 1}/{epochs}  {figures}  {speed}")
        with self.log.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(record) + "\n")
            stream.flush()
            os.fsync(stream.fileno())

    def _cut_log(self, first_epoch: int) -> None:
        """Drop what an interrupted run logged beyond the state that it continues from."""
        lines = self.log.read_text(encoding="utf-8").splitlines() if self.log.is_file() else []
        write_whole(self.log, "".join(f"{line}\n" for line in lines[:first_epoch]).encode())
