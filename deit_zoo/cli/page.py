"""`deit-zoo list --html FILE`: the models as a page for a browser."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.markup import escape

from deit_zoo.cli.console import check_output, talk
from deit_zoo.errors import ZooError
from deit_zoo.facts.model import ModelInfo
from deit_zoo.files import write_whole, writing


def write_page(models: Sequence[ModelInfo], file: Path, curves: Sequence[Path]) -> None:
    """Write the page of the models, with the speeds of files that `benchmark --curve` wrote."""
    from deit_zoo.page.speeds import read_curve
    from deit_zoo.page.zoo_page import BEGINS, zoo_page

    if not models:
        raise ZooError("no model passes these filters; `deit-zoo list` shows all")
    check_output(file, "--html", suffix=".html", begins=BEGINS)
    page = zoo_page(models, [read_curve(curve) for curve in curves])
    with writing(file, "--html"):
        write_whole(file, page.encode())
    talk.print(f"the page is {escape(str(file))}; open it in a browser")
