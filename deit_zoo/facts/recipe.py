"""What is known of a recipe: labelled rows, the source of each value, and both as plain data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from deit_zoo.recipes import RECIPES
from deit_zoo.recipes.costs import estimate
from deit_zoo.recipes.in_words import layout_in_words
from deit_zoo.recipes.recipe import Recipe, count, shown
from deit_zoo.recipes.sources import sources_of
from deit_zoo.runs.reference import published_curve, published_figure


def facts_of_recipe(recipe: Recipe) -> dict[str, Any]:
    """Every value with its source or reason, stages, figure, curve and cost, as plain data."""
    figure, curve = published_figure(recipe), published_curve(recipe)
    return {
        "recipe": recipe.to_dict(),
        "architecture": recipe.architecture,
        "sources": sources_of(recipe),
        "stages": [stage.name for stage in stages_of(recipe)],
        "published": None if figure is None else {"top1": figure.top1, "source": figure.source},
        "curve": [] if curve is None else sorted(curve.points.items()),
        "cost": estimate(recipe, 0),
        "sha256": recipe.digest,
    }


def stages_of(recipe: Recipe) -> list[Recipe]:
    """The recipe and those that it begins from, the first one first."""
    stages = [recipe]
    while (before := RECIPES.get(stages[0].init_from or "")) is not None:
        stages.insert(0, before)
    return stages


def rows_of_recipe(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """Labels and what is known beside the values: stages, layout, figure, curve, cost."""
    of = f", a variant of {recipe.variant_of}" if recipe.variant_of else ""
    yield "recipe", f"{recipe.name}{of}"
    yield "from", recipe.source
    yield "trains", f"{recipe.architecture} on {recipe.data}"
    for number, stage in enumerate(stages_of(recipe), start=1):
        words = f"{stage.name}, {count(stage.epochs, 'epoch')} at {shown(stage.img_size)} px"
        yield (f"stage {number}", words)
    if recipe.layouts:
        yield "layout", layout_in_words(recipe)
    figure = published_figure(recipe)
    if figure is None or figure.top1 is None:
        yield "figure", "none is published"
    else:
        tolerance = f"tolerance {recipe.band:g}: {recipe.band_source}"
        yield "figure", f"top-1 {figure.top1:g} % ({figure.source}); {tolerance}"
    curve = published_curve(recipe)
    points = 0 if curve is None else len(curve.points)
    yield "curve", f"{points} epochs ({curve.source})" if curve and points else "none is published"
    for cost in estimate(recipe, 0):
        yield "cost", cost
    yield "digest", recipe.digest


def fields_of_recipe(recipe: Recipe) -> list[tuple[str, str, str]]:
    """Each field, its value and where that is from, or why it was chosen."""
    values = recipe.to_dict()
    return [(name, shown(values[name]), why) for name, why in sources_of(recipe).items()]
