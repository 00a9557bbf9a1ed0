"""A teacher's labels for a whole run, without a student: as the run would ask for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from deit_zoo.distributed import DistributedContext
from deit_zoo.errors import RecipeError
from deit_zoo.evaluation.parallel import Device, run_in_processes
from deit_zoo.machine import check_gpus
from deit_zoo.recipes.plan import Plan, default_workers, settings
from deit_zoo.training.build import fix_order, lesson_of, open_images
from deit_zoo.training.checks import check_extra
from deit_zoo.training.data import TrainLoader
from deit_zoo.training.launch import (
    make_job,
    make_plan,
    recipe_for,
    training_device,
    with_num_images,
)
from deit_zoo.training.loop import autocast, autocast_dtype
from deit_zoo.training.micro_batches import MicroBatches
from deit_zoo.training.teacher import teacher_for
from deit_zoo.training.teacher_labels import TeacherLabels, open_labels
from deit_zoo.training.timm_bridge import mixer, train_augment
from deit_zoo.training.trainer import expected_classes


def label_plan(
    name: str,
    folder: Path,
    *,
    gpus: int | None = None,
    device: str | None = None,
    changes: Sequence[str] = (),
    workers: int | None = None,
    processes: int | None = None,
) -> tuple[Plan, list[Device]]:
    """The run whose images a teacher is asked about, and the device of each process that asks."""
    check_extra()
    recipe = recipe_for(name, settings(changes)[0])
    if recipe.distillation != "hard":
        raise RecipeError(
            f"{recipe.name} learns no labels of a teacher (its distillation is "
            f"{recipe.distillation}); give a recipe that does, such as deit_small_distilled, or "
            "type --set distillation=hard --set teacher=NAME"
        )
    place = training_device(gpus, processes, device)
    number = gpus or processes or 1
    on_gpu = bool(gpus) or (place is not None and place.type == "cuda")
    if workers is None:
        workers = default_workers(number, on_gpu=on_gpu)
    plan = make_plan(
        name,
        gpus=int(on_gpu) if place is None else None,
        device=place,
        changes=[*changes, f"teacher_labels={folder}"],
        workers=workers,
    )
    if place is not None:
        return plan, [place]
    return plan, [f"cuda:{n}" for n in range(number)] if gpus else ["cpu"] * number


def label_images(
    plan: Plan,
    data: str | Path | None,
    folder: Path,
    devices: Sequence[Device],
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
    files: Callable[[int], None] = lambda files: None,
) -> str | None:
    """Complete the labels in a folder, by a process for each device; the digest of the file.

    `files` gets the files listed so far; `progress` the steps that are done, and their number.
    Labels that are kept already are not asked for again. Raises RecipeError where the folder's are
    of other images, DataError where there are no images.
    """
    if plan.device == "cuda":
        check_gpus(len(devices), dashes="--", error=RecipeError)
    job = make_job(plan, data, None, folder, with_num_images, files)
    plan = job.plan
    place = DistributedContext(device=torch.device(devices[0] or "cpu"))
    recipe = plan.recipe
    images = open_images(job.data, "train", expected_classes(recipe), place, plan.reading)
    classes = images.classes
    labels = open_labels(folder, plan, job.fingerprint["train"], len(classes), place.device)
    if missing := labels.missing(recipe.epochs):
        work = LabelJob(plan=plan, data=job.data, classes=classes, folder=folder, epochs=missing)
        devices = devices[: len(missing)]
        run_in_processes(work, devices, len(missing) * plan.steps_per_epoch, progress)
    return TeacherLabels(folder).finish()


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelJob:
    """What every process does: its share of the epochs, which are independent of each other."""

    plan: Plan
    data: str
    classes: list[str]
    folder: Path
    epochs: list[int]

    def on_cpu(self) -> LabelJob:
        """The job as it is handed to another process."""
        return self

    def run_shard(
        self, device: Device, rank: int, size: int, progress: Callable[[int, int], None]
    ) -> list[float]:
        """The labels of every `size`-th of the epochs; the number of these."""
        plan, recipe = self.plan, self.plan.recipe
        if plan.deterministic:
            fix_order(plan.device)
        group = DistributedContext(device=torch.device(device or "cpu"))
        if group.device.type == "cuda":
            torch.cuda.set_device(group.device)
        images = open_images(self.data, "train", self.classes, group, plan.reading)
        teach = lesson_of(plan, teacher_for(recipe, len(self.classes), group.device))
        labels = TeacherLabels(self.folder)
        replicas = range(recipe.replicas)
        loader = TrainLoader(
            images, train_augment(recipe), plan, replicas, group=group, taught=labels
        )
        epochs = self.epochs[rank::size]
        with closing(loader):
            for number, epoch in enumerate(epochs):
                passes = MicroBatches(
                    nn.Module(),
                    mixer(recipe, len(self.classes)),
                    loader.epoch(epoch),
                    replicas=replicas,
                    per_pass=1,
                    key=(recipe.seed, epoch),
                    device=group.device,
                )
                for step in range(plan.steps_per_epoch):
                    taught, bad = [], 0
                    for part in passes.of_step(step):
                        if part.taught is None:  # what is known is not asked for again
                            with autocast(group.device, autocast_dtype(plan, group.device)):
                                taught.append(teach(part.images))
                        bad += len(part.bad)
                    passes.look_ahead()
                    if not bad:
                        labels.add(epoch, step, replicas, taught)
                    progress(number * plan.steps_per_epoch + step + 1, 0)
                labels.write()
        return [float(len(epochs))]
