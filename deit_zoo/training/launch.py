"""Checks before a run, and its start. Nothing is loaded until every check has passed."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from deit_zoo.errors import DataError, MissingExtraError, RecipeError
from deit_zoo.files import write_whole
from deit_zoo.registry import resolve
from deit_zoo.training.plan import IMAGENET_TRAIN, Plan, default_workers
from deit_zoo.training.recipe import Recipe, changed
from deit_zoo.training.recipes import RECIPES

if TYPE_CHECKING:
    from deit_zoo.training.report import Verdict

PLAN_FILE = "plan.json"
DIGITS_TRAIN = 1437
_EXTRA = ("timm", "matplotlib", "tensorboard")


def recipe_for(name: str, changes: Sequence[str] = ()) -> Recipe:
    """The recipe of a model, with `field=value` changes. Raises RecipeError where none is known."""
    spec = resolve(name)
    if spec.name not in RECIPES:
        raise RecipeError(
            f"no recipe for {spec.name} is in this version of deit_zoo; there are recipes for "
            f"{', '.join(RECIPES)}"
        )
    return changed(RECIPES[spec.name], changes)


def make_plan(
    name: str,
    *,
    gpus: int,
    changes: Sequence[str] = (),
    workers: int | None = None,
    num_images: int | None = None,
) -> Plan:
    """The plan of a run on this machine; 0 GPUs is the CPU."""
    recipe = recipe_for(name, changes)
    if gpus < 0:
        raise RecipeError(f"--gpus is {gpus}; give the number of GPUs, or 0 for the CPU")
    expected = DIGITS_TRAIN if recipe.data == "digits" else IMAGENET_TRAIN
    return Plan(
        recipe=recipe,
        modified=bool(changes),
        device="cuda" if gpus else "cpu",
        processes=max(1, gpus),
        workers=default_workers(max(1, gpus)) if workers is None else workers,
        num_images=expected if num_images is None else num_images,
    )


def reproduce(
    name: str,
    *,
    gpus: int,
    output: Path,
    data: Path | None = None,
    changes: Sequence[str] = (),
    workers: int | None = None,
    resume: str = "auto",
    say: Callable[[Plan], None] = lambda plan: None,
) -> Verdict:
    """Check, plan, train, export, evaluate, judge. `say` is called with the plan before the start.

    Raises MissingExtraError, DataError, RecipeError before anything is trained.
    """
    recipe = recipe_for(name, changes)
    check_extra()
    check_device(gpus)
    check_output(output, recipe, resume)
    check_data(data, recipe)
    plan = make_plan(
        name,
        gpus=gpus,
        changes=changes,
        workers=workers,
        num_images=count_images(data / "train") if data else None,
    )
    output.mkdir(parents=True, exist_ok=True)
    data = data or written_digits(output)
    text = json.dumps(plan.to_dict(), indent=2, sort_keys=True) + "\n"
    write_whole(output / PLAN_FILE, text.encode())
    say(plan)

    from deit_zoo.training.run import train

    return train(plan, data, output)


def check_extra() -> None:
    """Raises MissingExtraError where the training extra is not installed."""
    if missing := [module for module in _EXTRA if find_spec(module) is None]:
        raise MissingExtraError(
            f"training needs {', '.join(missing)}; type: pip install 'deit_zoo[train]'"
        )


def check_device(gpus: int) -> None:
    """Raises RecipeError where the machine has not what was asked for."""
    if gpus == 0:
        return
    if gpus > 1:
        raise RecipeError(
            f"--gpus {gpus}: this version of deit_zoo trains in one process; type --gpus 1, or "
            "--gpus 0 for the CPU (--dry-run shows the plan of any number)"
        )
    import torch

    if not torch.cuda.is_available():
        raise RecipeError("--gpus 1, but torch sees no GPU here; type --gpus 0 for the CPU")


def check_output(output: Path, recipe: Recipe, resume: str) -> None:
    """Raises DataError where the folder is not empty and not a run of this recipe."""
    if resume not in ("auto", "never"):
        raise RecipeError(f"--resume is {resume!r}; it must be auto or never")
    if output.exists() and not output.is_dir():
        raise DataError(f"{output} is a file; give a folder as --output")
    if not output.exists() or not any(output.iterdir()):
        return
    plan = output / PLAN_FILE
    if not plan.is_file():
        raise DataError(f"{output} holds files that are no run; give an empty folder as --output")
    if resume == "never":
        raise DataError(f"{output} holds a run already; give a new --output, or --resume auto")
    try:
        left = json.loads(plan.read_text(encoding="utf-8"))
        name, sha256 = left["recipe"]["name"], left["recipe_sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{plan} is no plan of a deit_zoo run; give an empty folder as --output"
        ) from error
    if sha256 != recipe.digest:
        raise RecipeError(
            f"{output} holds a run of another recipe ({name}); give a new "
            f"--output, or remove it: rm -r {shlex.quote(str(output))}"
        )


def check_data(data: Path | None, recipe: Recipe) -> None:
    """Raises DataError where there is no image folder to train on; the digits are embedded."""
    if data is None and recipe.data != "digits":
        raise DataError(
            f"{recipe.name} trains on {recipe.data}, which is not shipped; type --data DIR with "
            "train/ and val/ in it"
        )
    for split in ("train", "val"):
        if data and not (data / split).is_dir():
            raise DataError(
                f"{data} has no folder {split}/; it must hold train/ and val/, each with one "
                "folder of images per class"
            )


def written_digits(output: Path) -> Path:
    """The embedded digits as an image folder inside the run's own."""
    from deit_zoo.digits import write_folder

    folder = output / "data"
    if not folder.exists():
        write_folder(folder)
    return folder


def count_images(train: Path) -> int:
    """The images of a training folder."""
    from deit_zoo.evaluation import IMAGE_SUFFIXES

    return sum(path.suffix.lower() in IMAGE_SUFFIXES for path in train.rglob("*"))
