"""What is known of recipes: `list --recipes`, `info RECIPE`, and two of them in `diff`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from deit_zoo.cli.console import out, print_json, print_rows, print_table, talk
from deit_zoo.recipes import RECIPES
from deit_zoo.recipes.costs import estimate
from deit_zoo.recipes.plan import layout_in_words
from deit_zoo.recipes.recipe import Recipe, shown
from deit_zoo.recipes.sources import sources_of
from deit_zoo.registry import matches
from deit_zoo.runs.reference import published_curve, published_figure

UNPUBLISHED = "–"


def print_recipes(pattern: str, *, as_json: bool) -> None:
    """The table of recipes, those of checkpoints, stages and variants."""
    recipes = [recipe for name, recipe in RECIPES.items() if matches(name, pattern)]
    if as_json:
        print_json([facts_of(recipe) for recipe in recipes])
        return
    rows = [("recipe", "px", "epochs", "batch", "top-1", "assumed", "begins from", "of")]
    for recipe in recipes:
        figure = published_figure(recipe)
        top1 = UNPUBLISHED if figure is None or figure.top1 is None else f"{figure.top1:.2f}"
        numbers = (shown(recipe.img_size), str(recipe.epochs), str(recipe.batch_size), top1)
        assumed = str(len(recipe.assumed) or UNPUBLISHED)
        beginning = recipe.init_from or "random weights"
        rows.append((recipe.name, *numbers, assumed, beginning, recipe.variant_of or ""))
    print_table(rows, right=range(1, 6))
    talk.print("`deit-zoo info RECIPE` shows every value and where it is from")
    if not recipes:
        talk.print("no recipe has such a name; `deit-zoo list --recipes` shows all")


def print_recipe(recipe: Recipe, *, as_json: bool) -> None:
    """Every value of a recipe with its source or reason, its stages, figure, curve and cost."""
    if as_json:
        print_json(facts_of(recipe))
        return
    print_rows(out, list(_rows(recipe)))
    values = recipe.to_dict()
    fields = [(name, shown(values[name]), why) for name, why in sources_of(recipe).items()]
    print_table([("field", "value", "source, or why"), *fields])


def facts_of(recipe: Recipe) -> dict[str, Any]:
    """The same as plain data."""
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


def _rows(recipe: Recipe) -> Iterator[tuple[str, str]]:
    of = f", a variant of {recipe.variant_of}" if recipe.variant_of else ""
    yield "recipe", f"{recipe.name}{of}"
    yield "from", recipe.source
    yield "trains", f"{recipe.architecture} on {recipe.data}"
    for number, stage in enumerate(stages_of(recipe), start=1):
        words = f"{stage.name}, {stage.epochs} epochs at {shown(stage.img_size)} px"
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
