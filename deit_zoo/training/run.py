"""What a process of a run does, from the plan to the receipt, in one straight function."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deit_zoo import __version__
from deit_zoo.api import class_names, create, transform
from deit_zoo.errors import RecipeError
from deit_zoo.evaluation import ImageFolder, accuracy
from deit_zoo.files import MODEL_FILE, digest
from deit_zoo.models.layers import ZooModel
from deit_zoo.results import Evaluation
from deit_zoo.training import report
from deit_zoo.training.checkpoint import load_state, save_state, states
from deit_zoo.training.data import train_loader, training_folder
from deit_zoo.training.draws import seed_all
from deit_zoo.training.loop import EpochResult, Parts, train_one_epoch
from deit_zoo.training.losses import Distilled, supervised
from deit_zoo.training.optim import optimizer_for
from deit_zoo.training.plan import Plan, default_workers
from deit_zoo.training.recipe import Recipe
from deit_zoo.training.timm_parts import mixer, train_transform
from deit_zoo.training.watch import LOG_FILE, Watch
from deit_zoo.weights import save

IN_PROCESS = 2_000


def train(plan: Plan, data: Path, output: Path) -> report.Verdict:
    """Train as planned, export, measure the exported file, judge it and leave a receipt."""
    recipe = plan.recipe
    device = torch.device(plan.device)
    # By the machine, not by --workers: the number of threads decides the order of sums, so bits.
    cores = (os.cpu_count() or 2) // plan.processes
    torch.set_num_threads(max(1, cores - default_workers(plan.processes)))

    seed_all(recipe.seed, "init")
    model = create(recipe.name, drop_path_rate=recipe.drop_path_rate, img_size=recipe.img_size)
    model.to(device)
    classes = [label.folder for label in class_names(model)]
    folder = training_folder(data, train_transform(recipe), classes)
    # Wrong classes are refused now, not after an epoch; few images need no processes to read them.
    few = len(ImageFolder(data / "val", transform(model), classes)) < IN_PROCESS
    readers = 0 if few else plan.workers
    optimizer = optimizer_for(model, recipe)
    left = states(output)
    first = load_state(left[-1], model, optimizer, recipe.digest) if left else 0

    replicas = range(plan.replicas_per_process)
    loader = train_loader(folder, plan, replicas)
    parts = Parts(
        model=model,
        optimizer=optimizer,
        criterion=criterion_for(recipe, model.num_classes, device),
        mix=mixer(recipe, model.num_classes),
        replicas=replicas,
        device=device,
    )
    with Watch(plan, output, first) as watch:
        for epoch in range(first, recipe.epochs):
            loader.batch_sampler.epoch = epoch  # type: ignore[union-attr]
            result = train_one_epoch(parts, plan, epoch, loader, watch.step)
            reached = measure(model, data, readers)
            # The log first: a line beyond the last state is cut off, a missing one stays missing.
            watch.epoch(epoch_record(epoch, result, reached))
            save_state(output, epoch + 1, model, optimizer, recipe.digest)

    return conclude(plan, model, data, output, readers)


def criterion_for(
    recipe: Recipe, num_classes: int, device: torch.device
) -> Callable[[Any, Tensor, Tensor], Tensor]:
    """The loss, with its teacher loaded and checked."""
    if recipe.teacher is None:
        return supervised
    teacher = create(recipe.teacher, pretrained=True, img_size=recipe.img_size, device=device)
    if teacher.num_classes != num_classes:
        raise RecipeError(
            f"the teacher {recipe.teacher} knows {teacher.num_classes} classes, the student "
            f"{num_classes}; choose a teacher of the same classes"
        )
    teacher.requires_grad_(False)
    return Distilled(recipe, teacher)


def measure(model: ZooModel, data: Path, workers: int) -> Evaluation:
    """The model on the validation folder, with the record's own transform."""
    folders = [label.folder for label in class_names(model)]
    return accuracy(model, data, transform(model), folders, batch_size=256, workers=workers)


def epoch_record(epoch: int, result: EpochResult, reached: Evaluation) -> dict[str, Any]:
    """One line of the log."""
    return {
        "epoch": epoch,
        "lr": result.lr,
        "train_loss": result.loss,
        "val_top1": reached.top1,
        "val_top5": reached.top5,
        "val_loss": reached.loss,
        "images_per_second": result.images / result.seconds,
        "data_seconds": result.data_seconds,
        "seconds": result.seconds,
    }


def conclude(plan: Plan, model: ZooModel, data: Path, output: Path, readers: int) -> report.Verdict:
    """Export the weights, load them as a user would, and judge what that file reaches."""
    recipe = plan.recipe
    sha256 = save(model, output / MODEL_FILE, recipe_sha256=recipe.digest)
    exported = create(recipe.name, checkpoint=output / MODEL_FILE)
    reached = measure(exported, data, readers)
    verdict = report.judge(recipe, reached, sha256)
    report.write_receipt(
        output,
        plan,
        verdict,
        environment=environment(),
        data=report.fingerprint(data),
        sha256={MODEL_FILE: sha256, LOG_FILE: digest(output / LOG_FILE)},
    )
    report.draw_curve(output, recipe.name)
    return verdict


def environment() -> dict[str, Any]:
    """What the run ran on."""
    return {
        "deit_zoo": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": str(torch.__version__),
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
