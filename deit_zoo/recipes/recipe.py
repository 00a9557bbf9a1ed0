"""A recipe: every number that decides a training's result, and nothing about the machine."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cache
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

from deit_zoo.errors import RecipeError


class Bounds(NamedTuple):
    """The numbers that a field may have, and how that is said."""

    least: float
    most: float
    words: str


_NOT_NEGATIVE = Bounds(0.0, math.inf, "0 or more")
Share = Annotated[float, Bounds(0.0, 1.0, "a share from 0 to 1")]
Amount = Annotated[float, _NOT_NEGATIVE]
Count = Annotated[int, Bounds(1, math.inf, "at least 1")]
Pixels = int | tuple[int, int]  # of a square's side, or (height, width)
MOST_SIDE = 13_377  # of a square of as many pixels as an image may have that is decoded
ImgSize = Annotated[Pixels, Bounds(1, MOST_SIDE, f"from 1 to {MOST_SIDE:,} pixels")]
IMAGENET_TRAIN, IMAGENET_VAL = 1_281_167, 50_000  # images
_BELOW_ONE = ("drop_path_rate", "ema_decay")
# RandAugment as timm spells it, and only what timm acts on: it skips some sections without a word.
# And AutoAugment (arXiv 1805.09501), by its policy for ImageNet.
_RAND_AUGMENT = re.compile(
    r"original|rand(-((m|n|mmax)[0-9]+|inc[01]|(p|mstd)[0-9]+(\.[0-9]+)?|tweights|t3aw?))*"
)
# What is said about a recipe, not what it does.
REMARKS = (
    "source",
    "variant_of",
    "layouts",
    "top1",
    "top1_source",
    "band",
    "band_source",
    "assumed",
)
# Younger than the first digests, which are kept where these do nothing.
_ADDED = {
    "class_weights": "none",
    "sampling": "uniform",
    "blocks": None,
    "stem": "linear",
    "cosub": False,
    "random_crop": "resized",
    "three_augment": False,
    "color_jitter": 0.0,
}
FIELDS_SHOWN = "`deit-zoo info NAME --recipe` shows a recipe's, docs/imagenet.md the machine's"
# What `--set` leaves alone: a recipe under another name would be judged by another figure.
FIXED = ("name", "model", "variant_of", "layouts", "top1", "top1_source", "assumed")


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """How one checkpoint is trained. Rates and batches are those of the whole run.

    `batch_size` images are spread over `replicas` virtual replicas, each with its own images,
    mixup draw and drop-path masks, whatever the number of processes that share them.
    `layouts` are the cuts that were published, such as `2 x 8 x 64` (nodes, GPUs of a node, images
    of a GPU), each with its source; a GPU's images are a replica.
    `lr` is the peak rate after scaling. `top1` is the figure that was published for a recipe that
    made no checkpoint (of those the manifest has it), and `variant_of` the recipe of which it is
    a row in a paper's table. `band` is the tolerance: the distance in points below the
    published top-1 that still counts as reproduced. `assumed` names the fields whose values nobody
    published and says why each was chosen.
    """

    name: str
    source: str
    model: str | None = None  # the architecture, where it is not called as the recipe is
    variant_of: str | None = None
    data: Literal["imagenet1k", "digits", "folder"]
    img_size: ImgSize
    blocks: str | None = None  # of a DeiT III, as 36 or 18x2
    stem: Literal["linear", "hmlp"] = "linear"
    init_from: str | None = None  # the recipe of the first stage, or a checkpoint

    epochs: Count
    batch_size: Count
    replicas: Count
    layouts: dict[str, str] = field(default_factory=dict)
    seed: int = 0

    optimizer: Literal["adamw", "sgd", "lamb"] = "adamw"
    lr: Amount
    betas: tuple[float, float] = (0.9, 0.999)
    eps: Amount = 1e-8
    momentum: Share = 0.9  # of sgd
    layer_decay: Share | None = None  # each block learns so much slower than the one above it
    # What keeps its weights; attention alone: arXiv:2203.09795, section 4.
    freeze: Literal["none", "backbone", "all-but-attention"] = "none"
    weight_decay: Amount
    clip_grad: float | None = None
    warmup_epochs: Annotated[int, _NOT_NEGATIVE]
    warmup_lr: Amount
    min_lr: Amount
    schedule: Literal["cosine", "step"] = "cosine"
    decay_epochs: Count = 30  # of the step schedule: the rate is multiplied by decay_rate so often
    decay_rate: Share = 0.1

    train_mode: bool = True  # False: no drop-path, as upstream fine-tuned until 2022-07-29
    ema_decay: Share | None = None
    loss: Literal["cross_entropy", "binary_cross_entropy"] = "cross_entropy"
    cosub: bool = False  # two subnetworks teach each other (arXiv:2212.04884)
    drop_path_rate: Share
    label_smoothing: Share
    # Balanced: rare classes weigh more in the loss, or are shown as often as the others.
    class_weights: Literal["none", "balanced"] = "none"
    sampling: Literal["uniform", "balanced"] = "uniform"

    # Simple: the short side resized, 4 pixels reflected around, a square cut out (DeiT III).
    random_crop: Literal["resized", "simple"] = "resized"
    crop_scale: tuple[float, float] = (0.08, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    hflip: Share
    rand_augment: str | None
    three_augment: bool = False  # grey, solarised or blurred (DeiT III); then colours change
    color_jitter: Amount = 0.0
    random_erasing: Share
    repeated_aug: Count
    mixup: Amount
    cutmix: Amount
    mixup_prob: Share = 1.0
    mixup_switch_prob: Share = 0.5

    distillation: Literal["none", "soft", "hard"] = "none"
    alpha: Share = 0.5
    tau: Amount = 1.0
    # Of soft distillation; the paper's code, not batchmean.
    kl_reduction: Literal["numel", "batchmean"] = "numel"
    teacher: str | None = None
    # The very tensor that the student sees; own: the teacher's way.
    teacher_input: Literal["student", "own"] = "student"

    top1: Amount | None = None
    top1_source: str = ""
    band: Amount
    band_source: str
    assumed: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_fields(self)
        for key in _BELOW_ONE:
            if getattr(self, key) == 1.0:
                raise RecipeError(f"{key} is 1.0; it must be below 1, or nothing would be learned")
        if self.class_weights != "none" and self.loss != "cross_entropy":
            raise RecipeError(
                f"class_weights is {self.class_weights!r} with the loss {self.loss}, in which each "
                "class is judged by itself; type --set loss=cross_entropy, or sampling=balanced"
            )
        if self.loss == "binary_cross_entropy" and self.label_smoothing:
            raise RecipeError(
                f"label_smoothing is {self.label_smoothing} with the loss binary_cross_entropy, "
                "for which every class above 0 is right, so all would be; type --set "
                "label_smoothing=0"
            )
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
        if self.repeated_aug > self.batch_size:
            raise RecipeError(
                f"repeated_aug is {self.repeated_aug:,}; an image is shown at most as often as a "
                f"step has places: {self.batch_size:,}"
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
        for key, most, words in (("crop_scale", 1.0, " and at most 1"), ("crop_ratio", 99.0, "")):
            low, high = getattr(self, key)
            if not 0.0 < low <= high <= most:
                raise RecipeError(
                    f"{key} is {low:g},{high:g}; it must be two numbers above 0{words}, the "
                    "smaller first"
                )
        if self.rand_augment is not None and not _RAND_AUGMENT.fullmatch(self.rand_augment):
            raise RecipeError(
                f"rand_augment is {self.rand_augment!r}; it must be none, or rand and sections of "
                "m, n, mmax, inc, p, mstd and t such as rand-m9-mstd0.5-inc1, or original for "
                "AutoAugment's policy"
            )
        if self.three_augment and (self.rand_augment is not None or self.random_erasing):
            raise RecipeError(
                "three_augment is true, which takes the place of RandAugment and of erasing; type "
                "--set rand_augment=none --set random_erasing=0"
            )
        if not self.three_augment and (self.color_jitter or self.random_crop == "simple"):
            raise RecipeError(
                f"color_jitter is {self.color_jitter} and random_crop {self.random_crop!r} without "
                "three_augment, which alone has them; type --set three_augment=true"
            )

    def _check_distillation(self) -> None:
        if self.cosub and (self.distillation != "none" or self.class_weights != "none"):
            raise RecipeError(
                "cosub is true, in which the network is its own teacher; type "
                "--set distillation=none --set teacher=none --set class_weights=none"
            )
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
        return self.model or self.variant_of or self.name

    @property
    def layout(self) -> str | None:
        """The published layout by which the batch is cut; None where it is cut otherwise."""
        cut = self.replicas, self.batch_size // self.replicas
        return next((layout for layout in self.layouts if cut_of(layout) == cut), None)

    @property
    def deciding(self) -> dict[str, Any]:
        """Every value that decides the training, but for younger fields that do nothing."""
        hints = type_hints(Recipe)
        return {
            key: float(value) if hints[key] is float else value  # 1 and 1.0 are one rate
            for key, value in self.to_dict().items()
            if key not in REMARKS and (key, value) not in _ADDED.items()
        }

    @property
    def digest(self) -> str:
        """SHA-256 of every value that decides the training: equal trainings, equal digests."""
        return hashlib.sha256(json.dumps(self.deciding, sort_keys=True).encode()).hexdigest()


def differences(recipe: Recipe, other: Recipe) -> list[tuple[str, Any, Any]]:
    """The fields that decide the training and differ: name, value, the other's value."""
    return [
        (f.name, getattr(recipe, f.name), getattr(other, f.name))
        for f in fields(Recipe)
        if f.name not in REMARKS and getattr(recipe, f.name) != getattr(other, f.name)
    ]


