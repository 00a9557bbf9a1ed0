"""Accuracy against speed: how good the published models are, and how fast on this machine."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from deit_zoo.errors import ZooError
from deit_zoo.facts.speed import (
    COLOURS,
    OTHER,
    PUBLISHED,
    TITLES,
    series_of,
    size_of,
    top1_of_models,
)
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
    """The curve as a PNG: top-1 over images per second, `where` they were measured, a panel for
    each family, and beside it what others published of the same models."""
    top1 = {point.model: point.top1 for point in points}
    known = {
        f"{hardware}\n{source}": {name: speed for name, speed in speeds.items() if name in top1}
        for (hardware, source), speeds in PUBLISHED.items()
    }
    own = {point.family for point in points}
    families = [name for name in (*TITLES, *sorted(own - TITLES.keys())) if name in own]
    width = max(len(families), 2)  # in panels
    parts = [width, 1.2] if any(known.values()) else [width]
    figure = new_figure(3.4 * sum(parts), 5.6)
    here, *elsewhere = figure.subfigures(1, len(parts), squeeze=False, width_ratios=parts)[0]
    panels = here.subplots(1, len(families), sharex=True, sharey=True, squeeze=False)[0]
    for panel, family in zip(panels, families, strict=True):
        panel.set_title(TITLES.get(family, family), loc="left")
        draw_series(panel, [point for point in points if point.family == family])
        others = [point for point in points if point.family != family]
        panel.scatter(
            [point.images_per_second for point in others],
            [point.top1 for point in others],
            color=OTHER,
            alpha=0.25,
            s=9,
            zorder=0,
        )
        panel.legend(fontsize=7, frameon=False, loc="lower left")
    here.supxlabel(f"images per second here: {where}", fontsize="medium")
    kinds = dict.fromkeys(MODELS[point.model].labels for point in points)
    panels[0].set_ylabel(f"top-1 on {' and '.join(DATA.get(kind, kind) for kind in kinds)} (%)")
    lowest, highest = min(top1.values()), max(top1.values())
    room = max(0.06 * (highest - lowest), 1 - (highest - lowest) / 2)  # one image is no cliff
    panels[0].set_ylim(lowest - room, highest + room)
    published = [part.subplots() for part in elsewhere]
    for part, panel in zip(elsewhere, published, strict=True):
        panel.sharey(panels[0])
        panel.set_title("elsewhere, as published", loc="left")
        draw_published(panel, known, top1)
        part.supxlabel("images per second", fontsize="medium")
    for panel in [*panels, *published]:
        panel.set_xscale("log", subs=(2, 5))
        panel.xaxis.set_major_formatter("{x:,.6g}")
        panel.xaxis.set_minor_formatter("" if panel in published else "{x:,.6g}")
        panel.tick_params(axis="x", which="minor", labelsize=7, colors=OTHER)
        panel.grid(alpha=0.25, linewidth=0.5)
        panel.spines[["top", "right"]].set_visible(False)
    return png_of(figure)


def draw_series(axes: Axes, points: Sequence[Point]) -> None:
    """Each series of a family as a line through its sizes, which are named."""
    from matplotlib.patheffects import withStroke

    series: dict[str, list[Point]] = defaultdict(list)
    for point in sorted(points, key=lambda point: point.images_per_second):
        series[point.series].append(point)
    for name, of_series in sorted(series.items()):
        colour = COLOURS.get(of_series[0].family, OTHER)
        large = "224" not in name
        # Where a name has room: sizes of 224 and 384 pixels, and of more data, lie close together.
        more = any("21k" in other for other in series)
        above = (large or "21k" in name) if more else not large
        marker = "*" if "distilled" in name else "s" if "448" in name else "o"
        axes.plot(
            [point.images_per_second for point in of_series],
            [point.top1 for point in of_series],
            color=colour,
            marker=marker,
            markersize=10 if marker == "*" else 5.5,
            markerfacecolor="white" if large else colour,
            linestyle="--" if "21k" in name else "-",
            linewidth=1.2,
            label=name.partition(", ")[2],  # the family is the panel's
        )
        for point in of_series:
            axes.annotate(
                size_of(point.model),
                (point.images_per_second, point.top1),
                (-6 if large else 6, 3 if above else -9),
                ha="right" if large else "left",
                textcoords="offset points",
                fontsize=7,
                color=colour,
                path_effects=[withStroke(linewidth=2, foreground="white")],
            )
    axes.margins(x=0.15)


def draw_published(
    axes: Axes, speeds: Mapping[str, Mapping[str, float]], top1: Mapping[str, float]
) -> None:
    """The speeds that others published, a mark for each hardware, a row for each model."""
    for (label, known), marker in zip(speeds.items(), MARKERS, strict=True):
        heights = [top1[name] for name in known]
        axes.plot(list(known.values()), heights, marker, color=OTHER, markersize=5, label=label)
    for name in {name: None for known in speeds.values() for name in known}:
        of_model = [known[name] for known in speeds.values() if name in known]
        alone = len(of_model) == 1
        axes.annotate(
            name,
            (max(of_model), top1[name]),
            (-5 if alone else 5, 0),  # to its right may lie another model's
            ha="right" if alone else "left",
            va="center",
            textcoords="offset points",
            fontsize=6.5,
            color=COLOURS.get(MODELS[name].family, OTHER),
        )
    axes.margins(x=0.45)
    axes.legend(fontsize=6.5, frameon=False, loc="upper right")
