"""Checks before a run, and its start. Nothing is loaded until every check has passed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deit_zoo.errors import RecipeError, ZooError
from deit_zoo.files import PLAN_FILE, RECEIPT_FILE, expand_user, writing
from deit_zoo.machine import check_processes, require_extra, usable_device, world_size
from deit_zoo.recipes import find_recipe
from deit_zoo.recipes.first_stage import resolve_init_from, trained_first
from deit_zoo.recipes.plan import DIGITS_TRAIN, Plan, default_workers, laid_out, settings
from deit_zoo.recipes.recipe import IMAGENET_TRAIN, Recipe, changed, differences, shown
from deit_zoo.registry.names import resolve
from deit_zoo.runs.reference import recipe_differences
from deit_zoo.training import elastic, heartbeat
from deit_zoo.training.changes import with_changes
from deit_zoo.training.checks import (
    DATA_FOLDER,
    check_classes,
    check_data,
    check_device,
    check_extra,
    check_log_to,
    check_network,
    check_output,
)
from deit_zoo.training.job import Job, read_job
from deit_zoo.training.run_data import (
    check_outside,
    check_same_data,
    check_validation,
    forget_failed_start,
    former_job,
    has_begun,
    images_of_run,
    is_without_plan,
    open_part,
)
from deit_zoo.training.run_lock import run_lock

if TYPE_CHECKING:
    import torch

    from deit_zoo.data.image_list import ImageList
    from deit_zoo.data.survey import Survey
    from deit_zoo.runs.receipt import Verdict


def recipe_for(name: str, changes: Sequence[str] = ()) -> Recipe:
    """The recipe of a model, with `field=value` changes. Raises RecipeError where there is none."""
    recipe = find_recipe(name)
    if recipe is None:
        raise RecipeError(
            f"there is no recipe for {resolve(name).name}; `deit-zoo list --recipes` shows all"
        )
    return changed(recipe, changes)


def make_plan(
    name: str,
    *,
    gpus: int | None,
    device: torch.device | None = None,
    changes: Sequence[str] = (),
    workers: int | None = None,
    processes: int | None = None,
    nodes: int = 1,
    num_images: int | None = None,
) -> Plan:
    """The plan of a run on `nodes` machines like this one, of `gpus` GPUs each; 0 is the CPU.

    None is one process on the `device`.
    """
    recipe_changes, _ = settings(changes)
    recipe = recipe_for(name, recipe_changes)
    if not any(change.startswith("replicas=") for change in recipe_changes):
        recipe = laid_out(recipe, max(1, (gpus or processes or 1) * nodes))
    expected = DIGITS_TRAIN if recipe.data == "digits" else IMAGENET_TRAIN
    return plan_for(
        recipe,
        modified=bool(recipe_differences(recipe)),
        gpus=gpus,
        device=device,
        changes=changes,
        workers=workers,
        processes=processes,
        nodes=nodes,
        num_images=expected if num_images is None else num_images,
    )


def training_device(
    gpus: int | None, processes: int | None, device: str | None
) -> torch.device | None:
    """Where one process trains: on the device that was typed, else on the best that is there.

    None where `gpus` or `processes` say it. Raises RecipeError where both do.
    """
    check_processes(gpus, processes, dashes="--", error=RecipeError)
    if gpus is None and processes is None:
        return usable_device("auto" if device is None else device)
    if device not in (None, "auto"):
        number = f"--gpus {gpus}" if processes is None else f"--processes {processes}"
        raise RecipeError(f"--device {device} names one device and {number} others; give one")
    return None


def plan_for(
    recipe: Recipe,
    *,
    modified: bool,
    gpus: int | None,
    num_images: int,
    device: torch.device | None = None,
    changes: Sequence[str] = (),
    workers: int | None = None,
    processes: int | None = None,
    nodes: int = 1,
) -> Plan:
    """A recipe on so many GPUs or processes, or on a device that `training_device` gave."""
    kind = "cuda" if gpus else "cpu" if device is None else device.type
    gpus = gpus or int(kind == "cuda")
    check_processes(gpus, processes, dashes="--", error=RecipeError)
    if nodes < 1:
        raise RecipeError(f"--nodes is {nodes}; give 1 or more")
    local = gpus or processes or 1
    if workers is None:
        workers = default_workers(local, on_gpu=kind == "cuda")
    _, machine_settings = settings(changes)
    return Plan(
        recipe=recipe,
        modified=modified,
        device=kind,
        processes=local * nodes,
        nodes=nodes,
        workers=workers,
        num_images=num_images,
        reading="upright" if recipe.data == "folder" else "upstream",
        **machine_settings,
    )


def reproduce(
    name: str,
    *,
    gpus: int | None = None,
    device: str | None = None,
    output: Path,
    data: str | Path | None = None,
    changes: Sequence[str] = (),
    workers: int | None = None,
    processes: int | None = None,
    nodes: int = 1,
    rendezvous: str | None = None,
    resume: str = "auto",
    tell: Callable[[str], None] = lambda sentence: None,
    say: Callable[[Job], None] = lambda job: None,
    progress: Callable[[int], None] = lambda files: None,
) -> Verdict:
    """Check, plan, train, export, evaluate, judge. `say` is called with the job before the start.

    `tell` is called with a sentence on images that are left out.

    One process trains here; several are started by torchrun's launcher, unless this is one of them
    already (under torchrun, or under srun with a task for each).

    Raises MissingExtraError, DataError, RecipeError before anything is trained, and Interrupted
    where the run was asked to stop.
    """
    check_extra()
    output = expand_user(output)  # no shell does in --output=~/runs
    torch_device = training_device(gpus, processes, device)
    machine: dict[str, Any] = {
        "gpus": gpus,
        "device": torch_device,
        "workers": workers,
        "processes": num_processes(processes, gpus, nodes, torch_device),
        "nodes": nodes,
    }
    of_run: dict[str, Any] = {"device": torch_device, "data": data, "rendezvous": rendezvous}
    of_run |= {"resume": resume, "tell": tell, "say": say, "progress": progress}

    def planned(name: str, output: Path, changes: Sequence[str]) -> Plan:
        return make_plan(name, changes=[*changes, *layout_of_run(output, changes)], **machine)

    plan = planned(name, output, changes)
    stage = trained_first(plan.recipe)
    # Processes that torchrun or srun started are those of one run.
    if stage is not None and (rendezvous is not None or not elastic.is_rank(plan)):
        run = output.parent / stage.name
        first = planned(stage.name, run, changes)
        if (run / RECEIPT_FILE).is_file():
            check_first_stage(run, first)
            tell(f"{plan.recipe.name} begins from {stage.name}, which is trained already, in {run}")
        else:
            tell(f"{plan.recipe.name} begins from {stage.name}, which is trained first, in {run}")
            run_plan(first, output=run, **of_run)
        plan = planned(name, output, [*changes, f"init_from={run}"])
    return run_plan(plan, output=output, **of_run)


def check_first_stage(run: Path, plan: Plan) -> None:
    """Raises RecipeError where a finished run is not the first stage that would be trained now."""
    if changes := differences(read_job(run).plan.recipe, plan.recipe):
        named = ", ".join(f"{name} {shown(its)}, not {shown(own)}" for name, its, own in changes)
        raise RecipeError(
            f"the first stage in {run} was trained otherwise ({named}); give another --output, or "
            f"type --set init_from={run} to begin from it all the same"
        )


def layout_of_run(output: Path, changes: Sequence[str]) -> list[str]:
    """A run that goes on keeps its layout, on other numbers of processes too."""
    former = former_job(output)
    if former is None or "replicas" in {change.partition("=")[0] for change in changes}:
        return []
    return [f"replicas={former.plan.recipe.replicas}"]


def run_plan(
    plan: Plan,
    *,
    device: torch.device | None = None,
    output: Path,
    data: str | Path | None = None,
    val_share: float | None = None,
    rendezvous: str | None = None,
    resume: str = "auto",
    fit: Callable[[Plan, Survey], Plan] | None = None,
    tell: Callable[[str], None] = lambda sentence: None,
    say: Callable[[Job], None] = lambda job: None,
    progress: Callable[[int], None] = lambda files: None,
) -> Verdict:
    """Run a plan to its verdict. `fit` makes it one for the data that is really there.

    `device` is the GPU that a process has which is alone.
    """
    # Several nodes with one process each look to srun like its own ranks.
    rank = rendezvous is None and elastic.is_rank(plan)
    if not rank and fit is None:  # what can be refused at once
        check_output(output, plan.recipe, resume)
    if plan.processes > 1 and not rank:
        elastic.check_rendezvous(plan.nodes, rendezvous)
    check_device(plan)
    check_log_to(plan)
    if plan.parquet:
        require_extra("hfds", "--parquet", "pyarrow")
    resolve_init_from(plan.recipe)
    check_network(plan.recipe)
    if plan.recipe.data == "folder" and data is not None:
        check_outside(output, data)

    def prepare(stack: ExitStack) -> Job:
        with writing(output):
            if plan.nodes == 1:
                stack.enter_context(run_lock(output, tell))
            if fit is None:  # before the digits are written there
                check_output(output, plan.recipe, resume)
            if is_without_plan(output):
                tell(f"{output} has lost its {PLAN_FILE}; this command makes it again")
            images = None
            if plan.recipe.data == "folder" and data is not None:
                images = images_of_run(data, val_share, output, plan.reading, tell, progress)
            job = make_job(plan, data, images, output, fit or with_num_images, progress)
            if not has_begun(output):
                check_validation(job.data, images, job.plan.reading, progress)
            if plan.nodes > 1:  # so far all nodes read at once; they write one after another
                stack.enter_context(run_lock(output, tell, elastic.JOIN_SECONDS))
            check_output(output, job.plan.recipe, resume)
            check_same_data(output, job, tell)
            job = with_changes(replace(job, val_share=val_share), output)
            forget_failed_start(output, job)
            output.mkdir(parents=True, exist_ok=True)
            job.write(output)
        say(job)
        return job

    if plan.processes > 1 and not rank:
        with ExitStack() as stack:
            job = prepare(stack)
            if plan.nodes > 1:  # the other nodes' launchers prepare too: the first process has it
                stack.close()
            return elastic.launch(job, output, rendezvous)
    from deit_zoo.distributed import init_distributed, is_peer_lost
    from deit_zoo.training.trainer import train

    number = device.index if device else None
    with init_distributed(plan.device, number=number) as group, ExitStack() as stack:
        if group.size > 1:
            stack.enter_context(heartbeat.watch_each_other(group))
        try:
            return train(group.run_on_main(lambda: prepare(stack)), output, group)
        except RuntimeError as error:
            if not is_peer_lost(error):
                raise
            raise ZooError(
                "another process of the run is gone, which said why; the same command continues "
                "from the last state"
            ) from error


def num_processes(
    processes: int | None, gpus: int | None, nodes: int, device: torch.device | None = None
) -> int | None:
    """The processes that were asked for, or else those that torchrun started on the CPU."""
    on_gpu = bool(gpus) or (device is not None and device.type != "cpu")
    return world_size() if processes is None and not on_gpu and nodes == 1 else processes


def make_job(
    plan: Plan,
    data: str | Path | None,
    images: ImageList | None,
    output: Path,
    fit: Callable[[Plan, Survey], Plan],
    progress: Callable[[int], None],
) -> Job:
    """The plan for the images that are really there. Raises DataError where there are none."""
    from deit_zoo.data.image_set import absolute
    from deit_zoo.data.survey import validate, with_content

    check_data(plan, data)
    folder = str(data) if data is not None else str(digits_folder(output))
    content = validate(folder, progress, images)
    fitted = with_reading(fit(plan, content), content.train.classes)
    if content.train.several is not None and fitted.recipe.loss != "binary_cross_entropy":
        raise RecipeError(
            f"an image of {folder} may have several labels, and the recipe {plan.recipe.name} "
            "learns one of each; type deit-zoo finetune, which learns each class by itself"
        )
    return Job(
        plan=fitted,
        data=absolute(folder),
        fingerprint=with_content(content, lambda split: open_part(folder, split, images)),
        newest=max(content.train.newest, content.val.newest),
        images=images,
    )


def with_reading(plan: Plan, classes: Collection[str]) -> Plan:
    """The plan for a data set of these classes: whoever trains on ImageNet reads it as upstream."""
    from deit_zoo.data.images import reading_of

    return replace(plan, reading="upstream") if reading_of(classes) == "upstream" else plan


def with_num_images(plan: Plan, content: Survey) -> Plan:
    """The plan for so many images, of the classes that the recipe is for."""
    if plan.recipe.data != "folder":
        check_classes(plan.recipe, content.data, sorted(content.train.classes))
    return replace(plan, num_images=content.train.images)


def digits_folder(output: Path) -> Path:
    """The embedded digits as an image folder inside the run's own."""
    from deit_zoo.data.digits import check_folder, write_folder

    folder = output / DATA_FOLDER
    if folder.exists():
        check_folder(folder)
    else:
        output.mkdir(parents=True, exist_ok=True)
        write_folder(folder)
    return folder
