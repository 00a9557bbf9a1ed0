"""From a recipe and a machine to what will happen: pure arithmetic, no torch."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from deit_zoo.errors import DataError, RecipeError
from deit_zoo.recipes import RECIPES
from deit_zoo.recipes.costs import estimate
from deit_zoo.recipes.recipe import Recipe, differences, from_dict, read_change, shown
from deit_zoo.registry import MODELS

IMAGENET_TRAIN, IMAGENET_VAL = 1_281_167, 50_000
DIGITS_TRAIN = 1437
# DeiT, Table 9: the peak rate of a batch of 512.
PAPER_RATE = 5e-4
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
        if self.recipe.replicas % self.processes:
            raise RecipeError(
                f"{self.processes} processes cannot share {self.recipe.replicas} replicas evenly; "
                f"{self._fitting()}change --set replicas="
            )
        if self.steps_per_epoch < 1:
            raise DataError(
                f"{self.num_images} training images give no whole step of "
                f"{self.recipe.batch_size}; {self._remedy()}"
            )

    def _fitting(self) -> str:
        """The nearest number of processes of a node that can share the replicas."""
        replicas = self.recipe.replicas
        fitting = [n for n in range(self.nodes, replicas + 1, self.nodes) if replicas % n == 0]
        if not fitting:
            return ""
        nearest = min(fitting, key=lambda n: (abs(n - self.processes), n)) // self.nodes
        option = "--processes" if self.device == "cpu" else "--gpus"
        return f"the nearest number that can is {option} {nearest}, or "

    def _remedy(self) -> str:
        """What to type where the images make no whole step."""
        unit = 2 if self.recipe.mixes else 1
        if per_replica := self.images_per_replica // unit * unit:
            return f"give more images, or --set batch_size={per_replica * self.recipe.replicas}"
        fewest = self.processes * unit
        if per_process := epoch_images(self.num_images) // fewest * unit:
            return (
                f"give more images, or --set replicas={self.processes} "
                f"--set batch_size={per_process * self.processes}"
            )
        return f"give at least {fewest} images"

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
        return [
            ("recipe", f"{recipe.name}{_modified(recipe, self.modified)}, {recipe.source}"),
            *_assumed(recipe),
            *_first_stage(recipe),
            ("data", f"{recipe.data}, {self.num_images:,} training images of {recipe.img_size} px"),
            ("length", self._length()),
            ("batch", self._batch()),
            ("machine", self._machine()),
            ("precision", self._precision()),
            ("rate", _rate(recipe)),
            *_rate_by_the_rule(recipe),
            ("distillation", _distillation(recipe)),
            *_unusual(recipe),
            *(("time", told) for told in self._times()),
        ]

    def _length(self) -> str:
        steps = "1 step" if self.steps_per_epoch == 1 else f"{self.steps_per_epoch} steps"
        told = f"{self.recipe.epochs} epochs of {steps}, {self.unique_images:,} different images"
        if self.recipe.repeated_aug > 1:
            told += f", each shown {self.recipe.repeated_aug} times"
        if self.num_images < EPOCH_UNIT:
            told += f"; fewer than {EPOCH_UNIT} images, so an epoch is of all of them"
        return told

    def _batch(self) -> str:
        share = self.replicas_per_process
        replicas = "1 replica" if self.recipe.replicas == 1 else f"{self.recipe.replicas} replicas"
        told = f"{self.recipe.batch_size} = {replicas} x {self.replica_batch}"
        if share == 1:
            return f"{told}, one to a process"
        return f"{told}; a process takes {share} in turn, {share * self.replica_batch} images"

    def _machine(self) -> str:
        processes = "1 process" if self.processes == 1 else f"{self.processes} processes"
        nodes = f" on {self.nodes} nodes" if self.nodes > 1 else ""
        workers = "1 worker" if self.workers == 1 else f"{self.workers} workers"
        each = " each" if self.processes > 1 else ""
        return f"{processes}{nodes} on {self.device}, {workers}{each}"

    def _precision(self) -> str:
        on_gpu = self.device != "cpu"
        auto = "bf16 where the GPU has it, else fp16" if on_gpu else "fp32"
        compiled = on_gpu if self.compile is None else self.compile
        same = self.deterministic or not on_gpu
        return (
            f"{auto if self.precision == 'auto' else self.precision}; "
            f"{'compiled' if compiled else 'not compiled'}; "
            f"{'the same bits every time' if same else 'bits may differ between runs'}"
        )

    def _times(self) -> list[str]:
        full = {"imagenet1k": IMAGENET_TRAIN, "digits": DIGITS_TRAIN}.get(self.recipe.data)
        gpus = 0 if self.device == "cpu" else self.processes
        return estimate(self.recipe, gpus, self.num_images / full if full else 1.0)


def _modified(recipe: Recipe, modified: bool) -> str:
    """The fields that are not the recipe's, with the recipe's values."""
    known = RECIPES.get(recipe.name)
    found = differences(recipe, known) if known else []
    if not found:
        return " (modified)" if modified else ""
    told = ", ".join(f"{name} {shown(own)}, recipe {shown(its)}" for name, own, its in found)
    return f" (modified: {told})"


def _assumed(recipe: Recipe) -> list[tuple[str, str]]:
    if not recipe.assumed:
        return []
    why = f"; deit-zoo info {recipe.name} says why" if recipe.name in MODELS else ""
    told = f"{', '.join(recipe.assumed)} (nobody published them, or second-hand only{why})"
    return [("partly assumed", told)]


def _first_stage(recipe: Recipe) -> list[tuple[str, str]]:
    if recipe.init_from is None:
        return []
    source = recipe.init_from
    told = source
    if stage := RECIPES.get(source):
        told += f", {stage.epochs} epochs at {stage.img_size} px"
        if source in MODELS:
            told += ": its published weights"
        else:
            told += f": train it, then --set init_from=runs/{source}"
    return [("first stage", told)]


def _rate(recipe: Recipe) -> str:
    told = f"peak {recipe.lr:.3g} after scaling"
    if recipe.warmup_epochs:
        epochs = (
            "1 warm-up epoch"
            if recipe.warmup_epochs == 1
            else f"{recipe.warmup_epochs} warm-up epochs"
        )
        told += f", {epochs} from {recipe.warmup_lr:.3g}"
    if recipe.schedule == "step":
        return f"{told}, x {recipe.decay_rate:g} every {recipe.decay_epochs} epochs"
    if recipe.lr == recipe.min_lr:
        return f"{told}, then constant"
    return f"{told}, cosine to {recipe.min_lr:.3g}"


def _rate_by_the_rule(recipe: Recipe) -> list[tuple[str, str]]:
    """What the paper's rule gives where the batch was changed and the rate was not."""
    known = RECIPES.get(recipe.name)
    if (
        known is None
        or known.data != "imagenet1k"
        or known.lr != PAPER_RATE * known.batch_size / 512
        or recipe.batch_size == known.batch_size
        or recipe.lr != known.lr
    ):
        return []
    rule = PAPER_RATE * recipe.batch_size / 512
    told = f"{rule:.10g}"
    return [("", f"the paper's rule, 5e-4 x batch / 512, gives {told}; type --set lr={told}")]


