"""Runs read back from what they left: a log, a plan, a receipt."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deit_zoo.errors import DataError, RecipeError
from deit_zoo.files import ASSETS, LOG_FILE, PLAN_FILE, RECEIPT_FILE
from deit_zoo.recipes import RECIPES
from deit_zoo.recipes.recipe import Recipe, from_dict
from deit_zoo.registry import lookup
from deit_zoo.runs.reference import (
    Curve,
    CurveStatus,
    curve_of,
    read_log,
    setting_differences,
    standing,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """A run's log and, where a plan or receipt lies beside it, its recipe and what differs.

    `shipped` is the run of an embedded model, which is the published one.
    """

    label: str
    log: list[dict[str, Any]]
    recipe: Recipe | None
    differs: tuple[str, ...] = ()
    shipped: bool = False

    @property
    def curve(self) -> Curve | None:
        """The published curve of the run's recipe, which it is to be compared with."""
        return curve_of(self.recipe) if self.recipe and not self.shipped else None

    @property
    def standing(self) -> CurveStatus | None:
        """Where the newest epoch stands."""
        curve = self.curve
        return standing(curve, self.log, self.recipe.band) if curve and self.recipe else None


def read_run(word: str) -> Run:
    """The run that a word names: a run's folder, a log, or an embedded model.

    Raises DataError where it is none of these, or where no epoch has ended yet.
    """
    path = Path(word)
    if (name := embedded(word)) is not None:
        log = read_log(ASSETS / f"{name}.{LOG_FILE}")
        return Run(label=name, log=log, recipe=RECIPES.get(name), shipped=True)
    if path.is_dir():
        return _run_in(path)
    if not path.is_file():
        raise DataError(
            f"{word} is no run; give a run's folder, its {LOG_FILE}, or one of "
            f"{', '.join(embedded_names())}"
        )
    recipe, differs = _planned(path.parent) if path.name == LOG_FILE else (None, ())
    return Run(label=word, log=_begun(read_log(path), path), recipe=recipe, differs=differs)


def read_receipt(word: str) -> dict[str, Any]:
    """The receipt that a word names: a file, a run's folder, or an embedded model.

    Raises DataError where there is none.
    """
    file = Path(word)
    if (name := embedded(word)) is not None:
        file = ASSETS / f"{name}.{RECEIPT_FILE}"
    elif file.is_dir():
        file = file / RECEIPT_FILE
    if not file.is_file():
        raise DataError(
            f"{file} is missing; a finished run's folder holds a {RECEIPT_FILE}, and "
            f"{', '.join(embedded_names())} have theirs"
        )
    try:
        receipt = json.loads(file.read_text(encoding="utf-8"))
        sound = all(isinstance(receipt[key], dict) for key in ("plan", "reached", "sha256"))
    except (OSError, ValueError, KeyError, TypeError):
        sound = False
    if not sound:
        raise DataError(
            f"{file} is no receipt of a deit_zoo run; give the {RECEIPT_FILE} that "
            "`deit-zoo reproduce` left"
        )
    return receipt


def embedded_names() -> list[str]:
    """The models whose log and receipt are shipped."""
    return sorted(path.name.removesuffix(f".{LOG_FILE}") for path in ASSETS.glob(f"*.{LOG_FILE}"))


def embedded(word: str) -> str | None:
    """The embedded model that a word names, in any spelling; ./NAME is a path."""
    spec = lookup(word) if Path(word).name == word else None
    return spec.name if spec and spec.name in embedded_names() else None


def _run_in(folder: Path) -> Run:
    if not any((folder / name).is_file() for name in (LOG_FILE, PLAN_FILE)):
        raise DataError(
            f"{folder} is no run: it holds neither {LOG_FILE} nor {PLAN_FILE}; give the --output "
            "of a `deit-zoo reproduce`"
        )
    log = read_log(folder / LOG_FILE) if (folder / LOG_FILE).is_file() else []
    recipe, differs = _planned(folder)
    label = str(folder) if folder.name else folder.resolve().name
    return Run(label=label, log=_begun(log, folder), recipe=recipe, differs=differs)


def _begun(log: list[dict[str, Any]], path: Path) -> list[dict[str, Any]]:
    if not log:
        raise DataError(f"{path} has no finished epoch yet; type it again when the first has ended")
    return log


def _planned(folder: Path) -> tuple[Recipe | None, tuple[str, ...]]:
    """The recipe of a run and what differs from the shipped one, by its plan or its receipt."""
    file = next((folder / n for n in (PLAN_FILE, RECEIPT_FILE) if (folder / n).is_file()), None)
    if file is None:
        return None, ()
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        plan = values if file.name == PLAN_FILE else values["plan"]
        recipe = from_dict(plan["recipe"])
        precision = plan.get("precision", "auto")
        return recipe, tuple(setting_differences(recipe, int(plan["num_images"]), precision))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecipeError) as error:
        raise DataError(
            f"{file} is no {file.stem} of a deit_zoo run; remove it, or give the {LOG_FILE} "
            "alone, under another name"
        ) from error
