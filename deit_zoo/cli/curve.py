"""`deit-zoo benchmark --curve`: accuracy against speed on this machine, as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Any

from deit_zoo.cli.console import Bar, print_table
from deit_zoo.facts.speed import where
from deit_zoo.registry.names import resolve


def measured_curve(
    names: Sequence[str],
    mode: str,
    *,
    rounds: int,
    seconds: float,
    batch_size: int | None,
    precision: str,
    **options: Any,
) -> dict[str, Any]:
    """Measure the models, all published ones for none or `all`, as the JSON file has it; `options`
    are fields of each case."""
    from deit_zoo.inference import curve, throughput

    names = [] if list(names) == ["all"] else [resolve(name).name for name in names]
    if batch_size is None:
        batch_size = 1 if options["device"] == "cpu" else 64
    cases = throughput.cases_of(
        curve.models_on_curve(names),
        batch_sizes=[batch_size],
        precisions=[precision],
        modes=[mode],
        train=False,
        **options,
    )
    with Bar("models") as bar:
        points = curve.measure_curve(cases, mode, rounds=rounds, seconds=seconds, progress=bar)
    return {
        "benchmark": "deit-zoo benchmark --curve",
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": throughput.machine(cases[0].device, cases[0].threads),
        "mode": mode,
        "precision": precision,
        "batch_size": batch_size,
        "rounds": rounds,
        "seconds": seconds,
        **curve.report(points),
    }


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
