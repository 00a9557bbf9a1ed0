"""What a recipe costs in GPU-hours, where that is known: published, or arithmetic on that.

No figure counts a teacher's pass: nobody published one that does.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from deit_zoo.files import ASSETS, LOG_FILE
from deit_zoo.recipes import RECIPES
from deit_zoo.recipes.recipe import IMAGENET_TRAIN, Recipe

UNKNOWN = "unknown: nobody published it"


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """GPU-hours of `epochs` epochs of the recipe's images; derived means arithmetic on the source.

    `gpus` is how many they were measured on.
    """

    gpu_hours: float
    epochs: int
    gpus: int = 1
    source: str
    hardware: str = "V100"
    origin: Literal["published", "derived"] = "published"
    at_most: bool = False


_PAPER = "arXiv:2012.12877, section 6"


def _of_21k(seconds: float, gpus: int, epochs: int) -> tuple[Cost]:
    """What an author told of an epoch of DeiT III on ImageNet-21k at 224 pixels, asked about V100.

    ViT-H's is left out: its recipe trains at 126.
    """
    gpu_hours = round(seconds * gpus * epochs / 3600)
    source = f"{seconds:g} s an epoch of ImageNet-21k on {gpus} GPUs, upstream's issue #198"
    return (Cost(gpu_hours=gpu_hours, epochs=epochs, gpus=gpus, source=source, origin="derived"),)


_3_DAYS = Cost(
    gpu_hours=288, epochs=300, gpus=4, source=f"less than 3 days on 4 GPUs, {_PAPER}", at_most=True
)
_VIS4D = Cost(
    gpu_hours=230,
    epochs=300,
    gpus=4,
    source="2.4 days on 4 GPUs, vis4d's model zoo",
    hardware="RTX 3090",
)
COSTS: dict[str, tuple[Cost, ...]] = {
    "deit_tiny": (_3_DAYS, _VIS4D),
    "deit_small": (_3_DAYS,),
    "deit_base": (
        Cost(gpu_hours=424, epochs=300, gpus=8, source=f"53 h on 8 GPUs, {_PAPER}"),
        Cost(gpu_hours=592, epochs=300, gpus=16, source=f"37 h on 16 GPUs, {_PAPER}"),
    ),
    "deit_base_384": (
        Cost(gpu_hours=160, epochs=25, gpus=8, source=f"20 h on 8 GPUs for 25 epochs, {_PAPER}"),
    ),
    "deit_base_distilled_1000ep": (
        Cost(
            gpu_hours=1410,
            epochs=1000,
            gpus=8,
            source=f"53 h on 8 GPUs for 300 epochs without a teacher, {_PAPER}",
            origin="derived",
        ),
    ),
    "deit3_small_pretrain_21k": _of_21k(1548.6, 32, 240),
    "deit3_medium_pretrain_21k": _of_21k(1577.5, 32, 240),
    "deit3_base_pretrain_21k": _of_21k(2231.5, 32, 240),
    "deit3_large_pretrain_21k": _of_21k(5976.1, 32, 240),
}
# Images per second of one RTX 3090: timm's training benchmark, the better of the two layouts.
IMAGES_PER_SECOND = {
    "deit_tiny": 2290.53,
    "deit_small": 1053.64,
    "deit_base": 390.88,
    "deit_base_384": 97.3,
    "deit_tiny_distilled": 2253.36,
    "deit_small_distilled": 1032.61,
    "deit_base_distilled": 385.62,
    "deit_base_distilled_384": 94.83,
    "cait_xxs24_224": 593.22,
    "cait_xxs24_384": 99.39,
    "cait_xxs36_224": 387.24,
    "cait_xxs36_384": 64.34,
    "cait_xs24_384": 66.24,
    "cait_s24_224": 305.74,
    "cait_s24_384": 50.14,
    "cait_s36_384": 32.3,
    "cait_m36_384": 11.91,
    "cait_m48_448": 4.76,
    "deit3_small": 987.86,
    "deit3_small_384": 227.76,
    "deit3_base": 374.05,
    "deit3_base_384": 93.5,
    "deit3_large": 113.17,
    "deit3_large_384": 28.26,
    "deit3_huge": 38.4,
}


def costs_of(name: str) -> list[Cost]:
    """What is known of a recipe of ours; a row of its table at the same size costs the same."""
    recipe = RECIPES[name]
    plain = RECIPES.get(recipe.variant_of or "", recipe)
    if plain.img_size != recipe.img_size:
        plain = recipe
    costs = [*COSTS.get(name, COSTS.get(plain.name, ()))]
    if (speed := IMAGES_PER_SECOND.get(plain.name)) is not None:
        hours = recipe.epochs * IMAGENET_TRAIN / speed / 3600
        costs.append(
            Cost(
                gpu_hours=round(hours, 1),
                hardware="RTX 3090",
                epochs=recipe.epochs,
                origin="derived",
                source=f"{speed:g} images/s, timm's training benchmark, PyTorch 1.12, AMP",
            )
        )
    return costs


def estimate(recipe: Recipe, gpus: int, share: float = 1.0) -> list[str]:
    """What is known of a run's time on `gpus` GPUs (0 is the CPU), a sentence per source.

    `share` is the part of the recipe's data that there is. A changed number of epochs or images
    scales the figure; another network, image size or data, or images shown twice, leave none.
    """
    shipped = RECIPES.get(recipe.name)
    decisive = ("model", "blocks", "stem", "img_size", "data", "cosub")
    if shipped is None or any(getattr(recipe, k) != getattr(shipped, k) for k in decisive):
        return [UNKNOWN]
    log = ASSETS / f"{recipe.name}.{LOG_FILE}"
    if log.is_file():  # of a model that is shipped
        epochs = map(json.loads, log.read_text(encoding="utf-8").splitlines())
        seconds = sum(epoch["seconds"] for epoch in epochs) * recipe.epochs / shipped.epochs * share
        return [f"{seconds:.0f} s on the machine that made the shipped weights (from their log)"]
    costs = _of_nearest(costs_of(recipe.name), gpus)
    return [_sentence(cost, recipe, gpus, share) for cost in costs] or [UNKNOWN]


def _of_nearest(costs: Sequence[Cost], gpus: int) -> list[Cost]:
    """Of the paper's several durations the one on nearly so many GPUs: they do not scale alike."""
    papers = [cost for cost in costs if cost.hardware == "V100"]
    nearest = min(papers, key=lambda cost: abs(cost.gpus - gpus), default=None)
    return [cost for cost in costs if cost is nearest or cost not in papers]


def _sentence(cost: Cost, recipe: Recipe, gpus: int, share: float) -> str:
    scale = recipe.epochs / cost.epochs * share
    derived = scale != 1.0 or gpus not in (0, cost.gpus)
    hours = cost.gpu_hours * scale
    line = f"{'at most ' if cost.at_most else ''}{_number(hours)} GPU-hours of {cost.hardware}"
    if gpus:
        line += f", {_number(hours / gpus)} h on {gpus}"
    if recipe.teacher:
        line += ", the teacher's pass not counted"
    return f"{line} ({'derived' if derived else cost.origin}: {cost.source})"


def _number(value: float) -> str:
    return f"{value:,.1f}".removesuffix(".0") if value < 1000 else f"{value:,.0f}"
