"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from deit_zoo.errors import DataError, ImageSizeError
from deit_zoo.files import expand_user
from deit_zoo.recipes.recipe import Pixels, read_size
from deit_zoo.registry import MODELS


def complete_name(incomplete: str) -> list[str]:
    """The models whose names begin so, else their other names that do, for the shell."""
    if names := [name for name in MODELS if name.startswith(incomplete)]:
        return names
    return [
        name for spec in MODELS.values() for name in spec.aliases if name.startswith(incomplete)
    ]


def complete_recipe(incomplete: str) -> list[str]:
    """The models and recipes whose names begin so, for the shell."""
    from deit_zoo.recipes import RECIPES

    names = dict.fromkeys((*complete_name(incomplete), *RECIPES))
    return [name for name in names if name.startswith(incomplete)]


def example(words: str) -> str:
    """The end of a command's help."""
    return f"Example: deit-zoo {words}"


def path(text: str) -> Path:
    """A path that was typed, with its `~`, which no shell fills in in --output=~/runs."""
    if not text.strip():  # as of a variable that is not set; it would be the current folder
        raise typer.BadParameter(f"{text!r} is no path; give one")
    return expand_user(text)


def path_option(help: str, metavar: str | None = None) -> Any:
    """An option that takes a path."""
    return typer.Option(metavar=metavar, help=help, parser=path)


MOST = 1024  # of processes, threads or machines; a larger number is a slip
MODEL_OR_RUN = "A model by any of its names, a run's folder, a file of weights, or hf://ORG/REPO."
Name = Annotated[
    str, typer.Argument(help="A model by any of its names.", autocompletion=complete_name)
]
RecipeName = Annotated[
    str,
    typer.Argument(
        help="A model by any of its names, or a recipe.", autocompletion=complete_recipe
    ),
]
NameOrRun = Annotated[str, typer.Argument(help=MODEL_OR_RUN, autocompletion=complete_name)]
Model = Annotated[str, typer.Option(help=MODEL_OR_RUN, autocompletion=complete_name)]
Device = Annotated[str, typer.Option(help="auto (the best that is there), cpu, cuda, cuda:1, mps.")]
ImgSize = Annotated[
    str | None,
    typer.Option(
        metavar="N|HxW",
        help="224, or 192x256 for height and width, in whole patches (default: the model's own).",
    ),
]
LabelColumn = Annotated[
    str | None,
    typer.Option(
        metavar="COLUMN", help="The column of the labels, where a table or CSV has several."
    ),
]
OtherWeights = Annotated[
    str | None,
    typer.Option(
        help="Use these weights, not the published ones: a file, a folder, hf://ORG/REPO."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Parquet = Annotated[
    bool, typer.Option("--parquet", help="With predictions.csv also predictions.parquet.")
]
FiguresAsJson = Annotated[
    bool, typer.Option("--json", help="Print the figures; a picture only with --output.")
]

Threads = Annotated[
    int | None,
    typer.Option(min=1, max=MOST, help="Threads that read images (default: one per core)."),
]

# Of commands that train.
TrainData = Annotated[
    str | None, typer.Option(help="A folder with train/ and val/, archives, hfds:NAME ...")
]
Gpus = Annotated[int | None, typer.Option(help="GPUs; 0 is the CPU. One device unless given.")]
Processes = Annotated[int | None, typer.Option(min=1, max=MOST, help="Processes, on the CPU.")]
Changes = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="FIELD=VALUE",
        help="Change a field of the recipe or a setting of the machine, such as lr=1e-4, "
        "class_weights=balanced or sampling=balanced; may be repeated. `info NAME --recipe` shows "
        "the fields, docs/imagenet.md the settings.",
    ),
]
TrainWorkers = Annotated[
    int | None,
    typer.Option(
        min=0,
        max=MOST,
        help="Processes that read images, for each that trains (default: by cores).",
    ),
]
LogTo = Annotated[
    str | None, typer.Option(metavar="trackio|wandb", help="Log there too, if it is installed.")
]
Resume = Annotated[
    str, typer.Option(help="auto: continue a run found in --output; never: refuse it.")
]
Slurm = Annotated[Path | None, path_option("Write a Slurm script for this run, and stop.", "FILE")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")]


def with_label_column(data: str, column: str | None) -> str:
    """The data set, of a table with the column of its labels. Raises DataError for other data."""
    from deit_zoo.data.remote import local_path

    data = str(local_path(data))
    if column is None:
        return data
    from deit_zoo.data.image_list import is_list
    from deit_zoo.data.image_set import is_table
    from deit_zoo.data.table import with_label

    if not is_table(data) and not is_list(data):
        raise DataError(
            f"--label-column {column} is for tables, and {data} is none; leave it out: its folders "
            "say which class an image is of"
        )
    return with_label(data, column)


def pixels(img_size: str | None) -> Pixels | None:
    """`224`, or `192x256` for height and width; None is the model's own."""
    if img_size is None:
        return None
    try:
        return read_size(img_size)
    except ValueError as error:
        raise ImageSizeError(
            f"--img-size is {img_size!r}; give pixels as 224, or 192x256 (HxW)"
        ) from error
