"""Checks before a run, and its start. Nothing is loaded until every check has passed."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deit_zoo.errors import DataError, MissingExtraError, RecipeError
from deit_zoo.files import PLAN_FILE, write_whole
from deit_zoo.labels import labels
from deit_zoo.recipes import RECIPES
from deit_zoo.recipes.plan import (
    DIGITS_TRAIN,
    IMAGENET_TRAIN,
    Plan,
    default_workers,
    is_first_stage,
    plan_from,
    resolve_init_from,
    settings,
)
from deit_zoo.recipes.recipe import Recipe, changed
from deit_zoo.registry import MODELS, resolve

if TYPE_CHECKING:
    from deit_zoo.data.survey import Survey
    from deit_zoo.runs.receipt import Verdict

DATA_FOLDER = "data"
_EXTRA = ("timm", "matplotlib", "tensorboard")


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """A plan, and the data that it was made for: a folder or `hfds:NAME`, and what lies there."""

    plan: Plan
    data: str
    fingerprint: dict[str, Any]

    def write(self, output: Path) -> None:
        """Leave `plan.json`."""
        held = self.plan.to_dict() | {"data": self.data, "fingerprint": self.fingerprint}
        text = json.dumps(held, indent=2, sort_keys=True) + "\n"
        write_whole(output / PLAN_FILE, text.encode())


def read_job(output: Path) -> Job:
    """What `plan.json` says. Raises DataError where it is none of ours."""
    file = output / PLAN_FILE
    try:
        held = json.loads(file.read_text(encoding="utf-8"))
        return Job(plan=plan_from(held), data=held["data"], fingerprint=held["fingerprint"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{file} is no plan of a deit_zoo run; give an empty folder as --output"
        ) from error


def recipe_for(name: str, changes: Sequence[str] = ()) -> Recipe:
    """The recipe of a model, with `field=value` changes. Raises RecipeError where none is known."""
    known = name if name in RECIPES else resolve(name).name
    if known not in RECIPES:
        raise RecipeError(
            f"no recipe for {known} is in this version of deit_zoo; there are recipes for "
            f"{', '.join(RECIPES)}"
        )
    return changed(RECIPES[known], changes)


def make_plan(
    name: str,
    *,
    gpus: int,
    changes: Sequence[str] = (),
    workers: int | None = None,
    processes: int | None = None,
    nodes: int = 1,
    num_images: int | None = None,
) -> Plan:
    """The plan of a run on `nodes` machines like this one, of `gpus` GPUs each; 0 is the CPU."""
    of_recipe, of_machine = settings(changes)
    recipe = recipe_for(name, of_recipe)
    if gpus < 0 or nodes < 1:
        raise RecipeError(
            f"--gpus is {gpus} and --nodes is {nodes}; give the number of GPUs of a node, or 0 for "
            "the CPU, and 1 node or more"
        )
    if gpus and processes is not None:
        raise RecipeError(
            f"--processes {processes} is for the CPU; with --gpus {gpus} each GPU has one process"
        )
    if processes is not None and processes < 1:
        raise RecipeError(f"--processes is {processes}; give 1 or more")
    local = gpus or processes or 1
    expected = DIGITS_TRAIN if recipe.data == "digits" else IMAGENET_TRAIN
    return Plan(
        recipe=recipe,
        modified=[c for c in of_recipe if not is_first_stage(c, RECIPES[recipe.name])] != [],
        device="cuda" if gpus else "cpu",
        processes=local * nodes,
        nodes=nodes,
        workers=default_workers(local) if workers is None else workers,
        num_images=expected if num_images is None else num_images,
        **of_machine,
    )


def reproduce(
    name: str,
    *,
    gpus: int,
    output: Path,
    data: str | Path | None = None,
    changes: Sequence[str] = (),
    workers: int | None = None,
    processes: int | None = None,
    nodes: int = 1,
    rendezvous: str | None = None,
    resume: str = "auto",
    say: Callable[[Job], None] = lambda job: None,
    progress: Callable[[int], None] = lambda files: None,
) -> Verdict:
    """Check, plan, train, export, evaluate, judge. `say` is called with the job before the start.

    One process trains here; several are started by torchrun's launcher, unless this is one of them
    already (under torchrun, or under srun with a task for each).

    Raises MissingExtraError, DataError, RecipeError before anything is trained, and Stopped where
    the run was asked to stop.
    """
    check_extra()
    plan = make_plan(
        name,
        gpus=gpus,
        changes=changes,
        workers=workers,
        processes=started_with(processes, gpus, nodes),
        nodes=nodes,
    )
    return carry_out(
        plan,
        output=output,
        data=data,
        rendezvous=rendezvous,
        resume=resume,
        say=say,
        progress=progress,
    )


def carry_out(
    plan: Plan,
    *,
    output: Path,
    data: str | Path | None = None,
    rendezvous: str | None = None,
    resume: str = "auto",
    fit: Callable[[Plan, Survey], Plan] | None = None,
    say: Callable[[Job], None] = lambda job: None,
    progress: Callable[[int], None] = lambda files: None,
) -> Verdict:
    """Run a plan to its verdict. `fit` makes it one for the data that were found."""
    from deit_zoo.training import elastic

    # Several nodes with one process each look to srun like its own ranks.
    rank = rendezvous is None and elastic.is_rank(plan)
    if not rank and fit is None:  # what can be refused at once
        check_output(output, plan.recipe, resume)
    if plan.processes > 1 and not rank:
        elastic.check_rendezvous(plan.nodes, rendezvous)
    check_device(plan)
    resolve_init_from(plan.recipe)

    def prepared() -> Job:
        try:
            if fit is None:  # before the digits are written there
                check_output(output, plan.recipe, resume)
            job = surveyed(plan, data, output, fit or with_its_images, progress)
            check_output(output, job.plan.recipe, resume)
            check_same_data(output, job)
            output.mkdir(parents=True, exist_ok=True)
            job.write(output)
        except OSError as error:
            raise DataError(
                f"{output} cannot be written ({error.strerror}); give a folder that you may write "
                "to, on a disk with room, as --output"
            ) from error
        say(job)
        return job

    if plan.processes > 1 and not rank:
        return elastic.launch(prepared(), output, rendezvous)
    from deit_zoo.distributed import init_distributed
    from deit_zoo.training.trainer import train

    with init_distributed(plan.device) as group:
        return train(group.run_on_main(prepared), output, group)


def started_with(processes: int | None, gpus: int, nodes: int) -> int | None:
    """The processes that were asked for, or else those that torchrun started on the CPU."""
    from deit_zoo.training import elastic

    return elastic.world_size() if processes is None and not gpus and nodes == 1 else processes


def surveyed(
    plan: Plan,
    data: str | Path | None,
    output: Path,
    fit: Callable[[Plan, Survey], Plan],
    progress: Callable[[int], None],
) -> Job:
    """The plan for the images that are really there. Raises DataError where there are none."""
    from deit_zoo.data.hub import is_hfds
    from deit_zoo.data.survey import validate

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
    where = str(data) if data is not None else str(written_digits(output))
    found = validate(where, progress)
    if not is_hfds(where):
        where = str(Path(where).resolve())
    return Job(plan=fit(plan, found), data=where, fingerprint=found.fingerprint())


def with_its_images(plan: Plan, found: Survey) -> Plan:
    """The plan for so many images, of the classes that the recipe is for."""
    if plan.recipe.data != "folder":
        check_classes(plan.recipe, found.data, sorted(found.train.classes))
    return replace(plan, num_images=found.train.images)


def check_same_data(output: Path, job: Job) -> None:
    """Raises DataError where a run would go on with other images than it began with."""
    if (output / PLAN_FILE).exists() and read_job(output).fingerprint != job.fingerprint:
        raise DataError(
            f"the run in {output} began with other data than {job.data} holds now; give the data "
            "that it began with, or a new --output"
        )


def check_classes(recipe: Recipe, where: str, found: list[str]) -> None:
    """Raises DataError where a folder's classes are not those that the recipe is for."""
    from deit_zoo.data.hub import is_hfds

    wanted = sorted(label.folder for label in labels(MODELS[recipe.architecture].labels))
    if found != wanted and not is_hfds(where):
        other = sorted(set(found) - set(wanted)) or sorted(set(wanted) - set(found))
        raise DataError(
            f"{where} has {len(found):,} classes; {recipe.name} is trained on the {len(wanted):,} "
            f"of {recipe.data} ({other[0]!r} is not in both); to train on your own classes, type "
            "--set data=folder"
        )


