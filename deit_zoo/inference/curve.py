"""Accuracy against speed: how good the published models are, and how fast on this machine."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from deit_zoo.errors import ZooError
from deit_zoo.facts.speed import COLOURS, OTHER, PUBLISHED, series_of, size_of, top1_of_models
from deit_zoo.inference.throughput import Case, figures, measure, plain_model, random_images, run_of
from deit_zoo.registry import MODELS
from deit_zoo.runs.picture import new_figure, png_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TEACHER = "regnety_160_deit"  # whom timm builds
MARKERS = "sd^"
DATA = {"imagenet1k": "ImageNet", "digits": "the digits"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """A model: its published top-1 in percent, and the images per second that were measured.

    `series` joins the sizes of one family: those of a resolution, distilled or not, and of the data
    that they were trained on.
    """

    model: str
    family: str
    series: str
    top1: float
    images_per_second: float
    round_ms: list[float]


def models_on_curve(names: Sequence[str]) -> list[str]:
    """The models of which a top-1 is known, in the order of their cost; all of ImageNet's for none.

    Raises ZooError for a name of which none is.
    """
    top1 = top1_of_models()
    if missing := [name for name in names if name not in top1]:
        raise ZooError(f"no top-1 of {missing[0]} is known, so it has no place on the curve")
    students = [n for n in MODELS if MODELS[n].labels == "imagenet1k" and n != TEACHER]
    chosen = names or [name for name in students if name in top1]
    return sorted(chosen, key=lambda name: MODELS[name].gmacs)


def measure_curve(
    cases: Sequence[Case],
    mode: str,
    *,
    rounds: int,
    seconds: float,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Point]:
    """A point for each case. What differs in its weights alone is measured once."""
    import torch

    top1 = top1_of_models()
    measured: dict[str, dict[str, Any]] = {}
    points = []
    for number, case in enumerate(cases):
        progress(number, len(cases))
        spec = MODELS[case.model]
        network = repr((spec.builder, spec.arch, case.img_size))
        if network not in measured:
            torch.set_num_threads(case.threads)
            run = run_of(plain_model(case), mode, case, random_images(case))
            times = measure({mode: run}, rounds=rounds, seconds=seconds, device=case.device)
            measured[network] = figures(times[mode], case.batch_size)
        points.append(
            Point(
                model=case.model,
                family=spec.family,
                series=series_of(spec),
                top1=top1[case.model],
                images_per_second=measured[network]["images_per_second"],
                round_ms=measured[network]["round_ms"],
            )
        )
    return points


def report(points: Sequence[Point]) -> dict[str, Any]:
    """The curve in figures, with what others measured."""
    return {
        "points": [asdict(point) for point in points],
        "published": [
            {"hardware": hardware, "source": source, "images_per_second": dict(speeds)}
            for (hardware, source), speeds in PUBLISHED.items()
        ],
    }


def draw(points: Sequence[Point], where: str) -> bytes:
    """The curve as a PNG: top-1 over images per second, `where` they were measured, and beside it
    what others published of the same models."""
    top1 = {point.model: point.top1 for point in points}
    published = {
        f"{hardware}\n{source}": (known, marker)
        for ((hardware, source), speeds), marker in zip(PUBLISHED.items(), MARKERS, strict=True)
        if (known := sorted((speed, top1[n]) for n, speed in speeds.items() if n in top1))
    }
    figure = new_figure(11 if published else 8, 6.5)
    widths = [5, 3] if published else [1]
    ours, *others = figure.subplots(
        1, len(widths), sharey=True, squeeze=False, width_ratios=widths
    )[0]
    draw_series(ours, points)
    ours.set_xlabel(f"images per second here: {where}")
    kinds = {MODELS[point.model].labels for point in points}
    ours.set_ylabel(f"top-1 on {' and '.join(DATA.get(kind, kind) for kind in kinds)} (%)")
    for panel in others:
        for label, (known, marker) in published.items():
            panel.plot(*zip(*known, strict=True), marker, color=OTHER, markersize=5, label=label)
        panel.set_xlabel("images per second elsewhere, as published")
        panel.legend(fontsize=7, frameon=False, loc="upper right")
    for panel in (ours, *others):
        panel.set_xscale("log", subs=(2, 5))
        panel.xaxis.set_major_formatter("{x:,.6g}")
        panel.xaxis.set_minor_formatter("{x:,.6g}")
        panel.tick_params(axis="x", which="minor", labelsize=7, colors=OTHER)
        panel.grid(alpha=0.25, which="both", linewidth=0.5)
        panel.spines[["top", "right"]].set_visible(False)
    figure.legend(
        *ours.get_legend_handles_labels(),
        fontsize=8,
        frameon=False,
        loc="outside lower left",
        ncols=4,
    )
    return png_of(figure)


def draw_series(axes: Axes, points: Sequence[Point]) -> None:
    """Each series as a line through its sizes, which are named."""
    from matplotlib.patheffects import withStroke

    series: dict[str, list[Point]] = defaultdict(list)
    for point in sorted(points, key=lambda point: point.images_per_second):
        series[point.series].append(point)
    for name, of_series in sorted(series.items()):
        colour = COLOURS.get(of_series[0].family, OTHER)
        distilled, large = "distilled" in name, "224" not in name
        axes.plot(
            [point.images_per_second for point in of_series],
            [point.top1 for point in of_series],
            color=colour,
            marker="*" if distilled else "o",
            markersize=10 if distilled else 5.5,
            markerfacecolor="white" if large else colour,
            linestyle="--" if "21k" in name else "-",
            linewidth=1.2,
            label=name,
        )
        for point in of_series:
            axes.annotate(
                size_of(point.model),
                (point.images_per_second, point.top1),
                (-6, -8) if large else (6, 3),  # models of 224 and 384 pixels lie close together
                ha="right" if large else "left",
                textcoords="offset points",
                fontsize=7,
                color=colour,
                path_effects=[withStroke(linewidth=2, foreground="white")],
            )
    axes.margins(x=0.08)
