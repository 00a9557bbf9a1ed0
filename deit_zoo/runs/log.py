"""Runs read back from what they left: a log, a plan, a receipt."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deit_zoo.errors import DataError, RecipeError
from deit_zoo.files import ASSETS, LOG_FILE, PLAN_FILE, RECEIPT_FILE, digest, read_json
from deit_zoo.recipes import RECIPES, find_recipe
from deit_zoo.recipes.recipe import Recipe, from_dict
from deit_zoo.registry.names import lookup
from deit_zoo.runs.reference import (
    Curve,
    CurveStatus,
    compare_to_reference,
    published_curve,
    read_log,
    setting_differences,
)

# What comes of reading a recipe from what is none.
_NO_RECIPE = (ValueError, KeyError, TypeError, AttributeError, RecipeError)


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """A run's log and, where a plan or receipt lies beside it, its recipe and what differs.

    `shipped` is the run of an embedded model, which is the published one; `note` is a remark on
    the log.
    """

    label: str
    log: list[dict[str, Any]]
    recipe: Recipe | None
    differs: tuple[str, ...] = ()
    shipped: bool = False
    note: str = ""

    @property
    def figures(self) -> list[float | None]:
        """What counts in each epoch, in percent: `figure` says which."""
        return [counted(row)[1] for row in self.log]

    @property
    def figure(self) -> str:
        """What the figure is called that counts."""
        return counted(self.log[-1])[0]

    @property
    def curve(self) -> Curve | None:
        """The published curve of the run's recipe, which it is to be compared with."""
        return published_curve(self.recipe) if self.recipe and not self.shipped else None

    @property
    def status(self) -> CurveStatus | None:
        """Where the newest epoch stands beside that curve."""
        if self.recipe is None or (curve := self.curve) is None:
            return None
        return compare_to_reference(curve, self.log, self.recipe.band)


def counted(row: dict[str, Any]) -> tuple[str, float | None]:
    """The figure of an epoch that counts, and what it is called."""
    if "val_mean_ap" in row:
        return "mean AP", row["val_mean_ap"]
    return "top-1", row["val_top1"]


def read_run(name_or_path: str) -> Run:
    """The run of a folder, a log, or an embedded model."""
    path = Path(name_or_path)
    if (name := embedded(name_or_path)) is not None:
        log = read_log(ASSETS / f"{name}.{LOG_FILE}")
        return Run(label=name, log=log, recipe=RECIPES.get(name), shipped=True)
    label, folder, file = name_or_path, path.parent, path
    if path.is_dir():
        label, folder, file = str(path) if path.name else path.resolve().name, path, path / LOG_FILE
        if not file.is_file() and not (folder / PLAN_FILE).is_file():
            raise DataError(
                f"{folder} is no run: it holds neither {LOG_FILE} nor {PLAN_FILE}; give the "
                "--output of a `deit-zoo reproduce`"
            )
    elif not path.is_file():
        raise DataError(
            f"{name_or_path} is no run; give a run's folder, its {LOG_FILE}, or one of "
            f"{', '.join(embedded_names())}"
        )
    recipe, differs = _recipe_of(folder) if file.name == LOG_FILE else (None, ())
    if not (log := read_log(file) if file.is_file() else []):
        raise DataError(f"{path} has no finished epoch yet; type it again when the first has ended")
    return Run(label=label, log=log, recipe=recipe, differs=differs, note=_note_on(file))


def read_receipt(name_or_path: str) -> dict[str, Any]:
    """The receipt of a file, a run's folder, or an embedded model."""
    file = Path(name_or_path)
    if (name := embedded(name_or_path)) is not None:
        file = ASSETS / f"{name}.{RECEIPT_FILE}"
    elif file.is_dir():
        file = file / RECEIPT_FILE
    if not file.is_file():
        raise DataError(
            f"{file} is missing; a finished run's folder holds a {RECEIPT_FILE}, and "
            f"{', '.join(embedded_names())} have theirs"
        )
    try:
        receipt = read_json(file)
        sound = all(isinstance(receipt[key], dict) for key in ("plan", "reached", "sha256"))
    except (OSError, ValueError, KeyError, TypeError):
        sound = False
    if not sound:
        raise DataError(
            f"{file} is no receipt of a deit_zoo run; give the {RECEIPT_FILE} that "
            "`deit-zoo reproduce` left"
        )
    return _in_current_words(receipt)


def recipe_named(name_or_path: str) -> Recipe | None:
    """The recipe of this name; None for a path, and for an embedded model, which has a receipt."""
    if Path(name_or_path).exists() or embedded(name_or_path) is not None:
        return None
    return find_recipe(name_or_path)


def recipe_of(name_or_path: str) -> Recipe:
    """The recipe of this name, or that of a receipt. Raises DataError for a receipt without."""
    if (recipe := recipe_named(name_or_path)) is not None:
        return recipe
    try:
        return from_dict(read_receipt(name_or_path)["plan"]["recipe"])
    except _NO_RECIPE as error:
        raise DataError(
            f"the receipt of {name_or_path} has no recipe that this version can read; give the "
            "name of a recipe, or another receipt"
        ) from error


def _in_current_words(receipt: dict[str, Any]) -> dict[str, Any]:
    """Earlier receipts say band for tolerance; the word alone is no difference of two runs."""
    if isinstance(verdict := receipt.get("verdict"), str):
        receipt["verdict"] = verdict.replace(", band ", ", tolerance ")
    if isinstance(status := receipt.get("standing"), dict) and "sentence" in status:
        status["sentence"] = str(status["sentence"]).replace("the band of", "tolerance of")
    return receipt


def embedded_names() -> list[str]:
    """The models whose log and receipt are shipped."""
    return sorted(path.name.removesuffix(f".{LOG_FILE}") for path in ASSETS.glob(f"*.{LOG_FILE}"))


def embedded(name_or_path: str) -> str | None:
    """The embedded model of this name, in any spelling; ./NAME is a path."""
    if Path(name_or_path).name != name_or_path:
        return None
    spec = lookup(name_or_path)
    return spec.name if spec and spec.name in embedded_names() else None


def _note_on(log: Path) -> str:
    """That a log is not the one that the receipt beside it is of; empty where it is."""
    receipt = log.with_name(RECEIPT_FILE)
    if log.name != LOG_FILE or not receipt.is_file():
        return ""
    if read_receipt(str(receipt))["sha256"].get(LOG_FILE) in (None, digest(log)):
        return ""
    return (
        f"{log} does not have the SHA-256 that the {RECEIPT_FILE} beside it states: these are not "
        "the figures of the run that ended"
    )


def _recipe_of(folder: Path) -> tuple[Recipe | None, tuple[str, ...]]:
    """The recipe of a run and what differs from the shipped one, by its plan or its receipt."""
    file = folder / PLAN_FILE
    if not file.is_file():
        file = folder / RECEIPT_FILE
    if not file.is_file():
        return None, ()
    try:
        values = read_json(file)
        plan = values if file.name == PLAN_FILE else values["plan"]
        recipe = from_dict(plan["recipe"])
        precision = plan.get("precision", "auto")
        return recipe, tuple(setting_differences(recipe, int(plan["num_images"]), precision))
    except (OSError, *_NO_RECIPE) as error:
        raise DataError(
            f"{file} is no {file.stem} of a deit_zoo run; remove it, or give the {LOG_FILE} "
            "alone, under another name"
        ) from error
