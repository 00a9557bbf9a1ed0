"""Curves as a picture, and as characters in a terminal: runs over the published curve."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from string import ascii_lowercase, digits
from textwrap import wrap
from typing import TYPE_CHECKING

from deit_zoo.files import write_whole
from deit_zoo.machine import require_matplotlib
from deit_zoo.recipes.recipe import count
from deit_zoo.runs.log import Run, read_run
from deit_zoo.runs.picture import drawable, new_figure, png_of
from deit_zoo.runs.reference import published_figure, shown_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CURVE_FILE = "curve.png"
# Okabe and Ito's colours, which are told apart by the colour-blind too; grey is the published run.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
GREY = "#666666"
STYLES = ("-", ":", "-.")  # of published figures; published curves are dashed
# The published curve goes on this much beyond the runs, and a figure further up is only named.
AHEAD, IN_SIGHT = 1.25, 2.0
FEW = 20

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """A line to draw: epochs from 1 and their values."""

    label: str
    points: Points
    published: bool = False


def lines_of(runs: Sequence[Run], metric: str) -> list[Line]:
    """The runs, and after them the published curve of the first where there is one to see."""
    mixed = metric == "top1" and len({run.figure for run in runs}) > 1
    lines = [
        Line(
            label=f"{run.label} ({run.figure})" if mixed else run.label, points=_points(run, metric)
        )
        for run in runs
    ]
    curve = runs[0].curve
    if metric == "top1" and curve and curve.points:
        last = max((line.points[-1][0] for line in lines if line.points), default=0) * AHEAD
        points = [(epoch + 1, top1) for epoch, top1 in sorted(curve.points.items())]
        in_range = [point for point in points if point[0] <= last]
        # A shipped model's own log is the published curve.
        if in_range and all(in_range != line.points for line in lines):
            lines.append(Line(label=f"published: {curve.source}", points=in_range, published=True))
    return lines


def _points(run: Run, metric: str) -> list[tuple[int, float]]:
    values = run.figures if metric == "top1" else [row["train_loss"] for row in run.log]
    pairs = zip(run.log, values, strict=True)
    return [(row["epoch"] + 1, float(value)) for row, value in pairs if value is not None]


def _axis(runs: Sequence[Run], metric: str) -> str:
    """What a panel shows."""
    if metric == "loss":
        return "training loss"
    return f"validation {' or '.join(dict.fromkeys(run.figure for run in runs))} (%)"


def draw_run(output: Path, title: str, exported: int | None = None) -> None:
    """Draw a run's folder into its `curve.png`; it ended on the weights of the epoch `exported`."""
    # Named by no path: the picture goes with the run to the Hub.
    run = replace(read_run(str(output.resolve())), label="this run")
    figures = [shown_figure(figure, "{:.2f} %") for figure in run.figures]
    epochs = [row["epoch"] for row in run.log]
    reached = f"{figures[-1]} after {count(epochs[-1] + 1, 'epoch')}"
    if exported is not None and exported != epochs[-1]:
        best = figures[epochs.index(exported)]
        reached = f"{best} in epoch {exported + 1}, whose weights are exported\n{reached}"
    draw([run], output / CURVE_FILE, title=f"{title}: {reached}")


def draw(
    runs: Sequence[Run], file: Path, *, metrics: Sequence[str] = ("loss", "top1"), title: str = ""
) -> None:
    """Write a PNG with one panel for each metric. Raises MissingExtraError without matplotlib."""
    require_matplotlib()
    figure = new_figure(7, 1.2 + 2.6 * len(metrics))
    panels = figure.subplots(len(metrics), sharex=True, squeeze=False)[:, 0]
    for panel, metric in zip(panels, metrics, strict=True):
        for number, line in enumerate(lines_of(runs, metric)):
            _draw_line(panel, line, COLOURS[number % len(COLOURS)])
        if metric == "top1":
            _draw_figures(panel, runs)
        panel.set_ylabel(_axis(runs, metric))
        panel.grid(color="#dddddd", linewidth=0.6)
        panel.spines[["top", "right"]].set_visible(False)
    panels[-1].set_xlabel("epoch")
    panels[-1].xaxis.get_major_locator().set_params(integer=True)
    figure.suptitle(title, fontsize="medium")
    # The last panel has every label; below the panels none of them hides a line.
    figure.legend(
        *panels[-1].get_legend_handles_labels(), loc="outside lower left", frameon=False, fontsize=8
    )
    write_whole(file, png_of(figure))


