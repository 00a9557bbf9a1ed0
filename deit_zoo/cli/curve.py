"""`deit-zoo benchmark --curve`: accuracy against speed on this machine, as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from deit_zoo.cli.console import Bar, print_table
from deit_zoo.facts.speed import where

if TYPE_CHECKING:
    from deit_zoo.inference.throughput import Case


def measured_curve(
    cases: Sequence[Case], mode: str, *, rounds: int, seconds: float
) -> dict[str, Any]:
    """Measure the models, as the JSON file has it."""
    from deit_zoo.inference import curve

    with Bar("models") as bar:
        points = curve.measure_curve(cases, mode, rounds=rounds, seconds=seconds, progress=bar)
    case = {"precision": cases[0].precision, "batch_size": cases[0].batch_size}
    return {"mode": mode} | case | curve.report(points)


def print_curve(report: dict[str, Any]) -> None:
    """The figures for people."""
    rows = [("model", "top-1", "images/s")]
    rows += [
        (point["model"], f"{point['top1']:.2f}", f"{point['images_per_second']:,.4g}")
        for point in report["points"]
    ]
    print_table(rows, right=(1, 2))


def draw_curve(report: dict[str, Any]) -> bytes:
    """The picture as PNG."""
    from deit_zoo.inference.curve import Point, draw

    batch = f"batch {report['batch_size']}, {report['precision']}, {report['mode']}"
    points = [Point(**point) for point in report["points"]]
    return draw(points, f"{where(report['machine'])}, {batch}")
