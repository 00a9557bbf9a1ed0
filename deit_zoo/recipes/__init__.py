"""Recipes by their names: that of the model, or of a stage or variant that is no checkpoint."""

from __future__ import annotations

from deit_zoo.recipes import cait, deit, digits
from deit_zoo.recipes.recipe import Recipe

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe for recipe in (*deit.RECIPES, *cait.RECIPES, *digits.RECIPES)
}