def _draw_line(panel: Axes, line: Line, colour: str) -> None:
    epochs, values = zip(*line.points, strict=True) if line.points else ((), ())
    panel.plot(
        epochs,
        values,
        "--" if line.published else "-",
        color=GREY if line.published else colour,
        linewidth=1.3,
        marker="o" if len(line.points) <= FEW else "",
        markersize=3,
        label=re.sub("^_", " _", drawable(line.label)),  # a legend leaves out what begins with _
    )


def _draw_figures(panel: Axes, runs: Sequence[Run]) -> None:
    """Each published figure as a line over its tolerance, or its name where it is far above."""
    reached = [value for run in runs for _, value in _points(run, "top1")]
    for number, (label, (top1, tolerance)) in enumerate(_figures(runs).items()):
        if max(reached, default=0.0) * IN_SIGHT < top1:
            panel.plot([], [], " ", label=f"{label}: far above")
            continue
        style = STYLES[number % len(STYLES)]
        panel.axhline(top1, color=GREY, linewidth=0.9, linestyle=style, label=label)
        panel.axhspan(top1 - tolerance, top1, color=GREY, alpha=0.2, linewidth=0)


def _figures(runs: Sequence[Run]) -> dict[str, tuple[float, float]]:
    """The published figure of each recipe and its tolerance, by both in words; whose they are is
    said where there are several."""
    figures = {}
    for run in runs:
        metric = published_figure(run.recipe) if run.recipe else None
        if run.recipe is not None and metric is not None and metric.top1 is not None:
            figures[run.recipe.name] = metric.top1, run.recipe.band
    several = len(set(figures.values())) > 1
    return {
        f"published figure {'of ' + name + ' ' if several else ''}{top1:.2f} %, "
        f"tolerance {band:g}": (top1, band)
        for name, (top1, band) in figures.items()
    }


def terminal_plot(
    runs: Sequence[Run], metric: str, *, width: int = 80, height: int = 15, plain: bool = False
) -> str:
    """A chart of characters with a line on each run; `plain` is drawn in ASCII."""
    lines = lines_of(runs, metric)
    rows = [_axis(runs, metric), *chart(lines, width=width, height=height, plain=plain)]
    for mark, line in zip(_marks(lines, plain), lines, strict=True):
        rows += wrap(f"{mark} {line.label}", width, initial_indent="  ", subsequent_indent="    ")
    if metric == "top1":
        rows += [f"    {label}" for label in _figures(runs)]
    for run in runs:
        rows += wrap(summary(run), width, subsequent_indent="    ")
    return "\n".join(rows) + "\n"


def summary(run: Run) -> str:
    """Where a run is and how it stands, in one line."""
    last = run.log[-1]
    epochs = f"{last['epoch'] + 1}/{run.recipe.epochs}" if run.recipe else str(last["epoch"] + 1)
    figures = f"epoch {epochs}, loss {shown_figure(last['train_loss'], '{:.3f}')}, "
    figures += f"{run.figure} {shown_figure(run.figures[-1], '{:.2f} %')}"
    status = run.status
    remarks = [status.sentence(run.differs)] if status else []
    for metric, name in (("loss", "loss"), ("top1", run.figure)):
        if gaps := len(run.log) - len(_points(run, metric)):
            remarks.append(f"{name} is not finite in {count(gaps, 'epoch')}")
    return "; ".join([f"{run.label}: {figures}", *remarks])


