"""`deit-zoo plot`, `diff` and `compare`: runs over the published curve, and beside each other."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.cells import cell_len
from rich.markup import escape

from deit_zoo.cli.console import (
    check_output,
    is_unicode,
    line_width,
    out,
    print_json,
    print_rows,
    print_table,
    talk,
)
from deit_zoo.cli.options import AsJson, FiguresAsJson, path_option
from deit_zoo.files import writing
from deit_zoo.terminal import clock

if TYPE_CHECKING:
    from deit_zoo.runs.log import Run

PICTURE = Path("curve.png")
NARROWEST = 40
_TITLES = {"top1": "top-1", "mean_ap": "mean AP"}  # of the figure that counts, as epochs name it


Runs = Annotated[
    list[str],
    typer.Argument(metavar="RUN", help="A run's folder, its log.jsonl, or an embedded model."),
]


def plot_(
    runs: Runs,
    output: Annotated[
        Path | None, path_option("The picture; curve.png unless given.", "FILE.png")
    ] = None,
    metric: Annotated[
        Literal["top1", "loss"] | None,
        typer.Option(help="This alone; else top1 here, both in the picture."),
    ] = None,
    as_json: FiguresAsJson = False,
) -> None:
    """Curves of runs over the published one: a chart in the terminal and a picture."""
    from deit_zoo.runs.plot import draw, terminal_plot

    histories = _read(runs)
    file = None if as_json and output is None else output or PICTURE
    if file is not None:
        check_output(file)
    if as_json:
        print_json(_figures(histories))
    else:
        width = max(NARROWEST, shutil.get_terminal_size().columns)
        chart = terminal_plot(histories, metric or "top1", width=width, plain=not is_unicode())
        out.print(chart, end="", markup=False)
    if file is not None:
        with writing(file):
            draw(histories, file, metrics=[metric] if metric else ["loss", "top1"])
        talk.print(f"the picture is {escape(str(file))}")


def diff_(
    left: Annotated[
        str,
        typer.Argument(metavar="A", help="receipt.json, a run, an embedded model, a recipe."),
    ],
    right: Annotated[str, typer.Argument(metavar="B", help="Another.")],
    as_json: AsJson = False,
) -> None:
    """What differs between two runs, by their receipts, or between two recipes.

    Exit 0: nothing but the clock; 1: something does.
    """
    from deit_zoo.runs.diff import ORDER, compare, compare_recipes, once
    from deit_zoo.runs.log import read_receipt, recipe_named, recipe_of

    if recipe_named(left) is not None or recipe_named(right) is not None:
        differences = compare_recipes(recipe_of(left), recipe_of(right))
    else:
        differences = compare(read_receipt(left), read_receipt(right))
    groups = {name: [one for one in differences if one.group == name] for name in ORDER}
    same = len(groups["clock"]) == len(differences)
    if as_json:
        fields = {name: [one.to_dict() for one in ones] for name, ones in groups.items() if ones}
        print_json({"left": left, "right": right, "same": same, "groups": fields})
    else:
        if same:
            out.print("same but for the clock" if differences else "same")
        if differences:
            _print_beside(once(differences))
    if not same:
        raise typer.Exit(1)


def compare_(
    runs: Runs,
    as_json: AsJson = False,
) -> None:
    """Runs beside each other, the best first, and the fields in which their recipes differ."""
    from deit_zoo.runs.compare import rows_of

    rows = rows_of(_read(runs))
    if as_json:
        print_json(rows)
        return
    figure_of = ["top1" if row["best_mean_ap"] is None else "mean_ap" for row in rows]
    names = {name: title for name, title in _TITLES.items() if name in figure_of}
    cells = [("run", *names.values(), "best", "val loss", "epochs", "time")]
    for row, own in zip(rows, figure_of, strict=True):
        last = [row[own] if name == own else None for name in names]
        values = (*last, row[f"best_{own}"], row["val_loss"])
        figures = ("–" if value is None else f"{value:.2f}" for value in values)
        cells.append((row["run"], *figures, str(row["epochs"]), clock(row["seconds"])))
    print_table(cells, right=range(1, 5 + len(names)))
    changed = [", ".join(map(" ".join, row["changed"].items())) for row in rows]
    if any(changed):
        out.print()
        labels = [row["run"] for row in rows]
        print_rows(out, [*zip(labels, changed, strict=True)], width=line_width())


def _print_beside(rows: Sequence[tuple[str, str, str]]) -> None:
    """Fields with two values: beside each other, or below where a line has no room for both."""
    width = max(cell_len(field) for field, _, _ in rows)
    room = (line_width() - width - 4) // 2
    short = [row for row in rows if max(map(cell_len, row[1:])) <= room]
    if short:
        print_table([("field", "a", "b"), *short])
    for field, left, right in rows:
        if (field, left, right) not in short:
            values = [(f"{field:<{width}}  a", left), (f"{'':<{width}}  b", right)]
            print_rows(out, values, width=line_width())


def _read(names: list[str]) -> list[Run]:
    """The runs of these names; what is amiss with one is told."""
    from deit_zoo.runs.log import read_run

    runs = [read_run(name) for name in names]
    for run in runs:
        if run.note:
            talk.print(escape(run.note))
    return runs


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
