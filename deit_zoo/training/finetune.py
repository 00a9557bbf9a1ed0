"""Fine-tuning: a recipe is made for one model, then fitted to the images that are there.

What the user chose with `--set` or an option is never changed. Every other change says why: in a
sentence before the start, and in the recipe's `assumed`.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deit_zoo.data.image_list import check_there
from deit_zoo.data.image_set import has_own_names, kind_of
from deit_zoo.data.split import check_split, list_images
from deit_zoo.errors import DataError, RecipeError
from deit_zoo.files import MODEL_FILE, expand_user
from deit_zoo.labels import labels
from deit_zoo.manifest import read_manifest
from deit_zoo.recipes.deit import DEIT_BASE
from deit_zoo.recipes.finetune import FINETUNE, TABLE_6, TABLE_7
from deit_zoo.recipes.plan import Plan, settings
from deit_zoo.recipes.recipe import IMAGENET_TRAIN, Pixels, Recipe, changed, count, shown
from deit_zoo.registry import ModelSpec
from deit_zoo.registry.names import is_path, lookup
from deit_zoo.training import checks, launch
from deit_zoo.training.job import read_job
from deit_zoo.training.run_data import has_begun
from deit_zoo.weights.load import open_local, spec_for

if TYPE_CHECKING:
    from deit_zoo.data.survey import Split, Survey
    from deit_zoo.runs.receipt import Verdict
    from deit_zoo.training.job import Job

# Steps that an epoch should have; a batch that leaves fewer is made smaller.
STEPS = 8
_RATES = ("lr", "min_lr", "warmup_lr")


def finetune(
    name: str,
    *,
    data: str | Path,
    output: Path,
    recipe: str = "custom",
    gpus: int | None = None,
    device: str | None = None,
    val_share: float | None = None,
    changes: Sequence[str] = (),
    workers: int | None = None,
    processes: int | None = None,
    resume: str = "auto",
    tell: Callable[[str], None] = lambda sentence: None,
    say: Callable[[Job], None] = lambda job: None,
    progress: Callable[[int], None] = lambda files: None,
) -> Verdict:
    """Train a model's checkpoint on the classes of a folder; export and measure it.

    `recipe` is a name of FINETUNE. With `val_share` a folder of class folders is parted first.
    `tell` is called with each sentence on how the recipe was fitted to the data.

    Raises MissingExtraError, DataError, RecipeError, ImageSizeError before anything is trained,
    and Interrupted where the run was asked to stop.
    """
    checks.check_extra()
    output = expand_user(output)
    if is_path(name) and expand_user(name).resolve() == output.resolve():
        raise RecipeError(
            f"{output} is the run that is trained further, which has a folder of its own; give "
            "another --output"
        )
    torch_device = launch.training_device(gpus, processes, device)
    plan = make_plan(
        name,
        recipe=recipe,
        gpus=gpus,
        device=torch_device,
        changes=changes,
        workers=workers,
        processes=launch.num_processes(processes, gpus, 1, torch_device),
    )
    if not has_begun(output):  # refused before images are listed or parted
        checks.check_output(output, plan.recipe, resume)

    def fit(plan: Plan, survey: Survey) -> Plan:
        plan, remarks = for_survey(plan, survey, data, val_share, chosen_fields(changes))
        for remark in remarks:
            tell(remark)
        return plan

    return launch.run_plan(
        plan,
        device=torch_device,
        output=output,
        data=data,
        val_share=val_share,
        resume=resume,
        fit=fit,
        tell=tell,
        say=say,
        progress=progress,
    )


def data_of(name: str) -> str:
    """The images that a run was trained on, parted as it parted them. Raises DataError for a model
    that is no run of this machine."""
    run = expand_user(name)
    if not is_path(name) or not has_begun(run):
        raise DataError(
            f"{name} is no run that is here, with images of its own; type --data DIR with a folder "
            "of class folders, or give such a run"
        )
    return read_job(run).source(run)


def make_plan(
    name: str,
    *,
    recipe: str = "custom",
    gpus: int | None = 0,
    changes: Sequence[str] = (),
    **machine: Any,
) -> Plan:
    """The plan before the images are counted; the machine is as `launch.plan_for` takes it."""
    recipe_changes, _ = settings(changes)
    plan = launch.plan_for(
        recipe_for(name, recipe, recipe_changes),
        modified=bool(recipe_changes),
        gpus=gpus,
        changes=changes,
        num_images=IMAGENET_TRAIN,
        **machine,
    )
    return plan if "final" in chosen_fields(changes) else replace(plan, final="best")


def recipe_for(name: str, table: str = "custom", changes: Sequence[str] = ()) -> Recipe:
    """A recipe of FINETUNE for one model or run, with `field=value` changes."""
    if table not in list(FINETUNE):  # whatever its type
        raise RecipeError(
            f"no recipe for fine-tuning is named {table!r}; there are {', '.join(FINETUNE)}"
        )
    spec, base, chosen = spec_for(name), FINETUNE[table], chosen_fields(changes)
    own = is_path(name)
    recipe = replace(
        base,
        name=f"{Path(name).resolve().name if own else spec.name}_{table}",
        model=spec.name,
        init_from=name if own else spec.name,
        img_size=(_own_size(name, spec) if "img_size" in base.assumed else base.img_size),
        drop_path_rate=0.0 if spec.family == "convnet" else base.drop_path_rate,
    )
    recipe = changed(recipe, changes)
    if recipe.data != "folder":
        raise RecipeError(
            f"--set data={recipe.data} is not for fine-tuning, which takes the classes of the "
            "folder that --data gives"
        )
    recipe = _for_few_epochs(recipe, chosen)
    recipe = _for_the_heads(recipe, spec, chosen)
    if recipe.batch_size != base.batch_size:
        recipe = _with_rates_for(recipe, base.batch_size, chosen)
    if recipe.init_from == spec.name and spec.name not in read_manifest():
        raise RecipeError(
            f"{spec.name} has no published checkpoint to begin from; type --set init_from=FILE "
            "with one of yours, or train it with deit-zoo reproduce --set data=folder"
        )
    checks.check_network(recipe)
    figure = TABLE_7.get(table, {}).get(spec.name)
    if figure is None or own or recipe.img_size != spec.img_size:
        return recipe
    return replace(
        recipe,
        top1=figure,
        top1_source="arXiv:2012.12877, Table 7",
        band=DEIT_BASE.band,
        band_source="no spread is published; that of deit_base is used",
    )


def for_survey(
    plan: Plan, survey: Survey, data: str | Path, val_share: float | None, chosen: Collection[str]
) -> tuple[Plan, list[str]]:
    """The plan for the images that are there; which classes they show, and what was changed."""
    from deit_zoo.data.survey import class_remarks

    train, classes = survey.train, list(survey.train.classes)
    check_teacher(plan.recipe, classes, data, val_share)
    plan, several = for_several_labels(plan, train, chosen)
    plan, elsewhere = for_its_set(plan, survey)
    plan, sentence = fitted(plan, train.images, chosen)
    remarks = (several, *class_remarks(train, survey.val), elsewhere, sentence)
    return plan, [remark for remark in remarks if remark]


def for_its_set(plan: Plan, survey: Survey) -> tuple[Plan, str]:
    """The plan without a figure where the data are not the set that it was published on."""
    recipe = plan.recipe
    if recipe.top1 is None:
        return plan, ""
    table = recipe.name.rpartition("_")[2]
    there = survey.train.images, survey.val.images, len(survey.train.classes)
    if there == TABLE_6[table]:
        return plan, ""
    own, its = (
        f"{train:,} and {test:,} images of {classes:,} classes"
        for train, test, classes in (there, TABLE_6[table])
    )
    sentence = f"no verdict: {table} has {its} to train and test on (Table 6), and these are {own}"
    return replace(plan, recipe=replace(recipe, top1=None, top1_source="")), sentence


def _own_size(name: str, spec: ModelSpec) -> Pixels:
    """The image size to begin with: the model's, or the one that a run ended with."""
    size = open_local(name).metadata.get("img_size") if is_path(name) else None
    height, width = size or (spec.img_size, spec.img_size)
    return height if height == width else (height, width)


