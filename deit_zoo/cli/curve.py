"""`deit-zoo benchmark --curve`: accuracy against speed on this machine, as a picture."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from rich.markup import escape

from deit_zoo.cli.console import Bar, out, print_json, print_table, talk, writing
from deit_zoo.facts.speed import where
from deit_zoo.files import write_whole
from deit_zoo.registry import resolve


def run_curve(
    names: Sequence[str],
    mode: str,
    *,
    rounds: int,
    seconds: float,
    batch_size: int | None,
    output: Path | None,
    plot: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Measure the models, all published ones for none, and draw them; `options` are fields of each
    case."""
    from deit_zoo.inference import curve, throughput

    names = [] if list(names) == ["all"] else [resolve(name).name for name in names]
    if batch_size is None:
        batch_size = 1 if options["device"] == "cpu" else 64
    cases = throughput.cases_of(
        curve.models_on_curve(names),
        batch_sizes=[batch_size],
        precisions=[options.pop("precision")],
        modes=[mode],
        train=False,
        **options,
    )
    with Bar("models") as bar:
        points = curve.measure_curve(cases, mode, rounds=rounds, seconds=seconds, progress=bar)
    first = cases[0]
    machine = throughput.machine(first.device, first.threads)
    report: dict[str, Any] = {
        "benchmark": "deit-zoo benchmark --curve",
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": machine,
        "mode": mode,
        "precision": first.precision,
        "batch_size": batch_size,
        "rounds": rounds,
        "seconds": seconds,
        **curve.report(points),
    }
    if output is not None:
        with writing(output):
            write_whole(output, json.dumps(report, indent=1).encode() + b"\n")
    if as_json:
        print_json(report)
    else:
        rows = [("model", "top-1", "images/s")]
        rows += [(p.model, f"{p.top1:.2f}", f"{p.images_per_second:,.4g}") for p in points]
        print_table(rows, right=(1, 2))
    if plot is not None:
        batch = f"batch {batch_size}, {first.precision}, {mode}"
        with writing(plot):
            write_whole(plot, curve.draw(points, f"{where(machine)}, {batch}"))
        talk.print(f"the picture is {escape(str(plot))}")
    elif not as_json:
        out.print("--plot curve.png draws it")
