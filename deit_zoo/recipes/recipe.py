"""A recipe: every number that decides a training's result, and nothing about the machine."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, get_type_hints

from deit_zoo.errors import RecipeError

_CHOICES = {
    "data": ("imagenet1k", "digits", "folder"),
    "optimizer": ("adamw", "sgd"),
    "freeze": ("none", "backbone", "all-but-attention"),
    "schedule": ("cosine", "step"),
    "loss": ("cross_entropy", "binary_cross_entropy"),
    "distillation": ("none", "soft", "hard"),
    "kl_reduction": ("numel", "batchmean"),
    "teacher_input": ("student", "own"),
}
_SHARES = (
    "drop_path_rate",
    "label_smoothing",
    "hflip",
    "random_erasing",
    "mixup_prob",
    "mixup_switch_prob",
    "alpha",
    "decay_rate",
    "ema_decay",
    "momentum",
    "layer_decay",
)
_AMOUNTS = (
    "lr",
    "eps",
    "weight_decay",
    "warmup_epochs",
    "warmup_lr",
    "min_lr",
    "mixup",
    "cutmix",
    "tau",
    "band",
)
_COUNTS = ("epochs", "batch_size", "replicas", "repeated_aug", "img_size", "decay_epochs")
_BELOW_ONE = ("drop_path_rate", "ema_decay")
# RandAugment as timm spells it, and only what timm acts on: it skips some sections without a word.
_RAND_AUGMENT = re.compile(
    r"rand(-((m|n|mmax)[0-9]+|inc[01]|(p|mstd)[0-9]+(\.[0-9]+)?|tweights|t3aw?))*"
)
# What is said about a recipe, not what it does.
_REMARKS = ("source", "band", "band_source", "assumed")
# What `--set` leaves alone: a recipe under another name would be judged by another figure.
_FIXED = ("name", "model", "assumed")


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """How one checkpoint is trained. Rates and batches are those of the whole run.

    `batch_size` images are spread over `replicas` virtual replicas, each with its own images,
    mixup draw and drop-path masks, whatever the number of processes that share them.
    `lr` is the peak rate after scaling. `band` is the distance in points below the published
    top-1 that still counts as reproduced. `assumed` names the fields whose values nobody published
    and says why each was chosen.
    """

    name: str
    source: str
    model: str | None = None  # the architecture, where it is not called as the recipe is
    data: str
    img_size: int
    init_from: str | None = None  # the recipe of the first stage, or a checkpoint

    epochs: int
    batch_size: int
    replicas: int
    seed: int = 0

    optimizer: str = "adamw"
    lr: float
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    momentum: float = 0.9  # of sgd
    layer_decay: float | None = None  # each block learns so much slower than the one above it
    freeze: str = "none"  # what keeps its weights; attention alone: arXiv:2203.09795, section 4
    weight_decay: float
    clip_grad: float | None = None
    warmup_epochs: int
    warmup_lr: float
    min_lr: float
    schedule: str = "cosine"
    decay_epochs: int = 30  # of the step schedule: the rate is multiplied by decay_rate so often
    decay_rate: float = 0.1

    train_mode: bool = True  # False: no drop-path, as upstream fine-tuned until 2022-07-29
    ema_decay: float | None = None
    loss: str = "cross_entropy"
    drop_path_rate: float
    label_smoothing: float

    crop_scale: tuple[float, float] = (0.08, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    hflip: float
    rand_augment: str | None
    random_erasing: float
    repeated_aug: int
    mixup: float
    cutmix: float
    mixup_prob: float = 1.0
    mixup_switch_prob: float = 0.5

    distillation: str = "none"
    alpha: float = 0.5
    tau: float = 1.0
    kl_reduction: str = "numel"  # of soft distillation; the paper's code, not batchmean
    teacher: str | None = None
    teacher_input: str = "student"  # the very tensor that the student sees; own: the teacher's way

    band: float
    band_source: str
    assumed: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for key, choices in _CHOICES.items():
            if getattr(self, key) not in choices:
                raise RecipeError(
                    f"{key} is {getattr(self, key)!r}; it must be one of {', '.join(choices)}"
                )
        for key in _SHARES:
            if not 0.0 <= (getattr(self, key) or 0.0) <= 1.0:
                raise RecipeError(f"{key} is {getattr(self, key)}; it must be a share from 0 to 1")
        for key in _BELOW_ONE:
            if getattr(self, key) == 1.0:
                raise RecipeError(f"{key} is 1.0; it must be below 1, or nothing would be learned")
        for key in _AMOUNTS:
            if not 0.0 <= getattr(self, key) < math.inf:
                raise RecipeError(f"{key} is {getattr(self, key)}; it must be 0 or more")
        for key in _COUNTS:
            if getattr(self, key) < 1:
                raise RecipeError(f"{key} is {getattr(self, key)}; it must be at least 1")
        self._check_batch()
        self._check_optimizer()
        self._check_images()
        self._check_distillation()
        if unknown := sorted(set(self.assumed) - {f.name for f in fields(self)}):
            raise RecipeError(f"assumed names {unknown[0]!r}, which is no field of a recipe")

    def _check_batch(self) -> None:
        if self.batch_size % self.replicas:
            raise RecipeError(
                f"batch_size {self.batch_size} is not a multiple of replicas {self.replicas}; "
                f"the next that is, is {-(-self.batch_size // self.replicas) * self.replicas}"
            )
        if self.mixes and self.batch_size // self.replicas % 2:
            raise RecipeError(
                f"mixup pairs images, so the batch of a replica must be even, not "
                f"{self.batch_size // self.replicas}; change batch_size or replicas"
            )

    def _check_optimizer(self) -> None:
        if not all(0.0 <= beta < 1.0 for beta in self.betas):
            raise RecipeError(
                f"betas is {self.betas[0]:g},{self.betas[1]:g}; both must be from 0 to below 1"
            )
        if self.clip_grad is not None and not 0.0 < self.clip_grad < math.inf:
            raise RecipeError(
                f"clip_grad is {self.clip_grad}; it must be above 0, or none for no clipping"
            )

    def _check_images(self) -> None:
        for key, most, told in (("crop_scale", 1.0, " and at most 1"), ("crop_ratio", 99.0, "")):
            low, high = getattr(self, key)
            if not 0.0 < low <= high <= most:
                raise RecipeError(
                    f"{key} is {low:g},{high:g}; it must be two numbers above 0{told}, the smaller "
                    "first"
                )
        if self.rand_augment is not None and not _RAND_AUGMENT.fullmatch(self.rand_augment):
            raise RecipeError(
                f"rand_augment is {self.rand_augment!r}; it must be none, or rand and sections of "
                "m, n, mmax, inc, p, mstd and t such as rand-m9-mstd0.5-inc1"
            )

    def _check_distillation(self) -> None:
        if (self.distillation == "none") != (self.teacher is None):
            raise RecipeError(
                f"distillation is {self.distillation!r} and teacher is {self.teacher!r}; "
                "give both, or distillation=none and teacher=none"
            )
        if self.distillation == "soft" and self.tau == 0.0:
            raise RecipeError("tau is 0.0; soft distillation divides by it, so give 1 or 3")

    def to_dict(self) -> dict[str, Any]:
        """The recipe as plain data."""
        return asdict(self)

    @property
    def mixes(self) -> bool:
        """Whether images are mixed, in pairs."""
        return bool(self.mixup or self.cutmix)

    @property
    def architecture(self) -> str:
        """The name of the model in the registry."""
        return self.model or self.name

    @property
    def digest(self) -> str:
        """SHA-256 of every value that decides the training: equal trainings, equal digests."""
        hints = get_type_hints(Recipe)
        values = {
            key: float(value) if hints[key] is float else value  # 1 and 1.0 are one rate
            for key, value in self.to_dict().items()
            if key not in _REMARKS
        }
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def differences(recipe: Recipe, other: Recipe) -> list[tuple[str, Any, Any]]:
    """The fields that decide the training and differ: name, value, the other's value."""
    return [
        (f.name, getattr(recipe, f.name), getattr(other, f.name))
        for f in fields(Recipe)
        if f.name not in _REMARKS and getattr(recipe, f.name) != getattr(other, f.name)
    ]