def _distillation(recipe: Recipe) -> str:
    if recipe.teacher is None:
        return "none"
    told = f"{recipe.distillation} from {recipe.teacher}, alpha {recipe.alpha:g}"
    if recipe.distillation == "soft":
        over = {"numel": "batch x classes", "batchmean": "the batch"}[recipe.kl_reduction]
        told += f", tau {recipe.tau:g}, divided by {over} ({recipe.kl_reduction})"
    spec = MODELS.get(recipe.architecture)
    token = spec is not None and spec.arch.get("distilled", False)
    told += f", on the {'distillation token' if token else 'class head'}"
    if recipe.teacher_input == "own":
        told += "; the teacher sees the images its own way"
    return told


def _unusual(recipe: Recipe) -> list[tuple[str, str]]:
    """What most recipes leave alone."""
    found = []
    if not recipe.train_mode:
        found.append("eval mode: no drop-path")
    if recipe.loss != "cross_entropy":
        found.append(recipe.loss.replace("_", " "))
    if recipe.ema_decay is not None:
        found.append(f"moving average of the weights, decay {recipe.ema_decay:g}")
    if recipe.clip_grad is not None:
        found.append(f"gradients clipped at {recipe.clip_grad:g}")
    return [("also", "; ".join(found))] if found else []


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
