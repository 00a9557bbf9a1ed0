"""What a benchmark measured as bars: images per second, a panel for each case."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deit_zoo.files import write_whole
from deit_zoo.inference.throughput import OURS, title
from harness.backends import GRAPHS
from harness.timing import label

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's blues for ours and for our file in another's runtime, which no colour-blind
# reader takes for the grey of the others.
BLUE, SKY, GREY = "#0072B2", "#56B4E9", "#A6A6A6"
# In inches.
WIDTH, BAR, ROOM, HEADING = 8.0, 0.24, 0.62, 0.45


def draw(report: dict[str, Any], file: Path) -> None:
    """Write a PNG of the rows. Raises ImportError without matplotlib."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    cases = [(case, list(rows)) for case, rows in groupby(report["rows"], key=title)]
    heights = [ROOM + BAR * len(rows) for _, rows in cases] or [ROOM]
    figure = Figure(
        figsize=(WIDTH, HEADING + sum(heights)),
        layout=ConstrainedLayoutEngine(h_pad=0.08, w_pad=0.1),
    )
    panels = figure.subplots(len(heights), squeeze=False, height_ratios=heights)[:, 0]
    # Without rows there is one panel, left empty.
    for panel, (case, rows) in zip(panels[: len(cases)], cases, strict=True):
        _draw_case(panel, case, rows)
    machine = report["machine"]
    where = machine.get("gpu", machine["cpu"])
    count = machine["threads"]
    figure.suptitle(
        f"{where}, {count} {'thread' if count == 1 else 'threads'}: images per second",
        fontsize="medium",
    )
    data = BytesIO()
    figure.savefig(data, format="png", dpi=120)
    write_whole(file, data.getvalue())


def _draw_case(panel: Axes, case: str, rows: Sequence[dict[str, Any]]) -> None:
    """Bars from the fastest down, each with its figure behind it."""
    ordered = sorted(rows, key=lambda row: row["images_per_second"])
    names = [label(row["who"], row["mode"]) for row in ordered]
    speeds = [row["images_per_second"] for row in ordered]
    own = [row["who"] == OURS for row in ordered]
    bars = panel.barh(names, speeds, color=[_colour(row) for row in ordered], height=0.72)
    panel.bar_label(bars, [_figure(speed) for speed in speeds], padding=4, fontsize=8)
    for text, ours in zip(panel.get_yticklabels(), own, strict=True):
        text.set_fontweight("bold" if ours else "normal")
    panel.set_title(case, loc="left", fontsize=9)
    panel.set_xlim(0, max(speeds) * 1.12)
    panel.tick_params(axis="y", length=0, labelsize=8)
    panel.tick_params(axis="x", labelsize=7)
    panel.spines[["top", "right", "left"]].set_visible(False)
    panel.grid(axis="x", color="#dddddd", linewidth=0.6)
    panel.set_axisbelow(True)


def _colour(row: dict[str, Any]) -> str:
    if row["who"] == OURS:
        return BLUE
    return SKY if GRAPHS.get(row["mode"]) == OURS else GREY


def _figure(speed: float) -> str:
    return f"{speed:,.0f}" if speed >= 100 else f"{speed:.3g}"
