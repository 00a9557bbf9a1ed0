"""What every command says and how: data to stdout, talk to stderr."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from deit_zoo.errors import DataError, ImageSizeError
from deit_zoo.registry import MODELS

out = Console(highlight=False, soft_wrap=True)
talk = Console(stderr=True, highlight=False, soft_wrap=True)
PNG = b"\x89PNG\r\n\x1a\n"


def complete_name(incomplete: str) -> list[str]:
    """The models whose names begin so, for the shell."""
    return [name for name in MODELS if name.startswith(incomplete.lower().replace("-", "_"))]


Name = Annotated[str, typer.Argument(help="Any spelling of a model.", autocompletion=complete_name)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def print_json(value: Any) -> None:
    """Data, for programs."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def print_rows(console: Console, rows: Sequence[tuple[str, str]]) -> None:
    """Labels and values in two columns; a long value is left whole, for copying."""
    width = max(len(label) for label, _ in rows)
    for label, value in rows:
        console.print(f"[bold]{label:<{width}}[/]  {escape(value)}")


def pixels(img_size: str) -> int | tuple[int, int]:
    """`224`, or `192x256` for height and width."""
    if not (parts := re.fullmatch(r"(\d+)(?:x(\d+))?", img_size)):
        raise ImageSizeError(f"--img-size is {img_size!r}; give pixels as 224, or 192x256 (HxW)")
    height = int(parts[1])
    return (height, int(parts[2])) if parts[2] else height


class Bar:
    """A progress bar on stderr, shown on a terminal only; called with (done, all)."""

    def __init__(self, what: str) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
        from rich.progress import TimeRemainingColumn as Remaining

        columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), Remaining())
        self.progress = Progress(
            *columns,
            console=talk,
            transient=True,
            disable=not talk.is_terminal,
            # A bar would take what is printed to stdout to where it stands itself.
            redirect_stdout=sys.stdout.isatty(),
        )
        self.task = self.progress.add_task(what, total=None)

    def __enter__(self) -> Bar:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def __call__(self, done: int, total: int | None = None) -> None:
        self.progress.update(self.task, completed=done, total=total)


def check_picture(file: Path) -> None:
    """Raises DataError where a picture must not or cannot be put."""
    if file.suffix.lower() != ".png":
        raise DataError(f"{file} is no name of a PNG; type --output FILE.png")
    if file.is_dir():
        raise DataError(f"{file} is a folder; type --output FILE.png")
    if not file.parent.is_dir():
        raise DataError(f"there is no folder {file.parent}; make it, or give another --output")
    with writing(file):
        held = file.read_bytes() if file.exists() else PNG
    if not held.startswith(PNG):
        raise DataError(f"{file} is there and no PNG; give another --output")


@contextmanager
def writing(file: Path) -> Iterator[None]:
    """Within it, what the disk refuses becomes one sentence."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{file} cannot be written ({error.strerror}); give another --output"
        ) from error
