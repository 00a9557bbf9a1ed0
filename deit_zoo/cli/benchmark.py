"""`deit-zoo benchmark`: how fast models are here, beside every peer that is installed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from deit_zoo.cli.console import (
    PNG,
    AsJson,
    Bar,
    complete_name,
    out,
    pixels,
    print_json,
    talk,
    writing,
)
from deit_zoo.errors import DataError, MissingExtraError, ZooError
from deit_zoo.files import write_whole

if TYPE_CHECKING:
    from deit_zoo.bench_compare import Request

WIDTH = 88
MODELS = ["deit_tiny", "deit_small"]


@dataclass(frozen=True, slots=True)
class Usual:
    """What is measured where nothing else was asked for."""

    rounds: int
    seconds: float
    modes: tuple[str, ...]
    processes: bool  # memory and cold start take one each time


USUAL = Usual(rounds=7, seconds=0.5, modes=("eager", "optimized"), processes=True)
QUICK = Usual(rounds=1, seconds=0.05, modes=("eager",), processes=False)


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
        list[int] | None, typer.Option("--batch-size", "-b", help="Again for more; 1 and 8.")
    ] = None,
    precision: Annotated[
        list[str] | None,
        typer.Option(help="float32, bfloat16, float16 or int8; again for more; the first two."),
    ] = None,
    mode: Annotated[
        list[str] | None,
        typer.Option(help="eager, compiled or optimized; again for more; eager and optimized."),
    ] = None,
    img_size: Annotated[
        str | None, typer.Option(metavar="N|HxW", help="Pixels; the model's own unless given.")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="The same number for all.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")] = "cpu",
    peer: Annotated[
        list[str] | None,
        typer.Option(
            help="timm, transformers, onnxruntime or openvino; again for more; all installed."
        ),
    ] = None,
    peers: Annotated[bool, typer.Option(help="Measure others in the same run.")] = True,
    rounds: Annotated[
        int | None, typer.Option(help="Turns of each, 7; figures are medians.")
    ] = None,
    seconds: Annotated[
        float | None, typer.Option(help="Of each turn, 0.5, and at least one call.")
    ] = None,
    memory: Annotated[
        bool | None, typer.Option(help="Peak memory, each in a process of its own.")
    ] = None,
    cold_start: Annotated[
        bool | None, typer.Option(help="From the start of a process to its first prediction.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="A short round of eager models, and no processes.")
    ] = False,
    train: Annotated[bool, typer.Option("--train", help="Forward and backward instead.")] = False,
    pretrained: Annotated[
        bool, typer.Option("--pretrained", help="Published weights instead of random ones.")
    ] = False,
    images: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="With --pretrained: agreement of optimized models on these."
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(metavar="FILE.json", help="Everything that was measured.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="Images per second as bars.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Latency, throughput, memory and cold start of models, beside timm and other peers.

    All get the same weights (random unless asked otherwise; speed does not depend on them) and
    take turns. Exit 1: one of ours could not be measured.
    """
    _check_files(output, plot, images, pretrained)
    from deit_zoo import peers as doors
    from deit_zoo.bench_compare import Request
    from deit_zoo.inference.optimize import SHORT
    from deit_zoo.machine import usable_device

    if not peers and peer:
        raise ZooError("--no-peers and --peer exclude each other; give one of them")
    usual = QUICK if quick else USUAL
    request = Request(
        models=names or MODELS,
        batch_sizes=batch_size or (1, 8),
        precisions=[SHORT.get(one, one) for one in precision or ()]
        or (("float32",) if train else ("float32", "bfloat16")),
        modes=mode or (("eager",) if train else usual.modes),
        peers=doors.chosen(peer) if peers else (),
        img_size=None if img_size is None else pixels(img_size),
        device=str(usable_device(device)),
        threads=_threads() if threads is None else threads,
        rounds=usual.rounds if rounds is None else rounds,
        seconds=usual.seconds if seconds is None else seconds,
        memory=usual.processes if memory is None else memory,
        train=train,
        pretrained=pretrained,
    )
    starts = usual.processes if cold_start is None else cold_start
    report = measured(request, images, starts and not train and device == "cpu")
    if output is not None:
        with writing(output):
            write_whole(output, json.dumps(report, indent=1).encode() + b"\n")
    if as_json:
        print_json(report)
    else:
        print_report(report)
    if plot is not None:
        _draw(report, plot)
    for sentence in failures(report):
        talk.print(f"[bold red]left out:[/] {escape(sentence)}")
    if any(one["who"] == doors.OURS for one in report["failed"]):
        raise typer.Exit(1)


def measured(request: Request, images: Path | None, cold_start: bool) -> dict[str, Any]:
    """Everything that is asked for, as the JSON file has it."""
    from deit_zoo.bench_cold import cold_starts
    from deit_zoo.bench_compare import agreement_rows, compare, typed

    agreement = agreement_rows(request, images)
    with Bar("turns") as bar:
        report = compare([request], bar)
    if cold_start:
        with Bar("cold starts") as bar:
            started = cold_starts(
                request.models,
                peers=request.peers,
                rounds=request.rounds,
                threads=request.threads,
                progress=bar,
            )
        report["cold_start"] = started
    head = {"benchmark": "deit-zoo benchmark", "command": typed()}
    return head | report | {"agreement": agreement}


