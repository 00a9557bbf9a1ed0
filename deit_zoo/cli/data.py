"""`deit-zoo data`: the embedded digits, and a check of other data. Talk goes to stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from deit_zoo.cli.console import talk

if TYPE_CHECKING:
    from deit_zoo.data.survey import Survey

data_app = typer.Typer(no_args_is_help=True, help="Data sets of images.")


@data_app.command("digits")
def digits_(output: Annotated[Path, typer.Option(help="A new folder.")]) -> None:
    """The embedded handwritten digits as an image folder with train/ and val/."""
    from deit_zoo.data.digits import NUM_IMAGES, NUM_VAL, write_folder

    with _bar("images") as bar:
        write_folder(output, bar)
    talk.print(f"{NUM_IMAGES - NUM_VAL} training and {NUM_VAL} validation images are in {output}")


@data_app.command("check")
def check_(
    data: Annotated[str, typer.Argument(help="A folder with train/ and val/, or hfds:NAME.")],
    workers: Annotated[
        int | None, typer.Option(min=1, help="Threads that decode (default: one per core).")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Count the classes and decode every image; bad files are listed, each with a tab and why.

    Exit 0: training can begin; 1: a file is bad, or the classes do not fit.
    """
    from deit_zoo.data.image_set import open_unchecked
    from deit_zoo.data.survey import bad_images, scan
    from deit_zoo.machine import usable_cores

    bad: list[tuple[str, str]] = []
    # A file's name may be any bytes; it is printed as it is.
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")
    try:
        with _bar("files") as listed:
            found = scan(data, lambda files: listed(files, None))
        for label, line in found.lines():
            talk.print(f"[bold]{escape(label):<10}[/]  {escape(line)}")
        with _bar("images") as decoded:
            both = (open_unchecked(data, "train"), open_unchecked(data, "val"))
            threads = workers or usable_cores()
            for name, reason in bad_images(*both, workers=threads, progress=decoded):
                bad.append((name, reason))
                if not as_json:
                    sys.stdout.write(f"{name}\t{reason}\n")
                    sys.stdout.flush()
    except KeyboardInterrupt:
        talk.print(f"stopped; {_count(len(bad), 'bad image')} so far")
        raise typer.Exit(130) from None
    if as_json:
        _print_json(found, bad)
    if found.problem:
        talk.print(f"[bold red]error:[/] {escape(found.problem)}")
    images = _count(found.train.images + found.val.images, "image")
    talk.print(f"{images} read, {len(bad):,} bad")
    if bad or found.problem:
        raise typer.Exit(1)


def _print_json(found: Survey, bad: list[tuple[str, str]]) -> None:
    splits = {
        split: asdict(held) | {"images": held.images}
        for split, held in (("train", found.train), ("val", found.val))
    }
    files = [{"file": name, "reason": reason} for name, reason in bad]
    held = {"data": found.data, **splits, "problem": found.problem, "bad": files}
    sys.stdout.write(json.dumps(held, indent=2, ensure_ascii=False) + "\n")


def _count(number: int, what: str) -> str:
    return f"1 {what}" if number == 1 else f"{number:,} {what}s"


@contextmanager
def _bar(what: str) -> Iterator[Callable[[int, int | None], None]]:
    """A bar of things done on stderr, on a terminal only; called with (done, all)."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeRemainingColumn as Remaining

    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), Remaining())
    with Progress(
        *columns,
        console=talk,
        transient=True,
        disable=not talk.is_terminal,
        # What goes into a file or a pipe is not for the bar to print.
        redirect_stdout=sys.stdout.isatty(),
    ) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
