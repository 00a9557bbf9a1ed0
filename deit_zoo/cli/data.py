"""`deit-zoo data`: the embedded digits, and a check of other data. Talk goes to stderr."""

from __future__ import annotations

import sys
from dataclasses import asdict
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from deit_zoo.cli.console import Bar, print_error, print_json, talk
from deit_zoo.cli.options import AsJson

if TYPE_CHECKING:
    from deit_zoo.data.survey import Survey

data_app = typer.Typer(no_args_is_help=True, help="Data sets of images.")


@data_app.command("digits")
def digits_(output: Annotated[Path, typer.Option(help="A new folder.")]) -> None:
    """The embedded handwritten digits as an image folder with train/ and val/."""
    from deit_zoo.data.digits import NUM_IMAGES, NUM_VAL, write_folder

    with Bar("images") as bar:
        write_folder(output, bar)
    talk.print(f"{NUM_IMAGES - NUM_VAL} training and {NUM_VAL} validation images are in {output}")


@data_app.command("check")
def check_(
    data: Annotated[str, typer.Argument(help="A folder with train/ and val/, or hfds:NAME.")],
    workers: Annotated[
        int | None, typer.Option(min=1, help="Threads that decode (default: one per core).")
    ] = None,
    as_json: AsJson = False,
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
        with Bar("files") as bar:
            survey = scan(data, bar)
        for label, line in survey.lines():
            talk.print(f"[bold]{escape(label):<10}[/]  {escape(line)}")
        with Bar("images") as bar:
            both = (open_unchecked(data, "train"), open_unchecked(data, "val"))
            threads = workers or usable_cores()
            for name, reason in bad_images(*both, workers=threads, progress=bar):
                bad.append((name, reason))
                if not as_json:
                    sys.stdout.write(f"{name}\t{reason}\n")
                    sys.stdout.flush()
    except KeyboardInterrupt:
        talk.print(f"stopped; {_count(len(bad), 'bad image')} so far")
        raise typer.Exit(130) from None
    if as_json:
        print_json(_as_dict(survey, bad))
    if survey.problem:
        print_error(survey.problem)
    images = _count(survey.train.images + survey.val.images, "image")
    talk.print(f"{images} read, {len(bad):,} bad")
    if bad or survey.problem:
        raise typer.Exit(1)


def _as_dict(survey: Survey, bad: list[tuple[str, str]]) -> dict[str, Any]:
    splits = {
        name: asdict(split) | {"images": split.images}
        for name, split in (("train", survey.train), ("val", survey.val))
    }
    files = [{"file": name, "reason": reason} for name, reason in bad]
    return {"data": survey.data, **splits, "problem": survey.problem, "bad": files}


def _count(number: int, noun: str) -> str:
    return f"1 {noun}" if number == 1 else f"{number:,} {noun}s"