def fitted(plan: Plan, num_images: int, chosen: Collection[str]) -> tuple[Plan, str]:
    """The plan for so many images, and what was changed for them, in a sentence.

    A batch that leaves fewer than STEPS steps in an epoch becomes the largest that does not: a
    power of two for each process, at least a pair where images are mixed.
    """
    recipe = plan.recipe
    if "batch_size" in chosen or recipe.batch_size * STEPS <= num_images:
        return replace(plan, num_images=num_images), ""
    shares = recipe.replicas if "replicas" in chosen else plan.processes
    power_of_two = 1 << (num_images // (STEPS * shares)).bit_length() >> 1  # 0 of none
    batch = shares * max(power_of_two, 2 if recipe.mixes else 1)
    values: dict[str, Any] = {"batch_size": batch}
    if "replicas" not in chosen:  # the fewest that are not larger than those of the recipe
        values["replicas"] = shares
        while batch // values["replicas"] > plan.replica_batch:
            values["replicas"] *= 2
    if "repeated_aug" not in chosen:
        values["repeated_aug"] = 1
    small = _with_rates_for(replace(recipe, **values), recipe.batch_size, chosen)
    small, sentence = _explained(small, recipe, num_images)
    return replace(plan, recipe=small, num_images=num_images), sentence


def for_several_labels(plan: Plan, train: Split, chosen: Collection[str]) -> tuple[Plan, str]:
    """The plan for images that may have several labels, and what that means, in a sentence."""
    if train.several is None:
        return plan, ""
    recipe = plan.recipe
    values: dict[str, Any] = {
        "loss": "binary_cross_entropy",
        "label_smoothing": 0.0,
        "mixup": 0.0,
        "cutmix": 0.0,
        "class_weights": "none",
        "sampling": "uniform",
        "distillation": "none",
    }
    for field, value in values.items():
        if field in chosen and getattr(recipe, field) != value:
            raise RecipeError(
                f"{field} is {shown(getattr(recipe, field))}, which is for images with one label "
                f"each, and these may have several; type --set {field}={shown(value)}"
            )
    why = "an image may have several labels: each class is learned and judged by itself"
    assumed = recipe.assumed | {
        field: why for field, value in values.items() if getattr(recipe, field) != value
    }
    return replace(plan, recipe=replace(recipe, **values, assumed=assumed)), why


def check_teacher(
    recipe: Recipe, classes: Sequence[str], data: str | Path, val_share: float | None = None
) -> None:
    """Raises RecipeError where a teacher of the zoo, or a run's, knows other classes."""
    teacher = recipe.teacher or ""
    spec = None if is_path(teacher) else lookup(teacher)
    teacher_classes: Sequence[str] = ()
    if spec is not None:
        teacher_classes = [label.folder for label in labels(spec.labels)]
    elif teacher and (Path(teacher) / MODEL_FILE).is_file():
        metadata = open_local(teacher).metadata
        spec, teacher_classes = lookup(str(metadata.get("name"))), metadata.get("labels") or ()
    if spec is None or not teacher_classes or sorted(teacher_classes) == sorted(classes):
        return
    if len(teacher_classes) == len(classes) and has_own_names(data, classes):
        return
    run = Path("runs") / f"{spec.name}_teacher"
    share = "" if val_share is None else f" --val-share {val_share:g}"
    raise RecipeError(
        f"the teacher {teacher} knows {len(teacher_classes):,} other classes than the "
        f"{len(classes):,} of {data}; fine-tune it first: deit-zoo finetune {spec.name} --data "
        f"{shlex.quote(str(data))}{share} --output {run}; then type --teacher {run}"
    )


def chosen_fields(changes: Sequence[str]) -> set[str]:
    """The fields that the user has chosen."""
    return {change.partition("=")[0] for change in changes}


def planned(
    plan: Plan,
    data: str | Path,
    *,
    val_share: float | None = None,
    chosen: Collection[str] = (),
    progress: Callable[[int], None] = lambda files: None,
) -> tuple[Plan, list[tuple[str, str]], list[str]]:
    """A plan fitted to data of which nothing is parted or written; what lies there, and remarks."""
    from deit_zoo.data.survey import validate

    if val_share is None:
        check_split(data)
    images = None
    if val_share is not None or kind_of(data) == "list":
        check_there(images := list_images(data, val_share))
    survey = validate(data, progress, images)
    plan = launch.with_reading(plan, survey.train.classes)
    plan, remarks = for_survey(plan, survey, data, val_share, chosen)
    return plan, survey.lines(), remarks


def reasons(recipe: Recipe) -> list[tuple[str, str]]:
    """What in a recipe is assumed, and why, for people."""
    grouped: dict[str, list[str]] = {}
    for key, why in recipe.assumed.items():
        grouped.setdefault(why, []).append(key)
    rows = [f"{', '.join(keys)}: {why}" for why, keys in grouped.items()]
    return [("" if number else "assumed", row) for number, row in enumerate(rows)]


def _for_few_epochs(recipe: Recipe, chosen: Collection[str]) -> Recipe:
    most = recipe.epochs // 4
    if "warmup_epochs" in chosen or recipe.warmup_epochs <= most:
        return recipe
    epochs = count(recipe.epochs, "epoch")
    why = f"{recipe.warmup_epochs} in the recipe; at most a quarter of {epochs}"
    return replace(recipe, warmup_epochs=most, assumed=recipe.assumed | {"warmup_epochs": why})


def _for_the_heads(recipe: Recipe, spec: ModelSpec, chosen: Collection[str]) -> Recipe:
    """In train mode the class head of a distilled model learns from labels, the other if taught."""
    two_heads = bool(spec.arch.get("distilled"))
    if two_heads and recipe.teacher:
        mode, why = True, "with a teacher, for a network gives its two outputs in train mode only"
    elif two_heads:
        mode, why = False, "without --teacher both heads learn from labels, as their mean"
    elif recipe.freeze == "backbone":
        mode, why = False, "a frozen backbone gives the head always the same features"
    else:
        return recipe
    if "train_mode" in chosen or recipe.train_mode is mode:
        return recipe
    return replace(recipe, train_mode=mode, assumed=recipe.assumed | {"train_mode": why})


def _with_rates_for(recipe: Recipe, batch_size: int, chosen: Collection[str]) -> Recipe:
    """The rates, which were for another batch, for the recipe's own; chosen ones stay.

    Adam's go with the root of the batch (arXiv 2205.10287). In proportion, as the paper's do from
    batch to large batch, ten images were not learned at all: 13 % of digits right, not 40 %.
    """
    share, rule = recipe.batch_size / batch_size, "in proportion to the batch"
    if recipe.optimizer != "sgd":
        share, rule = share**0.5, "with the batch's root"
    values = {key: getattr(recipe, key) for key in _RATES if not {"lr", key} & set(chosen)}
    assumed = {key: f"{value:.3g} in the recipe; {rule}" for key, value in values.items()}
    scaled: dict[str, Any] = {key: value * share for key, value in values.items()}
    return replace(recipe, **scaled, assumed=recipe.assumed | assumed)


def _explained(small: Recipe, recipe: Recipe, num_images: int) -> tuple[Recipe, str]:
    """The smaller recipe with a reason for each field, and the sentence that says it all."""
    images = f"{num_images:,} training images"
    rules = {
        "batch_size": f"{images}, of which an epoch should have {STEPS} steps",
        "replicas": f"{images}; as few as there can be for this batch",
        "repeated_aug": f"{images}, of which an epoch would show a part only",
    }
    assumed, changes = dict(small.assumed), []
    for field, why in rules.items():
        before, after = getattr(recipe, field), getattr(small, field)
        if before != after:
            assumed[field] = f"{before} in the recipe; {why}"
            changes.append(f"{field} {before} -> {after}")
    if small.lr != recipe.lr:
        changes.append(f"lr {recipe.lr:.3g} -> {small.lr:.3g}")
    return replace(small, assumed=assumed), f"{images}: {', '.join(changes)}"
