"""`deit-zoo benchmark`: how fast our models are on this machine."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterable, Sequence
from datetime import datetime, timezone
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from deit_zoo.cli.console import (
    Bar,
    check_output,
    chosen_device,
    out,
    print_error,
    print_json,
    print_table,
    talk,
)
from deit_zoo.cli.options import (
    MOST,
    AsJson,
    Device,
    ImgSize,
    complete_name,
    path_option,
    pixels,
)
from deit_zoo.errors import DataError, ZooError
from deit_zoo.files import write_whole, writing
from deit_zoo.machine import require_matplotlib
from deit_zoo.registry.names import resolve

if TYPE_CHECKING:
    from deit_zoo.inference.throughput import Case

BLUE = "#0072B2"
HOUR = 3600.0


def benchmark_(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help="Any spelling of models; deit_tiny and deit_small unless given.",
            autocompletion=complete_name,
            show_default=False,
        ),
    ] = None,
    batch_size: Annotated[
        list[int] | None,
        typer.Option("--batch-size", "-b", min=1, help="Repeatable (default: 1 and 8)."),
    ] = None,
    precision: Annotated[
        list[str] | None,
        typer.Option(
            help="float32, bfloat16, float16 or int8; repeatable (default: the first two)."
        ),
    ] = None,
    mode: Annotated[
        list[str] | None,
        typer.Option(
            help="eager, compiled or optimized; repeatable (default: eager and optimized)."
        ),
    ] = None,
    img_size: ImgSize = None,
    threads: Annotated[
        int | None,
        typer.Option(min=1, max=MOST, help="Threads of torch (default: its own number)."),
    ] = None,
    device: Device = "auto",
    rounds: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=MOST,
            help="Rounds; every figure is the median of them (default: 7; --curve 3, --quick 1).",
        ),
    ] = None,
    seconds: Annotated[
        float | None,
        typer.Option(help="Of calls in a round, at least one (default: 0.5; --quick 0.05)."),
    ] = None,
    memory: Annotated[
        bool | None, typer.Option(help="Peak memory, each in a process of its own.")
    ] = None,
    cold_start: Annotated[
        bool | None, typer.Option(help="From the start of a process to its first prediction.")
    ] = None,
    quick: Annotated[
        bool,
        typer.Option(
            "--quick", help="One short round of eager models, without memory and cold start."
        ),
    ] = False,
    train: Annotated[bool, typer.Option("--train", help="Forward and backward instead.")] = False,
    pretrained: Annotated[
        bool, typer.Option("--pretrained", help="Published weights instead of random ones.")
    ] = False,
    images: Annotated[
        Path | None,
        path_option("With --pretrained: agreement of optimized models on these.", "FOLDER"),
    ] = None,
    output: Annotated[
        Path | None, path_option("Everything that was measured.", "FILE.json")
    ] = None,
    plot: Annotated[Path | None, path_option("Images per second as a picture.", "FILE.png")] = None,
    curve: Annotated[
        bool, typer.Option("--curve", help="Top-1 against images per second, all models or these.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Latency, throughput, memory and cold start of models on this machine.

    Modes take turns; weights are random unless asked otherwise, as speed does not depend on them.
    Exit 1: something could not be measured.
    """
    if output is not None:
        check_output(output, suffix=".json", begins=b"{")
    if plot is not None:
        check_output(plot, "--plot")
        require_matplotlib()
    if images is not None and not pretrained:
        raise ZooError("random weights agree by chance on --images; add --pretrained")
    if images is not None and not images.is_dir():
        raise DataError(f"--images is {str(images)!r}, which is no folder; give a folder of images")
    several = any(len(given or ()) > 1 for given in (batch_size, precision, mode))
    if curve and (several or train or memory or cold_start or images):
        raise ZooError(
            "--curve is one speed for each model; give one --mode, --precision and --batch-size, "
            "and leave out --train, --memory, --cold-start and --images"
        )
    import torch

    from deit_zoo.cli.curve import draw_curve, measured_curve, print_curve
    from deit_zoo.inference.curve import models_on_curve
    from deit_zoo.inference.optimize import SHORT
    from deit_zoo.inference.throughput import cases_of, machine

    rounds = (1 if quick else 3 if curve else 7) if rounds is None else rounds
    seconds = (0.05 if quick else 0.5) if seconds is None else seconds
    if not 0 < seconds <= HOUR:
        raise ZooError(f"--seconds is {seconds:g}; give a time above 0, and no more than an hour")
    place = chosen_device(device)
    one_precision, one_mode = train or curve, train or curve or quick
    usual = ["float32"] if one_precision else ["float32", "bfloat16"]
    precisions = [SHORT.get(name, name) for name in precision or usual]
    modes = mode or (["eager"] if one_mode else ["eager", "optimized"])
    if curve:
        chosen = names if names and names != ["all"] else ()
        names = models_on_curve([resolve(name).name for name in chosen])
    cases = cases_of(
        names or ["deit_tiny", "deit_small"],
        batch_sizes=batch_size or ([1, 8] if not curve else [1 if place == "cpu" else 64]),
        precisions=precisions,
        modes=modes,
        train=train,
        img_size=pixels(img_size),
        device=place,
        threads=threads or torch.get_num_threads(),
        pretrained=pretrained,
    )
    report: dict[str, Any] = {
        "benchmark": "deit-zoo benchmark --curve" if curve else "deit-zoo benchmark",
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": machine(place, cases[0].threads),
        "rounds": rounds,
        "seconds": seconds,
    }
    if curve:
        report |= measured_curve(cases, modes[0], rounds=rounds, seconds=seconds)
    else:
        report |= measured(
            cases,
            modes,
            rounds=rounds,
            seconds=seconds,
            memory=not quick if memory is None else memory,
            cold=(not quick if cold_start is None else cold_start) and not train and place == "cpu",
            folder=images,
        )
    if output is not None:
        with writing(output):
            write_whole(output, json.dumps(report, indent=1).encode() + b"\n")
    if as_json:
        print_json(report)
    else:
        (print_curve if curve else print_report)(report)
    if plot is not None:
        picture = (draw_curve if curve else draw)(report)
        with writing(plot, "--plot"):
            write_whole(plot, picture)
        talk.print(f"the picture is {escape(str(plot))}")
    elif curve and not as_json:
        talk.print("--plot curve.png draws it")
    failures = {(one["mode"], one["reason"]): one["model"] for one in report.get("failed", ())}
    for (failed, reason), model in failures.items():
        print_error(f"{failed}: {reason} ({model})", "left out")
    if failures:
        raise typer.Exit(1)