def check_extra() -> None:
    """Raises MissingExtraError where the training extra is not installed."""
    if missing := [module for module in _EXTRA if find_spec(module) is None]:
        raise MissingExtraError(
            f"training needs {', '.join(missing)}; type: pip install 'deit_zoo[train]'"
        )


def check_device(plan: Plan) -> None:
    """Raises RecipeError where the machine has not what was asked for."""
    if plan.device == "cpu":
        return
    import torch

    gpus = plan.processes // plan.nodes
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if found == 0:
        raise RecipeError(
            f"--gpus {gpus}, but torch sees no GPU here; type --gpus 0 for the CPU (--dry-run "
            "shows the plan of any number)"
        )
    if found < gpus:
        raise RecipeError(f"--gpus {gpus}, but torch sees {found} here; type --gpus {found}")


def check_output(output: Path, recipe: Recipe, resume: str) -> None:
    """Raises DataError where the folder is not empty and not a run of this recipe."""
    if resume not in ("auto", "never"):
        raise RecipeError(f"--resume is {resume!r}; it must be auto or never")
    if output.exists() and not output.is_dir():
        raise DataError(f"{output} is a file; give a folder as --output")
    # The digits are written before the plan, and a process may be killed between the two.
    held = {path.name for path in output.iterdir()} if output.exists() else set()
    begun = (f".{DATA_FOLDER}.", f".{PLAN_FILE}.")
    if all(name == DATA_FOLDER or name.startswith(begun) for name in held):
        return
    plan = output / PLAN_FILE
    if not plan.is_file():
        raise DataError(f"{output} holds files that are no run; give an empty folder as --output")
    if resume == "never":
        raise DataError(f"{output} holds a run already; give a new --output, or --resume auto")
    left = read_job(output).plan.recipe
    if left.digest != recipe.digest:
        raise RecipeError(
            f"{output} holds a run of another recipe ({left.name}); give a new "
            f"--output, or remove it: rm -r {shlex.quote(str(output))}"
        )


def written_digits(output: Path) -> Path:
    """The embedded digits as an image folder inside the run's own."""
    from deit_zoo.data.digits import write_folder

    folder = output / DATA_FOLDER
    if not folder.exists():
        output.mkdir(parents=True, exist_ok=True)
        for torn in output.glob(f".{DATA_FOLDER}.*"):  # of a process that was killed meanwhile
            shutil.rmtree(torn)
        write_folder(folder)
    return folder
