"""What a recipe costs in GPU-hours, where that is known: published, or arithmetic on that.

No figure counts a teacher's pass: nobody published one that does.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from deit_zoo.files import ASSETS
from deit_zoo.recipes import RECIPES
from deit_zoo.recipes.recipe import Recipe

UNKNOWN = "unknown: nobody published it"


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """GPU-hours of `epochs` epochs of ImageNet-1k; derived means arithmetic on the source.

    `gpus` is how many they were measured on.
    """

    gpu_hours: float
    hardware: str
    epochs: int
    gpus: int = 1
    origin: str
    source: str
    at_most: bool = False


_PAPER = "arXiv:2012.12877, section 6"


def _paper(gpu_hours: float, gpus: int, epochs: int, duration: str, at_most: bool = False) -> Cost:
    return Cost(
        gpu_hours=gpu_hours,
        hardware="V100",
        epochs=epochs,
        gpus=gpus,
        origin="published",
        source=f"{duration}, {_PAPER}",
        at_most=at_most,
    )


def _timm(gpu_hours: float, epochs: int, images_per_second: float) -> Cost:
    return Cost(
        gpu_hours=gpu_hours,
        hardware="RTX 3090",
        epochs=epochs,
        origin="derived",
        source=f"{images_per_second:g} images/s, timm's training benchmark, PyTorch 1.12, AMP",
    )


COSTS: dict[str, tuple[Cost, ...]] = {
    "deit_tiny": (
        _paper(288, 4, 300, "less than 3 days on 4 GPUs", at_most=True),
        Cost(
            gpu_hours=230,
            hardware="RTX 3090",
            epochs=300,
            gpus=4,
            origin="published",
            source="2.4 days on 4 GPUs, vis4d's model zoo",
        ),
        _timm(46.6, 300, 2290.53),
    ),
    "deit_small": (
        _paper(288, 4, 300, "less than 3 days on 4 GPUs", at_most=True),
        _timm(101.3, 300, 1053.64),
    ),
    "deit_base": (
        _paper(424, 8, 300, "53 h on 8 GPUs"),
        _paper(592, 16, 300, "37 h on 16 GPUs"),
        _timm(273.1, 300, 390.88),
    ),
    "deit_base_384": (_paper(160, 8, 25, "20 h on 8 GPUs for 25 epochs"), _timm(109.7, 30, 97.3)),
    "deit_tiny_distilled": (_timm(47.4, 300, 2253.36),),
    "deit_small_distilled": (_timm(103.4, 300, 1032.61),),
    "deit_base_distilled": (_timm(276.9, 300, 385.62),),
    "deit_tiny_distilled_1000ep": (_timm(157.9, 1000, 2253.36),),
    "deit_small_distilled_1000ep": (_timm(344.6, 1000, 1032.61),),
    "deit_base_distilled_1000ep": (
        Cost(
            gpu_hours=1410,
            hardware="V100",
            epochs=1000,
            gpus=8,
            origin="derived",
            source=f"53 h on 8 GPUs for 300 epochs without a teacher, {_PAPER}",
        ),
        _timm(922.9, 1000, 385.62),
    ),
    "deit_base_distilled_384": (_timm(112.6, 30, 94.83),),
    "deit_base_distilled_384_300ep": (_timm(112.6, 30, 94.83),),
    "cait_xxs24_224": (_timm(240.0, 400, 593.22),),
    "cait_xxs24_384": (_timm(214.8, 60, 99.39),),
    "cait_xxs36_224": (_timm(367.6, 400, 387.24),),
    "cait_xxs36_384": (_timm(331.9, 60, 64.34),),
    "cait_xs24_384": (_timm(322.4, 60, 66.24),),
    "cait_s24_224": (_timm(465.6, 400, 305.74),),
    "cait_s24_384": (_timm(425.9, 60, 50.14),),
    "cait_s36_384": (_timm(661.1, 60, 32.3),),
    "cait_m36_384": (_timm(1792.8, 60, 11.91),),
    "cait_m48_448": (_timm(4485.9, 60, 4.76),),
    "deit3_small": (_timm(288.2, 800, 987.86),),
}


def estimate(recipe: Recipe, gpus: int, share: float = 1.0) -> list[str]:
    """What is known of a run's time on `gpus` GPUs (0 is the CPU), a sentence per source.

    `share` is the part of the recipe's data that there is. A changed number of epochs or images
    scales the figure; another model, image size or data leaves none.
    """
    shipped = RECIPES.get(recipe.name)
    if shipped is None or any(
        getattr(recipe, key) != getattr(shipped, key) for key in ("model", "img_size", "data")
    ):
        return [UNKNOWN]
    if recipe.data == "digits":
        seconds = _shipped_seconds(recipe.name) * recipe.epochs / shipped.epochs * share
        return [f"{seconds:.0f} s on the machine that made the shipped weights (from their log)"]
    known = COSTS.get(recipe.name, ())
    plain = RECIPES.get(recipe.variant_of or "")
    if plain is not None and not known and plain.img_size == recipe.img_size:
        known = COSTS.get(plain.name, ())
    costs = _of_nearest(known, gpus)
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


def _shipped_seconds(name: str) -> float:
    lines = (ASSETS / f"{name}.log.jsonl").read_text(encoding="utf-8").splitlines()
    return float(sum(json.loads(line)["seconds"] for line in lines))
