"""What is known of recipes: `list --recipes`, `info RECIPE`, and two of them in `diff`."""

from __future__ import annotations

from deit_zoo.cli.console import out, print_json, print_rows, print_table, talk
from deit_zoo.facts.recipe import facts_of_recipe, fields_of_recipe, rows_of_recipe
from deit_zoo.recipes import RECIPES
from deit_zoo.recipes.recipe import Recipe, shown
from deit_zoo.registry.names import matches
from deit_zoo.runs.reference import published_figure

UNPUBLISHED = "–"


def print_recipes(pattern: str, *, as_json: bool) -> None:
    """The table of recipes, those of checkpoints, stages and variants."""
    recipes = [recipe for name, recipe in RECIPES.items() if matches(name, pattern)]
    if as_json:
        print_json([facts_of_recipe(recipe) for recipe in recipes])
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
        print_json(facts_of_recipe(recipe))
        return
    print_rows(out, list(rows_of_recipe(recipe)))
    print_table([("field", "value", "source, or why"), *fields_of_recipe(recipe)])