def cut_of(layout: str) -> tuple[int, int]:
    """The replicas and the images of each that a layout such as `2 x 8 x 64` is."""
    *gpus, images = map(int, layout.split(" x "))
    return math.prod(gpus), images


def shown(value: Any) -> str:
    """A value as `--set` takes it."""
    if isinstance(value, tuple | list):
        return ("x" if all(isinstance(part, int) for part in value) else ",").join(map(str, value))
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def count(number: int, noun: str) -> str:
    """A number of things in words: 1 step, 2 steps."""
    return f"1 {noun}" if number == 1 else f"{number:,} {noun}{'es' if noun[-1] == 's' else 's'}"


def duration(seconds: float) -> str:
    """A time in words: 15 s, 90 min, 2.5 h."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def from_dict(values: Mapping[str, Any]) -> Recipe:
    """The recipe that `to_dict` wrote, also after a journey through JSON."""
    own: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    return Recipe(**own)


def changed(recipe: Recipe, changes: Sequence[str]) -> Recipe:
    """The recipe with `field=value` changes, each read by the field's type."""
    hints = {name: hint for name, hint in type_hints(Recipe).items() if name not in FIXED}
    values = dict(read_change(change, hints, "a recipe") for change in changes)
    # What the user chose is no longer our assumption.
    assumed = {key: why for key, why in recipe.assumed.items() if key not in values}
    return replace(recipe, **values, assumed=assumed)


