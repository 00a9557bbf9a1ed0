"""`deit-zoo plot` and `deit-zoo diff`: runs over the published curve, and one beside another."""

from __future__ import annotations

import json
import shutil
import sys
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from deit_zoo.cli.console import AsJson, check_picture, talk, writing
from deit_zoo.errors import MissingExtraError

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
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print the figures; a picture only with --output."),
    ] = False,
) -> None:
    """Curves of runs over the published one: a chart in the terminal and a picture."""
    from deit_zoo.runs.log import read_run
    from deit_zoo.runs.plot import terminal_plot

    found = [read_run(word) for word in runs]
    file = None if as_json and output is None else output or PICTURE
    if file is not None:
        check_picture(file)
    if as_json:
        _print_json(_figures(found))
    else:
        width = max(NARROWEST, shutil.get_terminal_size().columns)
        chosen = metric or Metric.TOP1
        _print(terminal_plot(found, chosen.value, width=width, plain=not _is_unicode()))
    if file is not None:
        _write_picture(found, file, [metric.value] if metric else ["loss", "top1"])
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

    found = compare(read_receipt(left), read_receipt(right))
    groups = {name: [one for one in found if one.group == name] for name in ORDER}
    same = len(groups["clock"]) == len(found)
    if as_json:
        told = {name: [one.to_dict() for one in those] for name, those in groups.items() if those}
        _print_json({"left": left, "right": right, "same": same, "groups": told})
    else:
        if same:
            _print("same but for the clock\n" if found else "same\n")
        for name, those in groups.items():
            _print_group(name, those)
    if not same:
        raise typer.Exit(1)


def _print_group(name: str, those: list[Difference]) -> None:
    """A heading, and a line for each field: its name, left and right."""
    from deit_zoo.runs.diff import shown

    rows = [(one.field, shown(one.left), shown(one.right)) for one in those]
    if rows:
        first, second = (max(len(row[column]) for row in rows) for column in (0, 1))
        lines = [f"  {field:<{first}}  {mine:<{second}}  {other}" for field, mine, other in rows]
        _print("\n".join([name, *lines]) + "\n")


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
                "standing": stood.to_dict(run.differs) if (stood := run.status) else None,
                "epochs": run.log,
            }
            for run in runs
        ],
    }


def _write_picture(runs: list[Run], file: Path, metrics: list[str]) -> None:
    from deit_zoo.runs.plot import draw

    try:
        with writing(file):
            draw(runs, file, metrics=metrics)
    except ImportError as error:
        raise MissingExtraError(
            "a picture needs matplotlib; type: pip install 'deit_zoo[train]'"
        ) from error


def _is_unicode() -> bool:
    return (sys.stdout.encoding or "ascii").lower().replace("-", "") == "utf8"


def _print(text: str) -> None:
    """Write to stdout; where it has not a character, its number stands for it."""
    encoding = sys.stdout.encoding or "ascii"
    sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))


def _print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=not _is_unicode()) + "\n")
