"""Curves as a picture, and as characters in a terminal: runs over the published curve."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import pairwise
from math import isfinite
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING

from deit_zoo.files import write_whole
from deit_zoo.runs.log import Run, read_run
from deit_zoo.runs.reference import published_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CURVE_FILE = "curve.png"
METRICS = {"loss": "training loss", "top1": "validation top-1 (%)"}
# Okabe and Ito's colours, which are told apart by the colour-blind too; grey is the published run.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
GREY = "#666666"
# The published curve goes on this much beyond the runs, and a figure further up is only named.
AHEAD, IN_SIGHT = 1.25, 2.0
FEW = 20

Points = Sequence[tuple[int, float]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """A line to draw: epochs from 1 and their values."""

    label: str
    points: Points
    published: bool = False


def lines_of(runs: Sequence[Run], metric: str) -> list[Line]:
    """The runs, and after them the published curve of the first where there is one to see."""
    key = {"loss": "train_loss", "top1": "val_top1"}[metric]
    found = [Line(label=run.label, points=_points(run, key)) for run in runs]
    curve = runs[0].curve
    if metric == "top1" and curve and curve.points:
        last = max(line.points[-1][0] for line in found) * AHEAD
        points = [(epoch + 1, top1) for epoch, top1 in sorted(curve.points.items())]
        seen = [point for point in points if point[0] <= last]
        # A shipped model's own log is the published curve.
        if seen and all(seen != line.points for line in found):
            found.append(Line(label=f"published: {curve.source}", points=seen, published=True))
    return found


def _points(run: Run, key: str) -> list[tuple[int, float]]:
    return [(row["epoch"] + 1, float(row[key])) for row in run.log if isfinite(row[key])]


def draw_run(output: Path, title: str) -> None:
    """Draw loss and top-1 of a run's folder into its `curve.png`."""
    run = read_run(str(output.resolve()))
    last = run.log[-1]
    draw(
        [run],
        output / CURVE_FILE,
        title=f"{title}: {last['val_top1']:.2f} % after {_epochs(last['epoch'] + 1)}",
    )


def draw(
    runs: Sequence[Run], file: Path, *, metrics: Sequence[str] = ("loss", "top1"), title: str = ""
) -> None:
    """Write a PNG with one panel for each metric. Raises ImportError without matplotlib."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.08)
    figure = Figure(figsize=(7, 1.2 + 2.6 * len(metrics)), layout=layout)
    panels = figure.subplots(len(metrics), sharex=True, squeeze=False)[:, 0]
    for panel, metric in zip(panels, metrics, strict=True):
        for number, line in enumerate(lines_of(runs, metric)):
            _draw_line(panel, line, COLOURS[number % len(COLOURS)])
        if metric == "top1":
            _draw_figure(panel, runs)
        panel.set_ylabel(METRICS[metric])
        panel.grid(color="#dddddd", linewidth=0.6)
        panel.spines[["top", "right"]].set_visible(False)
    panels[-1].set_xlabel("epoch")
    panels[-1].xaxis.get_major_locator().set_params(integer=True)
    figure.suptitle(title, fontsize="medium")
    # The last panel has every label; below the panels none of them hides a line.
    figure.legend(
        *panels[-1].get_legend_handles_labels(), loc="outside lower left", frameon=False, fontsize=8
    )
    data = BytesIO()
    figure.savefig(data, format="png", dpi=120)
    write_whole(file, data.getvalue())


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
        label=line.label,
    )


def _draw_figure(panel: Axes, runs: Sequence[Run]) -> None:
    """The published figure as a line over its band, or its name where it is far above."""
    found = _figure(runs[0])
    if found is None:
        return
    figure, band, label = found
    if max(row["val_top1"] for run in runs for row in run.log) * IN_SIGHT < figure:
        panel.plot([], [], " ", label=f"{label}: far above")
        return
    panel.axhline(figure, color=GREY, linewidth=0.9, label=label)
    panel.axhspan(figure - band, figure, color=GREY, alpha=0.2, linewidth=0)


def _figure(run: Run) -> tuple[float, float, str] | None:
    """The published figure of a run's recipe, its band, and both in words."""
    metric = published_figure(run.recipe) if run.recipe else None
    if run.recipe is None or metric is None or metric.top1 is None:
        return None
    band = run.recipe.band
    return metric.top1, band, f"published figure {metric.top1:.2f} %, band {band:g}"


def in_terminal(
    runs: Sequence[Run], metric: str, *, width: int = 80, height: int = 15, plain: bool = False
) -> str:
    """A chart of characters with a line on each run; `plain` for a terminal of ASCII only."""
    lines = lines_of(runs, metric)
    told = [METRICS[metric], *chart(lines, width=width, height=height, plain=plain)]
    for mark, line in zip(_marks(lines, plain), lines, strict=True):
        told += wrap(f"{mark} {line.label}", width, initial_indent="  ", subsequent_indent="    ")
    if metric == "top1" and (found := _figure(runs[0])):
        told.append(f"    {found[2]}")
    for run in runs:
        told += wrap(summary(run), width, subsequent_indent="    ")
    text = "\n".join(told) + "\n"
    return text.encode("ascii", "backslashreplace").decode() if plain else text