@cache
def type_hints(kind: type, *, extras: bool = False) -> dict[str, Any]:
    """The types of a dataclass's fields, with their bounds where `extras` are asked for."""
    return get_type_hints(kind, include_extras=extras)


def check_fields(record: Any) -> None:
    """Raises RecipeError where a field is none of its literals, or out of its bounds."""
    for key, hint in type_hints(record.__class__, extras=True).items():
        value = getattr(record, key)
        if get_origin(hint) is Literal and value not in get_args(hint):
            choices = ", ".join(get_args(hint))
            raise RecipeError(f"{key} is {value!r}; it must be one of {choices}")
        for kind in (hint, *get_args(hint)):  # of `Share | None` the first
            for limit in getattr(kind, "__metadata__", ()):
                numbers = () if value is None else value if isinstance(value, tuple) else (value,)
                if all(limit.least <= n <= limit.most and math.isfinite(n) for n in numbers):
                    continue
                raise RecipeError(f"{key} is {shown(value)}; it must be {limit.words}")


def read_change(
    change: str, hints: Mapping[str, Any], of: str, nothing: Sequence[str] = ("none", "null")
) -> tuple[str, Any]:
    """A `field=value` of `--set` as name and value; `nothing` are the words for None."""
    name, sign, text = change.partition("=")
    if name not in hints:
        raise RecipeError(f"no field of {of} that can be set is called {name!r}; {FIELDS_SHOWN}")
    if not sign:
        raise RecipeError(f"{name} has no value; type --set {name}=VALUE")
    hint = hints[name]
    # Of `float | None` the first; literals and strings are read as they are.
    if type(None) in get_args(hint):
        if text.lower() in nothing:
            return name, None
        hint = get_args(hint)[0]
    if (kind := hint if hint in _READERS else get_origin(hint) or hint) not in _READERS:
        return name, text
    read, words = _READERS[kind]
    try:
        return name, read(text)
    except (ValueError, KeyError) as error:
        raise RecipeError(f"--set {change}: {name} must be {words}") from error


def _read_pair(text: str) -> tuple[float, float]:
    first, second = re.split("[,x]", text.strip("()"))  # 1x1 is what `shown` makes of (1, 1)
    return float(first), float(second)


def read_size(text: str) -> Pixels:
    """`224`, or `192x256` for height and width. Raises ValueError for anything else."""
    if not (parts := re.fullmatch(r"(\d+)(?:x(\d+))?", text)):
        raise ValueError(f"{text!r} is no size")
    height, width = int(parts[1]), int(parts[2] or parts[1])
    return height if height == width else (height, width)


_READERS: dict[Any, tuple[Callable[[str], Any], str]] = {
    int: (int, "a whole number"),
    float: (float, "a number"),
    bool: (lambda text: {"true": True, "false": False}[text.lower()], "true or false"),
    Pixels: (read_size, "pixels as 224, or 192x256 (HxW)"),
    tuple: (_read_pair, "two numbers such as 0.5,0.9"),
}
