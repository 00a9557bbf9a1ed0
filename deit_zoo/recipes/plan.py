"""From a recipe and a machine to what will happen: no torch."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from difflib import get_close_matches
from typing import Annotated, Any, Literal

from deit_zoo.errors import DataError, RecipeError
from deit_zoo.machine import usable_cores, world_size
from deit_zoo.manifest import Reading
from deit_zoo.recipes import in_words
from deit_zoo.recipes.costs import estimate
from deit_zoo.recipes.recipe import (
    FIELDS_SHOWN,
    FIXED,
    IMAGENET_TRAIN,
    Amount,
    Bounds,
    Count,
    Recipe,
    check_fields,
    count,
    cut_of,
    from_dict,
    read_change,
    shown,
    type_hints,
)
from deit_zoo.registry import MODELS

DIGITS_TRAIN = 1437
# What the recipes were written for; a user's own folder has no such number.
TRAIN_IMAGES = {"imagenet1k": IMAGENET_TRAIN, "digits": DIGITS_TRAIN}
# Upstream rounds an epoch down to a multiple of this many images before it shares them out.
EPOCH_UNIT = 256
# Loader workers of a process, if there are cores; a GPU takes images as fast as so many make them.
MOST_WORKERS, MOST_WORKERS_OF_GPU = 12, 24
WORKERS_LIMIT = 1024  # that may be typed
# How images are decoded, where that is to be said.
READINGS = {"upstream": "", "upright": "upright: turned as their EXIF says, transparency on white"}
# What a plan has too, and `--set` is not for.
OPTIONS = ("device", "gpus", "nodes", "output", "processes", "workers")
# What other programs call a field, where its own name is not like it.
ELSEWHERE = {"learning_rate": "lr", "bs": "batch_size", "wd": "weight_decay"}
ELSEWHERE |= {"opt": "optimizer", "aa": "rand_augment", "reprob": "random_erasing"}
ELSEWHERE |= {"input_size": "img_size", "ema": "ema_decay", "teacher_model": "teacher"}
ELSEWHERE |= {"warmup": "warmup_epochs", "grad_clip": "clip_grad", "src": "random_crop"}
ELSEWHERE |= {"finetune": "init_from", "attn_only": "freeze", "temperature": "tau"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What `--set` may change of the machine; none of it marks a run as modified.

    `precision` auto is bf16 where a CUDA GPU has it, fp16 on others, fp32 on the CPU and on
    Apple's GPUs; `compile` None means on a CUDA GPU. A state is kept every `state_minutes` and
    after every epoch. So many images of a process as `micro_batch` go through the network together;
    None means as many as a CUDA GPU's memory has room for, and elsewhere one replica's. Images are
    augmented by the loader's workers or on the device, with the same bits; auto means on a CUDA
    GPU. steps.jsonl has a line every `log_steps` steps and at the end of an epoch. With `parquet`
    the results of a run on a folder have predictions.parquet too.
    """

    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    compile: bool | None = None
    deterministic: bool = False
    state_minutes: Amount = 15.0
    micro_batch: Count | None = None
    augment: Literal["auto", "workers", "device"] = "auto"
    log_steps: Count = 50
    log_to: Literal["none", "trackio", "wandb"] = "none"
    final: Literal["last", "best"] = "last"
    parquet: bool = False
    teacher_labels: str | None = None  # a folder