def chart(lines: Sequence[Line], *, width: int, height: int, plain: bool) -> list[str]:
    """The rows of a chart at most `width` characters wide, axes and their ends included.

    One run is drawn in dots of braille, of which a character holds 2 x 4; several by digits.
    """
    # Ours, as plotext 5 colours files too and has no frame in ASCII, and plotext 6 is compiled.
    points = [point for line in lines for point in line.points]
    if not points:
        return ["no figure that can be drawn"]
    low, high = min(value for _, value in points), max(value for _, value in points)
    if low == high:
        low, high = low - 0.5, high + 0.5
    decimals = 1 if high - low >= 5 else 2 if high - low >= 0.5 else 4
    middle = height // 2
    ticks = {0: high, middle: high - (high - low) * middle / (height - 1), height - 1: low}
    labels = {row: f"{value:.{decimals}f}" for row, value in ticks.items()}
    margin = max(map(len, labels.values())) + 1
    columns = width - margin - 1
    first, last = min(epoch for epoch, _ in points), max(epoch for epoch, _ in points)
    spans = max(1, last - first), high - low
    scaled = [
        replace(
            line, points=[((x - first) / spans[0], (high - y) / spans[1]) for x, y in line.points]
        )
        for line in lines
    ]
    side, tick, corner, base = "|++-" if plain else "│┤└─"
    rows = [
        f"{labels.get(n, ''):>{margin - 1}} {tick if n in labels else side}{row}".rstrip()
        for n, row in enumerate(_cells(scaled, columns, height, plain))
    ]
    ends = f"{first}{'epoch':^{columns - len(str(first)) - len(str(last))}}{last}"
    x_axis = [" " * margin + corner + base * columns, " " * (margin + 1) + ends]
    return [*rows, *x_axis] if last > first else [*rows, x_axis[0], f"{' ' * margin} {first}"]


# The bit of a dot in Unicode's braille: by its row, then its column.
_BRAILLE = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))


def _cells(lines: Sequence[Line], columns: int, rows: int, plain: bool) -> list[str]:
    """The rows within the axes; the published curve lies under the runs."""
    published: dict[tuple[int, int], list[str]] = {}
    runs: defaultdict[tuple[int, int], list[str]] = defaultdict(list)
    marks = _marks(lines, plain)
    for mark, line in zip(marks, lines, strict=True):
        for cell in set(_dots(line.points, columns, rows)):
            if line.published:
                published[cell] = [mark]
            elif mark != _STROKE:
                runs[cell].append(mark)
    if marks[0] == _STROKE:
        bits: defaultdict[tuple[int, int], int] = defaultdict(int)
        for x, y in _dots(lines[0].points, 2 * columns, 4 * rows):
            bits[x // 2, y // 4] |= _BRAILLE[y % 4][x % 2]
        runs |= {cell: [chr(0x2800 + value)] for cell, value in bits.items()}
    cells = published | runs
    # Where runs meet, their marks take turns.
    return [
        "".join(
            here[column % len(here)] if (here := cells.get((column, row))) else " "
            for column in range(columns)
        )
        for row in range(rows)
    ]


def _dots(points: Points, columns: int, rows: int) -> list[tuple[int, int]]:
    """The column and row of each dot of a line whose corners are shares of width and height."""
    corners = [(round(x * (columns - 1)), round(y * (rows - 1))) for x, y in points]
    dots = corners[:1]
    for (x, y), (to_x, to_y) in pairwise(corners):
        steps = max(abs(to_x - x), abs(to_y - y), 1)
        dots += [
            (x + round((to_x - x) * n / steps), y + round((to_y - y) * n / steps))
            for n in range(1, steps + 1)
        ]
    return dots


_STROKE = "\u2812"


def _marks(lines: Sequence[Line], plain: bool) -> list[str]:
    """The character of each line: one run is a stroke, several have numbers."""
    runs = sum(not line.published for line in lines)
    numbers = digits[1:] + ascii_lowercase
    marks = [numbers[n % len(numbers)] for n in range(runs)]
    if runs == 1:
        marks = ["*" if plain else _STROKE]
    return marks + ["." if plain else "·"] * (len(lines) - runs)
