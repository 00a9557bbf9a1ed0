"""Recipes by their names: that of the model, or of a stage or variant that is no checkpoint."""

from __future__ import annotations

from deit_zoo.training.recipe import Recipe
from deit_zoo.training.recipes import cait, deit, digits

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe for recipe in (*deit.RECIPES, *cait.RECIPES, *digits.RECIPES)
}
