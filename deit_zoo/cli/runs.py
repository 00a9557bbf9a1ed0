"""`deit-zoo plot` and `deit-zoo diff`: runs over the published curve, and one beside another."""

from __future__ import annotations

import shutil
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from deit_zoo.cli.console import (
    check_output,
    columns,
    is_unicode,
    print_json,
    print_text,
    talk,
    writing,
)
from deit_zoo.cli.options import AsJson, FiguresAsJson

if TYPE_CHECKING:
    from deit_zoo.runs.diff import Difference
    from deit_zoo.runs.log import Run

PICTURE = Path("curve.png")
NARROWEST = 40


class Metric(str, Enum):
    """What `plot` draws."""

    TOP1 = "top1"
    LOSS = "loss"


def plot_(
    runs: Annotated[
        list[str],
        typer.Argument(metavar="RUN", help="A run's folder, its log.jsonl, or an embedded model."),
    ],
    output: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="The picture; curve.png unless given.")
    ] = None,
    metric: Annotated[
        Metric | None, typer.Option(help="This alone; else top1 here, both in the picture.")
    ] = None,
    as_json: FiguresAsJson = False,
) -> None:
    """Curves of runs over the published one: a chart in the terminal and a picture."""
    from deit_zoo.runs.log import read_run
    from deit_zoo.runs.plot import draw, terminal_plot

    histories = [read_run(run) for run in runs]
    file = None if as_json and output is None else output or PICTURE
    if file is not None:
        check_output(file)
    if as_json:
        print_json(_figures(histories))
    else:
        width = max(NARROWEST, shutil.get_terminal_size().columns)
        shown = metric or Metric.TOP1
        print_text(terminal_plot(histories, shown.value, width=width, plain=not is_unicode()))
    if file is not None:
        with writing(file):
            draw(histories, file, metrics=[metric.value] if metric else ["loss", "top1"])
        talk.print(f"the picture is {escape(str(file))}")


def diff_(
    left: Annotated[
        str, typer.Argument(metavar="RECEIPT", help="receipt.json, a run, an embedded model.")
    ],
    right: Annotated[str, typer.Argument(metavar="RECEIPT", help="Another.")],
    as_json: AsJson = False,
) -> None:
    """What differs between two runs, by their receipts; exit 1 where more than the clock does."""
    from deit_zoo.runs.diff import ORDER, compare
    from deit_zoo.runs.log import read_receipt

    differences = compare(read_receipt(left), read_receipt(right))
    groups = {name: [one for one in differences if one.group == name] for name in ORDER}
    same = len(groups["clock"]) == len(differences)
    if as_json:
        fields = {name: [one.to_dict() for one in ones] for name, ones in groups.items() if ones}
        print_json({"left": left, "right": right, "same": same, "groups": fields})
    else:
        if same:
            print_text("same but for the clock\n" if differences else "same\n")
        for name, ones in groups.items():
            _print_group(name, ones)
    if not same:
        raise typer.Exit(1)


def _print_group(name: str, differences: list[Difference]) -> None:
    """A heading, and a line for each field: its name, left and right."""
    from deit_zoo.runs.diff import shown

    if differences:
        rows = [(one.field, shown(one.left), shown(one.right)) for one in differences]
        lines = ["  " + "  ".join(row).rstrip() for row in columns(rows)]
        print_text("\n".join([name, *lines]) + "\n")


def _figures(runs: list[Run]) -> dict[str, Any]:
    """What is drawn, as plain data; epochs count from 0, as in log.jsonl."""
    from deit_zoo.runs.reference import published_figure

    recipe, curve = runs[0].recipe, runs[0].curve
    figure = published_figure(recipe) if recipe else None
    return {
        "published": {
            "recipe": recipe.name if recipe else None,
            "top1": figure.top1 if figure else None,
            "band": recipe.band if recipe else None,
            "curve": sorted(curve.points.items()) if curve else [],
            "source": curve.source if curve else None,
        },
        "runs": [
            {
                "run": run.label,
                "recipe": run.recipe.name if run.recipe else None,
                "differs": list(run.differs),
                "standing": status.to_dict(run.differs) if (status := run.status) else None,
                "epochs": run.log,
            }
            for run in runs
        ],
    }