def print_report(report: dict[str, Any]) -> None:
    """The figures for people: a block for each model, a table for each case."""
    for sentence in heading(report):
        for line in wrap(sentence, WIDTH, break_on_hyphens=False):
            out.print(escape(line))
    for case, rows in groupby(report["rows"], key=_case):
        ratios = {
            name.rpartition(": ")[2]: ratio
            for name, ratio in report["ratios"].items()
            if name.rpartition(": ")[0] == case
        }
        out.print(f"\n[bold]{escape(case)}[/]")
        out.print(_table(list(rows), ratios))
    if "cold_start" in report:
        out.print("\n[bold]cold start, from the start of a process to its first prediction[/]")
        out.print(_cold_table(report["cold_start"]))
    for row in report["agreement"]:
        out.print(
            f"\n{row['model']}, optimized {row['precision']}: the plain model's top-1 answer on "
            f"{row['top1']:.2%} of {row['num_images']} images; logits differ by at most "
            f"{row['largest']:.3g}"
        )


def heading(report: dict[str, Any]) -> Iterator[str]:
    """What was measured on, and what the figures mean."""
    machine = report["machine"]
    where = machine.get("gpu", machine["cpu"])
    count = machine["threads"]
    amx = " with AMX" if machine["amx"] else ""
    yield f"{where}, {machine['cores']} cores, {machine['capability']}{amx}"
    yield f"{count} {'thread' if count == 1 else 'threads'}; " + ", ".join(
        f"{name} {version}" for name, version in machine["packages"].items() if name != "deit_zoo"
    )
    for precision, peak in report["peaks_gflops"].items():
        yield f"the largest matrix product in {precision}: {peak:,.0f} GFLOP/s"
    if report["weights"] == "random":
        yield "random weights: speed does not depend on them"
    if report["ratios"]:
        yield "under a mode's name: how many times as fast as that peer; * the best of them"


def failures(report: dict[str, Any]) -> Iterator[str]:
    """Who was left out and why, each reason once."""
    from deit_zoo.bench import label

    failed = report["failed"] + report.get("cold_start", {}).get("failed", [])
    told = {(label(one["who"], one["mode"]), one["reason"]): one for one in failed}
    for (who, reason), one in told.items():
        yield f"{who}: {reason} ({one['model']})"


def _case(row: dict[str, Any]) -> str:
    from deit_zoo.bench import title

    return title(row)


def _table(rows: Sequence[dict[str, Any]], ratios: dict[str, dict[str, Any]]) -> Table:
    from deit_zoo.bench import label
    from deit_zoo.bench_compare import BEST

    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    table.add_column("", no_wrap=True)
    for column in ("p50 ms", "p95 ms", "images/s", "of peak", "MB", *ratios):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        name = label(row["who"], row["mode"])
        best = any(ratio[BEST] == name for ratio in ratios.values())
        share, peak = row["share_of_peak"], row["peak_mb"]
        table.add_row(
            escape(f"{name} *" if best else name),
            f"{row['p50_ms']:,.2f}",
            f"{row['p95_ms']:,.2f}",
            f"{row['images_per_second']:,.1f}",
            "–" if share is None else f"{share:.1%}",
            "–" if peak is None else f"{peak:,.0f}",
            *(f"{ratio[name]:.2f}×" if name in ratio else "" for ratio in ratios.values()),
        )
    return table


def _cold_table(report: dict[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("", "seconds", "of them loading", "MB"):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    for row in report["rows"]:
        peak = row["peak_mb"]
        table.add_row(
            f"{row['model']}, {row['who']}",
            f"{row['seconds']:.2f}",
            f"{row['load_seconds']:.3f}",
            "–" if peak is None else f"{peak:,.0f}",
        )
    for name, ratio in report["ratios"].items():
        told = [f"{ratio[key]:.2f}" if key in ratio else "–" for key in _COLD_KEYS]
        table.add_row(f"ratio, {name}", *told)
    return table


_COLD_KEYS = ("seconds", "load_seconds", "peak_mb")


def _check_files(
    output: Path | None, plot: Path | None, images: Path | None, pretrained: bool
) -> None:
    """Before an hour is measured: raises ZooError for what could not be written or read after."""
    for option, file, suffix in (("--output", output, ".json"), ("--plot", plot, ".png")):
        if file is None:
            continue
        if file.suffix.lower() != suffix or file.is_dir():
            raise DataError(f"{option} is {str(file)!r}; give a FILE{suffix}")
        if not file.parent.is_dir():
            raise DataError(f"there is no folder {file.parent}; make it, or give another {option}")
    if plot is not None and plot.exists() and not plot.read_bytes().startswith(PNG):
        raise DataError(f"{plot} is there and no PNG; give another --plot")
    if plot is not None:
        _require_matplotlib()
    if images is None:
        return
    if not pretrained:
        raise ZooError("random weights agree by chance on --images; add --pretrained")
    if not images.is_dir():
        raise DataError(f"--images is {str(images)!r}, which is no folder; give a folder of images")


def _require_matplotlib() -> None:
    from importlib.util import find_spec

    if find_spec("matplotlib") is None:
        raise MissingExtraError("a picture needs matplotlib; type: pip install 'deit_zoo[train]'")


def _draw(report: dict[str, Any], file: Path) -> None:
    from deit_zoo.bench_picture import draw

    with writing(file):
        draw(report, file)
    talk.print(f"the picture is {escape(str(file))}")


def _threads() -> int:
    import torch

    return torch.get_num_threads()
