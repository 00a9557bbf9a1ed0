"""What a person sees of a run, and what stays: a bar or plain lines, log.jsonl, TensorBoard."""

from __future__ import annotations

import json
import os
import time
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
BOARD_FIGURES = ("lr", "train_loss", "val_loss", "val_top1", "val_top5", "images_per_second")
LINE_SECONDS = 10.0


class Watch:
    """Progress on stderr (a bar on a terminal, one line per epoch elsewhere) and the logs."""

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
        self.last_line = 0.0
        self._cut_log(first_epoch)

        from torch.utils.tensorboard import SummaryWriter

        self.board = SummaryWriter(output / "tensorboard", purge_step=first_epoch)

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
        self.board.close()

    def step(self, _loss: float) -> None:
        """One optimizer step is done."""
        self.progress.advance(self.task)

    def epoch(self, record: dict[str, Any]) -> None:
        """One epoch is done: show it, and append it to the log on disk."""
        figures = f"loss {record['train_loss']:.3f}  top-1 {record['val_top1']:.2f} %"
        self.progress.update(self.task, figures=figures)
        self._line(record["epoch"] + 1, f"{figures}  {record['images_per_second']:.0f} img/s")
        with self.log.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(record) + "\n")
            stream.flush()
            os.fsync(stream.fileno())

        for figure in BOARD_FIGURES:
            self.board.add_scalar(figure, record[figure], record["epoch"])

    def _line(self, epoch: int, figures: str) -> None:
        """Away from a terminal, say where the run is: the last epoch, and others in moderation."""
        epochs = self.plan.recipe.epochs
        rested = time.monotonic() - self.last_line > LINE_SECONDS
        if not self.console.is_terminal and (rested or epoch == epochs):
            self.console.print(f"epoch {epoch}/{epochs}  {figures}")
            self.last_line = time.monotonic()

    def _cut_log(self, first_epoch: int) -> None:
        """Drop what an interrupted run logged beyond the state that it continues from."""
        lines = self.log.read_text(encoding="utf-8").splitlines() if self.log.is_file() else []
        write_whole(self.log, "".join(f"{line}\n" for line in lines[:first_epoch]).encode())
