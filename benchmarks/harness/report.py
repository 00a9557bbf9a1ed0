"""What was measured, for people: the machine, and a table for each case."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from textwrap import wrap
from typing import Any

from rich.markup import escape
from rich.table import Table

from deit_zoo.cli.console import out
from deit_zoo.inference.throughput import title
from harness.compare import BEST
from harness.timing import label

WIDTH = 88


def print_report(report: dict[str, Any]) -> None:
    """The figures for people: a block for each model, a table for each case."""
    for sentence in heading(report):
        for line in wrap(sentence, WIDTH, break_on_hyphens=False):
            out.print(escape(line))
    for case, rows in groupby(report["rows"], key=title):
        ratios = {
            name.rpartition(": ")[2]: ratio
            for name, ratio in report["ratios"].items()
            if name.rpartition(": ")[0] == case
        }
        out.print(f"\n[bold]{escape(case)}[/]")
        out.print(_table(list(rows), ratios))


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
    models = {
        (label(one["who"], one["mode"]), one["reason"]): one["model"] for one in report["failed"]
    }
    for (who, reason), model in models.items():
        yield f"{who}: {reason} ({model})"


def _table(rows: Sequence[dict[str, Any]], ratios: dict[str, dict[str, Any]]) -> Table:
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
