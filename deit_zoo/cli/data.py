"""`deit-zoo data`: the embedded digits, other data checked or unpacked. Talk goes to stderr."""

from __future__ import annotations

import shlex
import sys
from dataclasses import asdict
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from deit_zoo.cli.console import Bar, out, print_error, print_json, print_table, talk
from deit_zoo.cli.options import (
    MOST,
    AsJson,
    LabelColumn,
    Threads,
    complete_name,
    example,
    path_option,
    with_label_column,
)
from deit_zoo.cli.program import Commands
from deit_zoo.errors import DataError
from deit_zoo.files import writing
from deit_zoo.recipes.recipe import count
from deit_zoo.terminal import one_line

IMAGENET = "imagenet"
TYPE_IMAGENET = (
    "type deit-zoo data prepare imagenet --train ILSVRC2012_img_train.tar --val "
    "ILSVRC2012_img_val.tar --output DIR"
)

data_app = typer.Typer(cls=Commands, no_args_is_help=True, help="Data sets of images.")


@data_app.command("digits", epilog=example("data digits --output digits"))
def digits_(output: Annotated[Path, path_option("A new folder.")]) -> None:
    """The embedded handwritten digits as an image folder with train/ and val/."""
    from deit_zoo.data.digits import NUM_IMAGES, NUM_VAL, write_folder

    with Bar("images") as bar:
        write_folder(output, bar)
    counts = f"{NUM_IMAGES - NUM_VAL} training and {NUM_VAL} validation images"
    talk.print(f"{counts} are in {escape(str(output))}")


@data_app.command("prepare", epilog=example("data prepare hfds:imagenet-1k --output imagenet"))
def prepare_(
    data: Annotated[str, typer.Argument(help="Any data set; or imagenet, with --train and --val.")],
    output: Annotated[Path, path_option("A new folder.")],
    train: Annotated[Path | None, path_option("ImageNet's training archive.")] = None,
    val: Annotated[Path | None, path_option("Its validation archive.")] = None,
    devkit: Annotated[
        Path | None, path_option("Its development kit, or Kaggle's LOC_val_solution.csv.")
    ] = None,
    label_column: LabelColumn = None,
    size: Annotated[
        int | None,
        typer.Option(min=1, help="Make larger images smaller: pixels of the short side."),
    ] = None,
    workers: Threads = None,
) -> None:
    """Write a folder tree with train/ and val/ from archives, tables, or any other data set.

    Whole or not at all; after a stop the same command goes on. --size changes pixels, and so
    results. ImageNet's archives are ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and
    ILSVRC2012_devkit_t12.tar.gz.
    """
    from deit_zoo.data.image_set import open_unchecked
    from deit_zoo.data.prepare import class_folder_names, imagenet_splits, write_tree
    from deit_zoo.machine import usable_cores

    archives = [file for file in (train, val, devkit) if file is not None]
    if archives and (train is None or val is None or data != IMAGENET or label_column):
        raise DataError(
            "--train, --val and --devkit are ImageNet's archives, and go with no other data set; "
            f"{TYPE_IMAGENET}, or leave them out"
        )
    if data == IMAGENET and not archives and not Path(data).exists():
        raise DataError(f"there is no folder {IMAGENET}; for ImageNet's archives {TYPE_IMAGENET}")
    if size is not None:
        talk.print(
            f"images whose short side is over {size} pixels get other pixels: what is trained or "
            "measured on them is not comparable with published figures"
        )
    try:
        with Bar("files") as bar:
            if train is not None and val is not None:
                splits = imagenet_splits(train, val, devkit, bar.advance)
            else:
                place = with_label_column(data, label_column)
                splits = {split: open_unchecked(place, split) for split in ("train", "val")}
        with Bar("images") as bar, writing(output):
            threads = workers or usable_cores()
            write_tree(splits, output, size=size, workers=threads, progress=bar)
    except KeyboardInterrupt:
        talk.print("stopped; the same command goes on from here")
        raise typer.Exit(130) from None
    classes = splits["train"].classes
    renamed = [
        f"{folder} for {name!r}"
        for name, folder in zip(classes, class_folder_names(classes), strict=True)
        if "/" in name or "\\" in name
    ]
    if renamed:
        talk.print(
            f"a folder's name holds no slash, so some classes have another: {renamed[0]}; a model "
            "trained on the tree does not know them by their former names",
            markup=False,
        )
    talk.print(
        f"{len(splits['train']):,} training and {len(splits['val']):,} validation images of "
        f"{count(len(splits['train'].classes), 'class')} are in {escape(str(output))}; to decode "
        f"them all, type: deit-zoo data check {escape(shlex.quote(str(output)))}"
    )