SETTINGS = tuple(setting.name for setting in fields(Settings))


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan(Settings):
    """A recipe on a machine: `processes` share the replicas of `num_images` training images.

    `reading` is how images are decoded: as upstream does, or upright, as a person sees them.
    """

    recipe: Recipe
    modified: bool
    device: str
    processes: int
    nodes: int = 1
    workers: Annotated[int, Bounds(0, WORKERS_LIMIT, f"from 0 to {WORKERS_LIMIT:,}")]
    num_images: int
    reading: Reading = "upstream"  # as all plans did that do not say it

    def __post_init__(self) -> None:
        check_fields(self)
        if self.precision == "fp16" and self.device == "cpu":
            raise RecipeError("precision is 'fp16' on the CPU; type --set precision=bf16 or fp32")
        if self.augment == "device" and self.device == "mps":
            raise RecipeError(
                "augment is 'device', whose arithmetic is float64, and Apple's GPUs have none; "
                "type --set augment=workers"
            )
        if self.teacher_labels is not None and self.recipe.distillation != "hard":
            raise RecipeError(
                f"teacher_labels is {self.teacher_labels!r} with distillation "
                f"{self.recipe.distillation}: labels are what hard distillation learns of a "
                "teacher; leave --teacher-labels out, or type --set distillation=hard"
            )
        if self.recipe.replicas % self.processes:
            stray = f"unset RANK and WORLD_SIZE={self.processes} if torchrun did not start this; "
            raise RecipeError(
                f"{self.processes} processes cannot share {self.recipe.replicas} replicas evenly; "
                f"{stray if world_size() == self.processes else ''}"
                f"{self._fitting()}change --set replicas="
            )
        if self.steps_per_epoch < 1:
            raise DataError(
                f"{self.num_images} training images give no whole step of "
                f"{self.recipe.batch_size}; {self._remedy()}"
            )

        of_process = self.replica_batch * self.replicas_per_process
        fitting = [
            self.replica_batch * n
            for n in range(1, self.replicas_per_process + 1)
            if self.replicas_per_process % n == 0
        ]
        if self.micro_batch not in (None, *fitting):
            raise RecipeError(
                f"micro_batch is {self.micro_batch}; the {of_process} images that a process has in "
                f"a step go through the network as whole replicas: {', '.join(map(str, fitting))}, "
                "or auto"
            )

    def _fitting(self) -> str:
        """The nearest number of processes of a node that can share the replicas."""
        replicas = self.recipe.replicas
        fitting = [n for n in range(self.nodes, replicas + 1, self.nodes) if replicas % n == 0]
        if not fitting:
            return ""
        nearest = min(fitting, key=lambda n: (abs(n - self.processes), n)) // self.nodes
        option = "--gpus" if self.device == "cuda" else "--processes"
        return f"the nearest number that can is {option} {nearest}, or "

    def _remedy(self) -> str:
        """What to type where the images make no whole step."""
        unit = 2 if self.recipe.mixes else 1
        if per_replica := self.images_per_replica // unit * unit:
            return f"give more images, or --set batch_size={per_replica * self.recipe.replicas}"
        fewest = self.processes * unit
        if per_process := epoch_images(self.num_images) // fewest * unit:
            batch = per_process * self.processes
            once = " --set repeated_aug=1" if batch < self.recipe.repeated_aug else ""
            return (
                f"give more images, or --set replicas={self.processes} --set batch_size={batch}"
                f"{once}"
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
        return -(-self.steps_per_epoch * self.recipe.batch_size // self.recipe.repeated_aug)

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
        rows = [
            ("recipe", f"{in_words.title(recipe, self.modified)}, {recipe.source}"),
            ("partly assumed", in_words.assumed_fields(recipe)),
            ("first stage", in_words.first_stage(recipe)),
            ("data", self._data()),
            ("reading", READINGS[self.reading]),
            ("length", self._length()),
            ("batch", self._batch()),
            ("layout", in_words.layout_in_words(recipe) if recipe.layouts else ""),
            ("machine", self._machine()),
            ("memory", self._memory()),
            ("precision", self._precision()),
            ("rate", in_words.rate(recipe)),
            ("", in_words.warm_up_without_end(recipe)),
            ("", in_words.rate_by_the_rule(recipe)),
            ("distillation", in_words.distillation(recipe)),
            ("teacher labels", self._teacher_labels()),
            ("also", "; ".join(in_words.unusual(recipe))),
            ("target", in_words.target(recipe)),
            *(("time", sentence) for sentence in self._times()),
        ]
        return [row for row in rows if row[1]]

    def _data(self) -> str:
        recipe = self.recipe
        data = f"{recipe.data}, {self.num_images:,} training images of {shown(recipe.img_size)} px"
        short = short_of(recipe, self.num_images)
        return f"{data}: {short}" if short else data

    def _memory(self) -> str:
        """What is known before a step: in float32 the weights, their gradients and moments."""
        spec = MODELS.get(self.recipe.architecture)
        if spec is None or self.recipe.blocks is not None:  # then of another number than published
            return ""
        copies = 3 if self.recipe.optimizer == "sgd" else 4
        copies += self.recipe.ema_decay is not None
        megabytes = copies * 4 * spec.num_params / 1e6
        size = f"{megabytes / 1e3:.1f} GB" if megabytes >= 100 else f"{megabytes:.1f} MB"
        return (
            f"{size} in each process for weights, gradients and moments; what images need is "
            "measured before the first step"
        )

    def _teacher_labels(self) -> str:
        """Where the teacher's labels are kept, their size, and what they save."""
        if self.teacher_labels is None:
            return ""
        images = self.recipe.epochs * self.steps_per_epoch * self.recipe.batch_size
        line = f"{self.teacher_labels}, {2 * images / 1e6:,.1f} MB for {images:,} mixed images"
        share = in_words.teacher_share(self.recipe)
        if share is not None:
            line += f"; where all are known, {share:.0%} of the multiply-accumulates are saved"
        return line

    def _length(self) -> str:
        recipe = self.recipe
        length = f"{count(recipe.epochs, 'epoch')} of {count(self.steps_per_epoch, 'step')}"
        length += f", {self.unique_images:,} different images"
        if recipe.repeated_aug > 1:
            length += f", each shown {recipe.repeated_aug} times"
        if self.num_images < EPOCH_UNIT:
            length += f"; fewer than {EPOCH_UNIT} images, so an epoch is of all of them"
        return length

    def _batch(self) -> str:
        share = self.replicas_per_process
        replicas = count(self.recipe.replicas, "replica")
        batch = f"{self.recipe.batch_size} = {replicas} x {self.replica_batch}"
        if share == 1:
            return f"{batch}, one to a process"
        images = share * self.replica_batch
        together = "in turn"
        if self.micro_batch is not None:
            together = f"{self.micro_batch} images at a time"
        elif self.device == "cuda":
            together = "as many at a time as its memory has room for"
        return f"{batch}; a process takes {share}, {images} images, {together}"

    def _machine(self) -> str:
        nodes = f" on {self.nodes} nodes" if self.nodes > 1 else ""
        each = " each" if self.processes > 1 else ""
        workers = count(self.workers, "worker")
        return f"{count(self.processes, 'process')}{nodes} on {self.device}, {workers}{each}"

    def _precision(self) -> str:
        on_gpu = self.device == "cuda"
        auto = "bf16 where the GPU has it, else fp16" if on_gpu else "fp32"
        compiled = on_gpu if self.compile is None else self.compile
        same = self.device == "cpu" or (self.deterministic and on_gpu)
        return (
            f"{auto if self.precision == 'auto' else self.precision}; "
            f"{'compiled' if compiled else 'not compiled'}; "
            f"{'the same bits every time' if same else 'bits may differ between runs'}"
        )

    def _times(self) -> list[str]:
        full = TRAIN_IMAGES.get(self.recipe.data, self.num_images)
        gpus = self.processes if self.device == "cuda" else 0
        return estimate(self.recipe, gpus, self.num_images / full)


def laid_out(recipe: Recipe, processes: int) -> Recipe:
    """The recipe, cut as its authors cut it for so many processes.

    It keeps its own cut where theirs was for other numbers; where the processes cannot share
    that, it takes a published one that they can.
    """
    assumed = {key: why for key, why in recipe.assumed.items() if key != "replicas"}
    cuts = (cut_of(layout) for layout in recipe.layouts)
    published = [
        replace(recipe, replicas=replicas, assumed=assumed)
        for replicas, images in cuts
        if replicas * images == recipe.batch_size
    ]
    shared = [one for one in (recipe, *published) if one.replicas % processes == 0]
    exact = [one for one in shared if one.replicas == processes]
    return next(iter((*exact, *shared)), recipe)


def short_of(recipe: Recipe, num_images: int) -> str:
    """A remark where there are fewer training images than the recipe is for; else nothing."""
    full = TRAIN_IMAGES.get(recipe.data, 0)
    return f"only {num_images:,} of {full:,} training images" if num_images < full else ""


def epoch_images(num_images: int) -> int:
    """The images of an epoch: upstream's rounding, and all of them where that would leave none."""
    return num_images // EPOCH_UNIT * EPOCH_UNIT or num_images


def settings(changes: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """What `--set` says, split into changes of the recipe and settings of the machine."""
    for change in changes:
        _check_name(change.partition("=")[0])
    of_machine = [change for change in changes if change.partition("=")[0] in SETTINGS]
    of_recipe = [change for change in changes if change not in of_machine]
    hints = {name: type_hints(Plan)[name] for name in SETTINGS}
    auto = ("auto", "none", "null")
    return of_recipe, dict(read_change(change, hints, "a plan", auto) for change in of_machine)


def field_names() -> tuple[str, ...]:
    """What `--set` may change: fields of a recipe, and settings of the machine."""
    return (*(name for name in type_hints(Recipe) if name not in FIXED), *SETTINGS)


def nearest_field(name: str, options: Collection[str] = ()) -> str | None:
    """The field whose name is most like this; None where none is, or one of the options is more."""
    names = {field: field for field in field_names()} | ELSEWHERE | dict.fromkeys(options)
    words = {re.sub("[-_]", "", word): field for word, field in names.items()}
    near = get_close_matches(re.sub("[-_]", "", name.lower()), words, n=1, cutoff=0.7)
    return words[near[0]] if near else None


def _check_name(name: str) -> None:
    """Raises RecipeError for an option, and where no field is called so, with the nearest."""
    if name in OPTIONS:
        raise RecipeError(f"--set {name}=: {name} is an option of its own; type --{name}")
    if name in field_names():
        return
    near = nearest_field(name)
    advice = f"did you mean {near}?" if near else FIELDS_SHOWN
    raise RecipeError(f"no field of a recipe that can be set is called {name!r}; {advice}")


def plan_from(values: Mapping[str, Any]) -> Plan:
    """The plan that `to_dict` wrote, also after a journey through JSON."""
    recipe = from_dict(values["recipe"])
    # A plan of an older version has fewer fields.
    known = {field.name for field in fields(Plan) if field.name in values}
    return Plan(recipe=recipe, **{name: values[name] for name in known - {"recipe"}})


def default_workers(processes: int, *, on_gpu: bool = False) -> int:
    """Loader workers per process: the cores that the training threads leave."""
    most = MOST_WORKERS_OF_GPU if on_gpu else MOST_WORKERS
    return max(1, min(most, usable_cores() // processes - 1))
