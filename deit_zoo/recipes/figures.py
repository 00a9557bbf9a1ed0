"""The figure that a recipe is judged by: the manifest's, or a row's that made no checkpoint."""

from __future__ import annotations

from deit_zoo.manifest import Metric, read_manifest
from deit_zoo.recipes import RECIPES
from deit_zoo.recipes.recipe import Recipe


def figure_of(recipe: Recipe) -> Metric | None:
    """What was published for a recipe; None for other data than it was published on."""
    if RECIPES.get(recipe.name, recipe).data != recipe.data:
        return None
    if recipe.top1 is not None:
        return Metric(top1=recipe.top1, top5=None, loss=None, source=recipe.top1_source)
    record = None if recipe.data == "folder" else read_manifest().get(recipe.name)
    return record.metric if record else None