@data_app.command("check", epilog=example("data check digits"))
def check_(
    data: Annotated[
        str, typer.Argument(help="A folder with train/ and val/, archives, hfds:NAME ...")
    ],
    label_column: LabelColumn = None,
    workers: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Count the classes and decode every image; bad files are listed, each with a tab and why.

    train/ and val/ together, one of them alone, a folder of class folders, or of images.

    Exit 0: all is well; 1: a file is bad, or the classes do not fit.
    """
    from deit_zoo.data.image_list import check_there
    from deit_zoo.data.image_set import kind_of, open_unchecked, read_list
    from deit_zoo.data.survey import bad_images, class_remarks, copies, dark_images, inspect
    from deit_zoo.machine import usable_cores

    data = with_label_column(data, label_column)
    bad: list[tuple[str, str]] = []
    high_bytes: list[int] = []
    # A file's name may be any bytes; it is printed as it is, but to a terminal.
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")
    try:
        if kind_of(data) == "list":
            check_there(read_list(data))
        with Bar("files") as bar:
            splits, problem = inspect(data, bar)
        for split in splits.values():
            talk.print(f"[bold]{escape(split.name):<10}[/]  {escape(split.line())}")
        for sentence in class_remarks(*splits.values()):
            talk.print(sentence, markup=False)
        with Bar("images") as bar:
            sets = [open_unchecked(data, part, "upright") for part in splits]
            threads = workers or usable_cores()
            reading = bad_images(*sets, workers=threads, progress=bar, high_bytes=high_bytes)
            for name, reason in reading:
                bad.append((name, reason))
                if not as_json:
                    sys.stdout.write(f"{one_line(name) if out.is_terminal else name}\t{reason}\n")
                    sys.stdout.flush()
        for sentence in filter(None, (dark_images(high_bytes), copies(*sets))):
            talk.print(sentence, markup=False)
    except KeyboardInterrupt:
        talk.print(f"stopped; {count(len(bad), 'bad image')} so far")
        raise typer.Exit(130) from None
    if as_json:
        parts = {name: asdict(split) | {"images": split.images} for name, split in splits.items()}
        files = [{"file": name, "reason": reason} for name, reason in bad]
        print_json({"data": data, **parts, "problem": problem, "bad": files})
    if problem:
        print_error(problem)
    images = count(sum(split.images for split in splits.values()), "image")
    talk.print(f"{images} read, {len(bad):,} bad")
    if bad or problem:
        raise typer.Exit(1)


@data_app.command("benchmark", epilog=example("data benchmark digits --images 64"))
def benchmark_(
    data: Annotated[str, typer.Argument(help="A folder with train/ and val/, archives, ...")],
    label_column: LabelColumn = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="Any spelling; again for more (deit_tiny, deit_small, deit_base).",
            autocompletion=complete_name,
            show_default=False,
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, max=MOST, help="Loader processes (default: as in training)."),
    ] = None,
    images: Annotated[int, typer.Option(min=64, help="Images read in each stage.")] = 2048,
    as_json: AsJson = False,
) -> None:
    """Images per second of each stage of loading here, and how many cores feed a model.

    Models are measured on the GPU at hand; without one the rates are those of an H200.
    """
    from deit_zoo.data.image_set import open_set
    from deit_zoo.recipes.plan import default_workers
    from deit_zoo.training.checks import check_extra
    from deit_zoo.training.data_benchmark import measure

    check_extra()
    data = with_label_column(data, label_column)
    names = model or ["deit_tiny", "deit_small", "deit_base"]
    processes = workers or default_workers(1)
    with Bar("stages") as bar:
        stages, needs = measure(
            open_set(data, "train"), names, workers=processes, num_images=images, progress=bar
        )
    if as_json:
        print_json({"stages": list(map(asdict, stages)), "models": list(map(asdict, needs))})
        return
    rows = [
        (f"{stage.images_per_second:,.0f}", str(stage.processes or ""), stage.name)
        for stage in stages
    ]
    print_table([("img/s", "processes", "stage"), *rows], right=(0, 1))
    out.print()
    for need in needs:
        out.print(need.sentence())
