"""From a recipe and a machine to what will happen: pure arithmetic, no torch."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from deit_zoo.errors import DataError, RecipeError
from deit_zoo.training.recipe import Recipe, from_dict, read_change

IMAGENET_TRAIN, IMAGENET_VAL = 1_281_167, 50_000
# Upstream rounds an epoch down to a multiple of this many images before it shares them out.
EPOCH_UNIT = 256
# What `--set` may change of the machine; none of it marks a run as modified.
SETTINGS = {
    "precision": "str",
    "compile": "bool | None",
    "deterministic": "bool",
    "state_minutes": "float",
}
PRECISIONS = ("auto", "bf16", "fp16", "fp32")


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """A recipe on a machine: `processes` share the replicas of `num_images` training images.

    `precision` auto is bf16 where a GPU has it, fp16 on other GPUs, fp32 on the CPU; `compile`
    None means on a GPU. A state is kept every `state_minutes` and after every epoch.
    """

    recipe: Recipe
    modified: bool
    device: str
    processes: int
    nodes: int = 1
    workers: int
    num_images: int
    precision: str = "auto"
    compile: bool | None = None
    deterministic: bool = False
    state_minutes: float = 15.0

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise RecipeError(
                f"precision is {self.precision!r}; it must be one of {', '.join(PRECISIONS)}"
            )
        if self.precision == "fp16" and self.device == "cpu":
            raise RecipeError("precision is 'fp16' on the CPU; type --set precision=bf16 or fp32")
        replicas = self.recipe.replicas
        if replicas % self.processes:
            fitting = [n for n in range(1, replicas + 1) if replicas % n == 0]
            nearest = min(fitting, key=lambda n: (abs(n - self.processes), n))
            raise RecipeError(
                f"{self.processes} processes cannot share {replicas} replicas evenly; the nearest "
                f"number that can is --gpus {nearest}, or change --set replicas="
            )
        if self.steps_per_epoch < 1:
            raise DataError(
                f"{self.num_images} training images give no whole step of "
                f"{self.recipe.batch_size}; give more images or a smaller --set batch_size="
            )

    @property
    def replica_batch(self) -> int:
        """Images of one replica in one step."""
        return self.recipe.batch_size // self.recipe.replicas

    @property
    def replicas_per_process(self) -> int:
        """Replicas that one process works through in a step, one after another."""
        return self.recipe.replicas // self.processes

    @property
    def images_per_replica(self) -> int:
        """Images that a replica sees in an epoch, before the last partial batch is dropped."""
        return epoch_images(self.num_images) // self.recipe.replicas

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of an epoch."""
        return self.images_per_replica // self.replica_batch

    @property
    def unique_images(self) -> int:
        """Different images of an epoch: repeated augmentation shows each several times."""
        seen = self.images_per_replica * self.recipe.replicas
        return -(-seen // self.recipe.repeated_aug)

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain data, with what follows from it."""
        derived = {
            "replica_batch": self.replica_batch,
            "replicas_per_process": self.replicas_per_process,
            "steps_per_epoch": self.steps_per_epoch,
            "unique_images_per_epoch": self.unique_images,
            "recipe_sha256": self.recipe.digest,
        }
        return asdict(self) | derived

    def lines(self) -> list[tuple[str, str]]:
        """What a person wants to know before the start."""
        recipe = self.recipe
        distilled = f"{recipe.distillation} from {recipe.teacher}" if recipe.teacher else "none"
        epoch = f"{self.steps_per_epoch} steps, {self.unique_images:,} different images"
        if recipe.repeated_aug > 1:
            epoch += f", each shown {recipe.repeated_aug} times"
        processes = "process" if self.processes == 1 else "processes"
        workers = "worker" if self.workers == 1 else "workers"
        return [
            ("recipe", f"{recipe.name}{' (modified)' if self.modified else ''}, {recipe.source}"),
            ("data", f"{recipe.data}, {self.num_images:,} training images of {recipe.img_size} px"),
            ("length", f"{recipe.epochs} epochs of {epoch}"),
            ("batch", f"{recipe.batch_size} = {recipe.replicas} replicas x {self.replica_batch}"),
            ("machine", f"{self.processes} {processes} on {self.device}, {self.workers} {workers}"),
            ("rate", f"peak {recipe.lr:.3g}, {recipe.warmup_epochs} warm-up epochs, cosine"),
            ("distillation", distilled),
        ]


def epoch_images(num_images: int) -> int:
    """The images of an epoch: upstream's rounding, and all of them where that would leave none."""
    return num_images // EPOCH_UNIT * EPOCH_UNIT or num_images


def settings(changes: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """What `--set` says, parted into changes of the recipe and settings of the machine."""
    mine = [change for change in changes if change.partition("=")[0] in SETTINGS]
    of_recipe = [change for change in changes if change not in mine]
    return of_recipe, dict(read_change(change, SETTINGS, "a plan") for change in mine)


def plan_from(values: Mapping[str, Any]) -> Plan:
    """The plan that `to_dict` wrote, also after a journey through JSON."""
    held = {f.name: values[f.name] for f in fields(Plan) if f.name != "recipe"}
    return Plan(recipe=from_dict(values["recipe"]), **held)


def learning_rate(recipe: Recipe, epoch: int) -> float:
    """The rate of every step of an epoch (upstream's schedule, timm 0.3.2).

    Upstream steps its scheduler with the number of the epoch that just ended: epochs 0 and 1 both
    run at the warm-up rate, and the warm-up is not taken off the cosine's time axis.
    """
    time = max(epoch - 1, 0)
    if time < recipe.warmup_epochs:
        return recipe.warmup_lr + time * (recipe.lr - recipe.warmup_lr) / recipe.warmup_epochs
    if recipe.schedule == "step":
        return recipe.lr * recipe.decay_rate ** (time // recipe.decay_epochs)
    cosine = (1.0 + math.cos(math.pi * time / recipe.epochs)) / 2.0
    return recipe.min_lr + (recipe.lr - recipe.min_lr) * cosine


def default_workers(processes: int) -> int:
    """Loader workers per process: the cores that the training threads leave, at most 12."""
    return max(1, min(12, (os.cpu_count() or 2) // processes - 1))