def shown(value: Any) -> str:
    """A value as `--set` takes it."""
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def from_dict(values: Mapping[str, Any]) -> Recipe:
    """The recipe that `to_dict` wrote, also after a journey through JSON."""
    held: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    return Recipe(**held)


def changed(recipe: Recipe, changes: Sequence[str]) -> Recipe:
    """The recipe with `field=value` changes, each read by the field's type."""
    hints = {k: str(v) for k, v in get_type_hints(Recipe).items() if k not in _FIXED}
    values = dict(read_change(change, hints, "a recipe") for change in changes)
    # What the user chose is no longer our assumption.
    assumed = {key: why for key, why in recipe.assumed.items() if key not in values}
    return replace(recipe, **values, assumed=assumed)


def read_change(change: str, hints: Mapping[str, str], of: str) -> tuple[str, Any]:
    """A `field=value` of `--set` as name and value. Raises RecipeError for what is neither."""
    name, sign, text = change.partition("=")
    if not sign or name not in hints:
        raise RecipeError(f"--set {change!r} is no FIELD=VALUE of {of}; fields: {', '.join(hints)}")
    return name, _read(name, text, hints[name])


def _read(name: str, text: str, hint: str) -> Any:
    if "None" in hint and text.lower() in ("none", "null"):
        return None
    wanted = "a number"
    try:
        if "tuple" in hint:
            wanted = "two numbers such as 0.5,1.0"
            first, second = text.strip("()").split(",")
            return float(first), float(second)
        if "bool" in hint:
            wanted = "true or false"
            return {"true": True, "false": False}[text.lower()]
        if "int" in hint:
            wanted = "a whole number"
            return int(text)
        if "float" in hint:
            return float(text)
    except (ValueError, KeyError) as error:
        raise RecipeError(f"--set {name}={text}: {name} must be {wanted}") from error
    return text