def summary(run: Run) -> str:
    """Where a run is and how it stands, in one line."""
    last = run.log[-1]
    epochs = f"{last['epoch'] + 1}/{run.recipe.epochs}" if run.recipe else str(last["epoch"] + 1)
    figures = f"epoch {epochs}, loss {last['train_loss']:.3f}, top-1 {last['val_top1']:.2f} %"
    stood = run.standing
    return f"{run.label}: {figures}" + (f"; {stood.sentence(run.differs)}" if stood else "")


def chart(lines: Sequence[Line], *, width: int, height: int, plain: bool) -> list[str]:
    """The rows of a chart at most `width` characters wide, axes and their ends included.

    One run is drawn in dots of braille, of which a character holds 2 x 4; several by digits.
    """
    points = [point for line in lines for point in line.points]
    if not points:
        return ["no figure that can be drawn"]
    low, high = _range([value for _, value in points])
    digits = 1 if high - low >= 5 else 2 if high - low >= 0.5 else 4
    ticks = {0: high, height // 2: high - (high - low) * (height // 2) / (height - 1)}
    names = {row: f"{value:.{digits}f}" for row, value in (ticks | {height - 1: low}).items()}
    margin = max(map(len, names.values())) + 1
    columns = width - margin - 1
    first, last = min(epoch for epoch, _ in points), max(epoch for epoch, _ in points)
    frame = _Frame(first=first, last=last, low=low, high=high, columns=columns, rows=height)
    rows = _cells(lines, frame, plain)
    side, tick, corner, base = "|++-" if plain else "│┤└─"
    told = [
        f"{names.get(n, ''):>{margin - 1}} {tick if n in names else side}{row}".rstrip()
        for n, row in enumerate(rows)
    ]
    told.append(" " * margin + corner + base * columns)
    ends = f"{first}{'epoch':^{columns - len(str(first)) - len(str(last))}}{last}"
    return [*told, " " * (margin + 1) + (ends if last > first else str(first))]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Frame:
    """What part of the plane is drawn, on how many characters."""

    first: int
    last: int
    low: float
    high: float
    columns: int
    rows: int

    def trace(self, points: Points, across: int, down: int) -> list[tuple[int, int]]:
        """The dots of a line where a character holds `across` x `down`: column and row."""
        right, bottom = self.columns * across - 1, self.rows * down - 1
        places = [
            (
                round((epoch - self.first) / max(1, self.last - self.first) * right),
                round((self.high - value) / (self.high - self.low) * bottom),
            )
            for epoch, value in points
        ]
        dots = places[:1]
        for (x, y), (to_x, to_y) in pairwise(places):
            steps = max(abs(to_x - x), abs(to_y - y), 1)
            dots += [
                (x + round((to_x - x) * n / steps), y + round((to_y - y) * n / steps))
                for n in range(1, steps + 1)
            ]
        return dots


# The bit of a dot in Unicode's braille: by its row, then its column.
_BRAILLE = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))


def _cells(lines: Sequence[Line], frame: _Frame, plain: bool) -> list[str]:
    rows = [[" "] * frame.columns for _ in range(frame.rows)]
    runs = [line for line in lines if not line.published]
    marks = _marks(lines, plain)
    for line in lines:
        if line.published:
            for column, row in frame.trace(line.points, 1, 1):
                rows[row][column] = marks[-1]
    if len(runs) == 1 and not plain:
        bits: dict[tuple[int, int], int] = {}
        for x, y in frame.trace(runs[0].points, 2, 4):
            place = (x // 2, y // 4)
            bits[place] = bits.get(place, 0) | _BRAILLE[y % 4][x % 2]
        for (column, row), dots in bits.items():
            rows[row][column] = chr(0x2800 + dots)
    else:
        held: dict[tuple[int, int], list[str]] = {}
        for mark, line in zip(marks[: len(runs)], runs, strict=True):
            for place in dict.fromkeys(frame.trace(line.points, 1, 1)):
                held.setdefault(place, []).append(mark)
        # Where runs meet, their marks take turns.
        for (column, row), those in held.items():
            rows[row][column] = those[column % len(those)]
    return ["".join(row) for row in rows]


def _marks(lines: Sequence[Line], plain: bool) -> list[str]:
    """The character of each line: one run is a stroke, several have numbers."""
    runs = sum(not line.published for line in lines)
    numbers = "123456789abcdefghijklmnopqrstuvwxyz"
    one = "*" if plain else "\u2812"
    marks = [one] if runs == 1 else [numbers[n % len(numbers)] for n in range(runs)]
    return marks + ["." if plain else "·"] * (len(lines) - runs)


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _epochs(count: int) -> str:
    return "1 epoch" if count == 1 else f"{count} epochs"
