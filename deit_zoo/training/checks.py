"""What can be refused before a run: what is not installed, the machine, the data, the folder."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from deit_zoo.data.image_list import SPLIT_FILE
from deit_zoo.errors import DataError, MissingExtraError, RecipeError
from deit_zoo.labels import labels
from deit_zoo.machine import check_gpus
from deit_zoo.recipes.plan import Plan
from deit_zoo.recipes.recipe import Recipe
from deit_zoo.registry import MODELS
from deit_zoo.training.changes import check_changes
from deit_zoo.training.job import read_job
from deit_zoo.training.run_data import check_states, has_begun, is_run
from deit_zoo.training.run_lock import OWNER_FILE

DATA_FOLDER = "data"  # the embedded digits, in a run's own
# Of files that a shell or a scheduler writes; a run writes none of these.
LOG_SUFFIXES = (".log", ".out", ".err", ".txt")
_EXTRA = ("timm", "matplotlib", "tensorboard")


def check_data(plan: Plan, data: str | Path | None) -> None:
    """Raises DataError where a run has no images."""
    recipe = plan.recipe
    if data is None and recipe.data != "digits":
        raise DataError(
            f"{recipe.name} trains on {recipe.data}, which is not shipped; type --data DIR with "
            "train/ and val/ in it"
        )
    if data is None and plan.nodes > 1:
        raise DataError(
            f"--nodes {plan.nodes} without --data: type deit-zoo data digits --output DIR where "
            "every node sees it, and then --data DIR"
        )


def check_classes(recipe: Recipe, data: str, classes: list[str]) -> None:
    """Raises DataError where a folder's classes are not those that the recipe is for."""
    from deit_zoo.data.image_set import has_own_names

    expected = sorted(label.folder for label in labels(MODELS[recipe.architecture].labels))
    if classes != expected and not has_own_names(data, classes):
        other = sorted(set(classes) - set(expected)) or sorted(set(expected) - set(classes))
        raise DataError(
            f"{data} has {len(classes):,} classes; {recipe.name} is trained on the "
            f"{len(expected):,} of {recipe.data} ({other[0]!r} is not in both); to train on your "
            "own classes, type --set data=folder"
        )


def check_extra() -> None:
    """Raises MissingExtraError where the training extra is not installed."""
    if missing := [module for module in _EXTRA if find_spec(module) is None]:
        raise MissingExtraError(
            f"training needs {', '.join(missing)}; type: pip install 'deit_zoo[train]'"
        )


def check_log_to(plan: Plan) -> None:
    """Raises MissingExtraError where the package that a run logs to is not installed."""
    if plan.log_to != "none" and find_spec(plan.log_to) is None:
        raise MissingExtraError(
            f"--log-to {plan.log_to} needs the package of that name; type: pip install "
            f"{plan.log_to}"
        )


def check_network(recipe: Recipe) -> None:
    """Raises ZooError for one that cannot be built."""
    from deit_zoo.zoo import create

    create(
        recipe.architecture,
        img_size=recipe.img_size,
        blocks=recipe.blocks,
        stem=recipe.stem,
        device="meta",
    )


def check_device(plan: Plan) -> None:
    """Raises RecipeError where the machine has not what was asked for."""
    if plan.device == "cuda":
        check_gpus(
            plan.processes // plan.nodes,
            dashes="--",
            error=RecipeError,
            advice=" for the CPU (--dry-run shows the plan of any number)",
        )


def check_output(output: Path, recipe: Recipe, resume: str) -> None:
    """Raises DataError where the folder is not empty and not a run of this recipe.

    Logs that a shell or a scheduler puts there are left alone.
    """
    if resume not in ("auto", "never"):
        raise RecipeError(f"--resume is {resume!r}; it must be auto or never")
    if output.exists() and not output.is_dir():
        raise DataError(f"{output} is a file; give a folder as --output")
    # Left by a process that was killed before it wrote its plan; a lock and half a file are hidden.
    entries = output.iterdir() if output.exists() else ()
    names = {path.name for path in entries if path.suffix not in LOG_SUFFIXES or not path.is_file()}
    begun = {DATA_FOLDER, SPLIT_FILE} if OWNER_FILE in names else {DATA_FOLDER}
    if all(name in begun or name.startswith(".") for name in names):
        return
    if not is_run(output):
        raise DataError(f"{output} holds files that are no run; give an empty folder as --output")
    former = read_job(output)
    if not has_begun(output):
        return
    if resume == "never":
        raise DataError(f"{output} holds a run already; give a new --output, or --resume auto")
    check_changes(output, former.plan, recipe)
    check_states(output)
