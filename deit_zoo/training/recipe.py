"""A recipe: every number that decides a training's result, and nothing about the machine."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, get_type_hints

from deit_zoo.errors import RecipeError

_CHOICES = {
    "data": ("imagenet1k", "digits"),
    "optimizer": ("adamw",),
    "distillation": ("none", "soft", "hard"),
}
_SHARES = (
    "drop_path_rate",
    "label_smoothing",
    "hflip",
    "random_erasing",
    "mixup_prob",
    "mixup_switch_prob",
    "alpha",
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
# What is said about a recipe, not what it does.
_REMARKS = ("source", "band", "band_source")


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """How one checkpoint is trained. Rates and batches are those of the whole run.

    `batch_size` images are spread over `replicas` virtual replicas, each with its own images,
    mixup draw and drop-path masks, whatever the number of processes that share them.
    `lr` is the peak rate after scaling. `band` is the distance in points below the published
    top-1 that still counts as reproduced.
    """

    name: str
    source: str
    data: str
    img_size: int

    epochs: int
    batch_size: int
    replicas: int
    seed: int = 0

    optimizer: str = "adamw"
    lr: float
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float
    clip_grad: float | None = None
    warmup_epochs: int
    warmup_lr: float
    min_lr: float

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
    teacher: str | None = None

    band: float
    band_source: str

    def __post_init__(self) -> None:
        for field, choices in _CHOICES.items():
            if getattr(self, field) not in choices:
                raise RecipeError(
                    f"{field} is {getattr(self, field)!r}; it must be one of {', '.join(choices)}"
                )
        for field in _SHARES:
            if not 0.0 <= getattr(self, field) <= 1.0:
                raise RecipeError(
                    f"{field} is {getattr(self, field)}; it must be a share from 0 to 1"
                )
        for field in _AMOUNTS:
            if not 0.0 <= getattr(self, field) < math.inf:
                raise RecipeError(f"{field} is {getattr(self, field)}; it must be 0 or more")
        for field in ("epochs", "batch_size", "replicas", "repeated_aug", "img_size"):
            if getattr(self, field) < 1:
                raise RecipeError(f"{field} is {getattr(self, field)}; it must be at least 1")
        if self.batch_size % self.replicas:
            raise RecipeError(
                f"batch_size {self.batch_size} is not a multiple of replicas {self.replicas}; "
                f"the next that is, is {-(-self.batch_size // self.replicas) * self.replicas}"
            )
        if (self.mixup or self.cutmix) and self.batch_size // self.replicas % 2:
            raise RecipeError(
                f"mixup pairs images, so the batch of a replica must be even, not "
                f"{self.batch_size // self.replicas}; change batch_size or replicas"
            )
        if (self.distillation == "none") != (self.teacher is None):
            raise RecipeError(
                f"distillation is {self.distillation!r} and teacher is {self.teacher!r}; "
                "give both, or distillation=none and teacher=none"
            )

    def to_dict(self) -> dict[str, Any]:
        """The recipe as plain data."""
        return asdict(self)

    @property
    def digest(self) -> str:
        """SHA-256 of every value that decides the training: equal trainings, equal digests."""
        values = {key: value for key, value in self.to_dict().items() if key not in _REMARKS}
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def changed(recipe: Recipe, changes: Sequence[str]) -> Recipe:
    """The recipe with `field=value` changes, each read by the field's type."""
    hints = get_type_hints(Recipe)
    values: dict[str, Any] = {}
    for change in changes:
        field, sign, text = change.partition("=")
        if not sign or field not in hints or field == "name":
            known = ", ".join(f.name for f in fields(Recipe) if f.name != "name")
            raise RecipeError(f"--set {change!r} is no FIELD=VALUE of a recipe; fields: {known}")
        values[field] = _read(field, text, str(hints[field]))
    return replace(recipe, **values)


def _read(field: str, text: str, hint: str) -> Any:
    if "None" in hint and text.lower() in ("none", "null"):
        return None
    try:
        if "tuple" in hint:
            first, second = text.strip("()").split(",")
            return float(first), float(second)
        if "int" in hint:
            return int(text)
        if "float" in hint:
            return float(text)
    except ValueError as error:
        wanted = "a whole number" if "int" in hint else "a number"
        wanted = "two numbers such as 0.5,1.0" if "tuple" in hint else wanted
        raise RecipeError(f"--set {field}={text}: {field} must be {wanted}") from error
    return text
