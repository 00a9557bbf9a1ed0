"""What the chart's horizontal axis may show: speeds measured here or published, and costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deit_zoo.errors import DataError, FormatError
from deit_zoo.facts.speed import PUBLISHED, where
from deit_zoo.files import as_record, read_json
from deit_zoo.registry import MODELS

if TYPE_CHECKING:
    from deit_zoo.facts.model import ModelInfo

LIMIT = 1 << 20  # bytes; a curve of all models has 20,000
SPEED = "images/s"
RIGHT = "give what `deit-zoo benchmark --curve --output FILE` wrote"


@dataclass(frozen=True, kw_only=True, slots=True)
class Axis:
    """A figure of each model, by its name, with its unit and where it is from."""

    title: str
    unit: str
    source: str
    values: dict[str, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Point:
    model: str
    images_per_second: float


@dataclass(frozen=True, kw_only=True, slots=True)
class _Machine:
    cpu: str
    threads: int
    gpu: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class _Curve:
    date: str
    machine: _Machine
    mode: str
    precision: str
    batch_size: int
    points: list[_Point]


def read_curve(file: Path) -> Axis:
    """The speeds that `deit-zoo benchmark --curve --output FILE` wrote, in images per second.

    Raises DataError where the file is no such report or names a model that the zoo has not.
    """
    try:
        curve = as_record(read_json(file, LIMIT), _Curve, str(file))
    except OSError as error:
        raise DataError(f"{file} cannot be read ({error.strerror}); {RIGHT}") from error
    except FormatError as error:
        raise DataError(f"{error}; {RIGHT}") from error
    for point in curve.points:
        if point.model not in MODELS:
            raise DataError(f"{file} has a speed of {point.model!r:.80}, no model's name; {RIGHT}")
        if not (0 < point.images_per_second < math.inf):
            speed = f"{point.images_per_second:g} images per second"
            raise DataError(f"{file} has {speed} for {point.model}, which none can be; {RIGHT}")
    if not curve.points:
        raise DataError(f"{file} has no points; {RIGHT}")
    facts: dict[str, Any] = {"cpu": curve.machine.cpu, "threads": curve.machine.threads}
    facts |= {"gpu": curve.machine.gpu} if curve.machine.gpu else {}
    return Axis(
        title=f"{where(facts)}, batch {curve.batch_size}, {curve.precision}, {curve.mode}",
        unit=SPEED,
        source=f"measured with deit-zoo benchmark --curve, {curve.date[:10]}",
        values={point.model: point.images_per_second for point in curve.points},
    )


def axes_of(models: Sequence[ModelInfo], measured: Sequence[Axis]) -> list[Axis]:
    """Every axis on which one of the models has a place: measured, published, costs."""
    published = [
        Axis(title=hardware, unit=SPEED, source=source, values=dict(speeds))
        for (hardware, source), speeds in PUBLISHED.items()
    ]
    costs = [
        Axis(
            title="multiply-accumulates of an image",
            unit="GMACs",
            source="counted, attention's products too",
            values={model.name: model.gmacs for model in models},
        ),
        Axis(
            title="parameters",
            unit="million",
            source="counted",
            values={model.name: model.num_params / 1e6 for model in models},
        ),
    ]
    names = {model.name for model in models}
    return [axis for axis in (*measured, *published, *costs) if names & axis.values.keys()]