def measured(
    cases: Sequence[Case],
    modes: Sequence[str],
    *,
    rounds: int,
    seconds: float,
    memory: bool,
    cold: bool,
    folder: Path | None,
) -> dict[str, Any]:
    """Everything that is asked for, as the JSON file has it."""
    from deit_zoo.inference import fresh_process, throughput

    of_lower = {(one.model, one.precision): one for one in cases if one.precision != "float32"}
    lower = of_lower.values() if "optimized" in modes else ()
    agreement = [row for case in lower if (row := throughput.agreement_row(case, folder))]
    rows, failed = [], []
    with Bar("cases") as bar:
        for number, case in enumerate(cases):
            bar(number, len(cases))
            measured, missing = throughput.measure_case(case, modes, rounds=rounds, seconds=seconds)
            rows += measured
            failed += missing + (fresh_process.measure_memory(case, measured) if memory else [])
    figures: dict[str, Any] = {
        "weights": "pretrained" if all(case.pretrained for case in cases) else "random",
        "rows": rows,
        "failed": failed,
        "agreement": agreement,
    }
    if cold:
        figures["cold_start"] = []
        models = {case.model: case for case in cases}
        with Bar("cold starts") as bar:
            for number, case in enumerate(models.values()):
                bar(number, len(models))
                try:
                    figures["cold_start"].append(fresh_process.cold_start(case, rounds))
                except ZooError as error:  # what was measured before it is not lost
                    reason = {"mode": "cold start", "reason": str(error)}
                    failed.append({"model": case.model, "who": throughput.OURS} | reason)
    return figures


def print_report(report: dict[str, Any]) -> None:
    """The figures for people: a table for each case."""
    from deit_zoo.facts.speed import where
    from deit_zoo.inference.throughput import title

    machine = report["machine"]
    amx = " with AMX" if machine["amx"] else ""
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    out.print(f"{where(machine)}, {machine['cores']} cores, {machine['capability']}{amx}")
    out.print(f"{packages}, Python {machine['python']}")
    if report["weights"] == "random":
        out.print("random weights: speed does not depend on them")
    columns = {"mode": "", "p50_ms": "p50 ms", "p95_ms": "p95 ms", "images_per_second": "images/s"}
    for case, rows in groupby(report["rows"], key=title):
        out.print(f"\n[bold]{case}[/]")
        print_figures(rows, columns | {"of_eager": "times eager", "peak_mb": "MB"})
    if "cold_start" in report:
        out.print("\n[bold]cold start, from the start of a process to its first prediction[/]")
        columns = {"model": "", "seconds": "seconds", "load_seconds": "of them loading"}
        print_figures(report["cold_start"], columns | {"peak_mb": "MB"})
    for row in report["agreement"]:
        out.print(
            f"\n{row['model']}, optimized {row['precision']}: the plain model's top-1 answer on "
            f"{row['top1']:.2%} of {row['num_images']} images; logits differ by at most "
            f"{row['largest']:.3g}"
        )


def print_figures(rows: Iterable[dict[str, Any]], columns: dict[str, str]) -> None:
    """A table: the headings of these keys, and a line for each row; its first key is its name."""
    name, *keys = columns
    figures = [
        [row[name], *("–" if row[key] is None else f"{row[key]:,.4g}" for key in keys)]
        for row in rows
    ]
    print_table([[*columns.values()], *figures], right=range(1, len(columns)))


def draw(report: dict[str, Any]) -> bytes:
    """Images per second as bars in a PNG, a panel for each case."""
    from deit_zoo.facts.speed import where
    from deit_zoo.inference.throughput import title
    from deit_zoo.runs.picture import new_figure, png_of

    cases = [(case, list(rows)) for case, rows in groupby(report["rows"], key=title)]
    heights = [0.6 + 0.25 * len(rows) for _, rows in cases] or [0.6]
    figure = new_figure(8, 0.5 + sum(heights))
    figure.suptitle(f"{where(report['machine'])}: images per second", fontsize="medium")
    panels = figure.subplots(len(heights), squeeze=False, height_ratios=heights)[:, 0]
    for panel, (case, rows) in zip(panels[: len(cases)], cases, strict=True):
        rows.sort(key=lambda row: row["images_per_second"])
        speeds = [row["images_per_second"] for row in rows]
        bars = panel.barh([row["mode"] for row in rows], speeds, color=BLUE)
        panel.bar_label(bars, fmt="{:,.4g}", padding=4)
        panel.set_title(case, loc="left", fontsize="medium")
        panel.set_xlim(0, max(speeds) * 1.15)
        panel.spines[["top", "right"]].set_visible(False)
    return png_of(figure)
