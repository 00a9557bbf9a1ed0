"""Published curves, and where a run stands beside them.

The rule of `standing` is ours; the band that it uses is the recipe's.
Epochs are counted from 0 in data, as in `log.jsonl`, and from 1 in sentences.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from deit_zoo.errors import DataError
from deit_zoo.files import ASSETS, LOG_FILE
from deit_zoo.manifest import Metric, read_manifest
from deit_zoo.recipes import RECIPES
from deit_zoo.recipes.plan import DIGITS_TRAIN, IMAGENET_TRAIN, Plan
from deit_zoo.recipes.recipe import Recipe, differences, shown
from deit_zoo.registry import MODELS

PUBLISHED = Path(__file__).with_name("published_curves.json")
# What the recipes were written for; a user's own folder has no such number.
TRAIN_IMAGES = {"imagenet1k": IMAGENET_TRAIN, "digits": DIGITS_TRAIN}
# Said after what is more likely to explain a difference.
_LAST = ("seed", "band")


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """Top-1 in percent by epoch, as far as it was published; `final` is where that run ended."""

    points: dict[int, float]
    source: str
    final: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class CurveStatus:
    """The newest epoch beside the published one; below the band since epoch `since`, or None."""

    epoch: int
    top1: float
    published: float
    since: int | None

    def sentence(self, differs: Sequence[str] = ()) -> str:
        """The standing in one line, with the first setting that may explain it."""
        if self.since is None:
            return "within the band of the published curve"
        why = f"first setting that differs: {differs[0]}" if differs else ""
        return (
            f"{self.published - self.top1:.1f} points below the published curve since epoch "
            f"{self.since + 1}; {why or 'no setting differs from the recipe'}"
        )

    def to_dict(self, differs: Sequence[str] = ()) -> dict[str, Any]:
        """The standing as plain data."""
        return asdict(self) | {"sentence": self.sentence(differs)}


def published(recipe_name: str) -> Curve | None:
    """The published curve of a recipe: the log shipped with the model, or the authors' own.

    None where none is known. A manifest may name a log that lies beside weights elsewhere.
    """
    record = read_manifest().get(recipe_name)
    if record and record.log and (ASSETS / record.log).is_file():
        log = read_log(ASSETS / record.log)
        points = {row["epoch"]: float(row["val_top1"]) for row in log}
        return Curve(
            points=points,
            source=f"{record.log}, shipped with deit_zoo",
            final=log[-1]["val_top1"],
        )
    held = json.loads(PUBLISHED.read_text(encoding="utf-8"))
    if recipe_name not in held:
        return None
    found = held[recipe_name]
    return Curve(points=dict(found["points"]), source=found["source"], final=found["final"])


def curve_of(recipe: Recipe) -> Curve | None:
    """The published curve of a recipe; training on one's own images has none."""
    return None if recipe.data == "folder" else published(recipe.name)


def published_figure(recipe: Recipe) -> Metric | None:
    """The figure that a recipe is judged by: the manifest's; the paper's for a stage without one.

    None for training on one's own images, and where nothing was published.
    """
    if recipe.data == "folder":
        return None
    if recipe.name in MODELS:
        record = read_manifest().get(recipe.name)
        return record.metric if record else None
    curve = published(recipe.name)
    if curve is None or curve.final is None:
        return None
    return Metric(top1=curve.final, top5=None, loss=None, source=curve.source)


def standing(curve: Curve, log: Sequence[dict[str, Any]], band: float) -> CurveStatus | None:
    """Where the newest epoch stands; None where no point of it is published.

    An epoch is below when its top-1 is more than `band` points below the lowest of the published
    points at it and at its two neighbours: where a curve is steep, a step late is no failure.
    One such epoch is no verdict: with another seed deit_pico_digits, which was then reproduced,
    was below in 7 of 140 epochs, and never in three on end.
    `since` is the first of the epochs that are below without one between them that is not;
    epochs without a published point are no interruption.
    """
    if not log or log[-1]["epoch"] not in curve.points:
        return None
    newest = log[-1]
    since = None
    for row in reversed(log):
        if row["epoch"] in curve.points:
            if not _is_below(curve, row, band):
                break
            since = row["epoch"]
    return CurveStatus(
        epoch=newest["epoch"],
        top1=newest["val_top1"],
        published=curve.points[newest["epoch"]],
        since=since,
    )


def _is_below(curve: Curve, row: dict[str, Any], band: float) -> bool:
    near = (row["epoch"] - 1, row["epoch"], row["epoch"] + 1)
    lowest = min(curve.points[epoch] for epoch in near if epoch in curve.points)
    # A rounding error decides nothing; a top-1 that is not a number is below all.
    return not row["val_top1"] >= lowest - band - 1e-9


def recipe_differences(recipe: Recipe) -> list[tuple[str, Any, Any]]:
    """The fields in which a recipe is not the shipped one of its name; seed and band last."""
    known = RECIPES.get(recipe.name)
    if known is None:
        return []
    found = differences(recipe, known)
    if recipe.band != known.band:
        found.append(("band", recipe.band, known.band))
    return sorted(found, key=lambda one: one[0] in _LAST)


def plan_differences(plan: Plan) -> list[str]:
    """What in a plan is not as the recipe's figure was made, as `field value, recipe value`."""
    return setting_differences(plan.recipe, plan.num_images, plan.precision)


def first_difference(plan: Plan) -> str | None:
    """The first setting that may explain another figure."""
    return next(iter(plan_differences(plan)), None)


def setting_differences(recipe: Recipe, num_images: int, precision: str) -> list[str]:
    """The same for a plan of another version, of which only this is read."""
    found = [
        (name, f"{name} {shown(mine)}, recipe {shown(known)}")
        for name, mine, known in recipe_differences(recipe)
    ]
    told = [sentence for name, sentence in found if name not in _LAST]
    expected = TRAIN_IMAGES.get(recipe.data, num_images)
    if num_images != expected:
        told.append(f"training images {num_images:,}, recipe {expected:,}")
    if precision != "auto":
        told.append(f"precision {precision}, default auto")
    return told + [sentence for name, sentence in found if name in _LAST]


def read_log(file: Path) -> list[dict[str, Any]]:
    """The epochs of a log. A last line without its end is being written and left out.

    Raises DataError naming the line that is no epoch.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read ({error}); give a run's {LOG_FILE}") from error
    rows = []
    for number, line in enumerate(text.splitlines(keepends=True), start=1):
        if line.endswith("\n"):
            rows.append(_epoch_of(line, f"line {number} of {file}"))
    return rows


def _epoch_of(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
        figures = row["train_loss"], row["val_top1"]
        sound = isinstance(row["epoch"], int) and all(isinstance(x, int | float) for x in figures)
    except (ValueError, KeyError, TypeError):
        sound = False
    if not sound:
        raise DataError(
            f"{where} is no epoch of a run; each line must be a JSON object with epoch, "
            "train_loss and val_top1"
        )
    return row
