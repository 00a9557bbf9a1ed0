"""Recipes by the name of the model that they train."""

from __future__ import annotations

from deit_zoo.training.recipe import Recipe
from deit_zoo.training.recipes import deit, digits

RECIPES: dict[str, Recipe] = {recipe.name: recipe for recipe in (*deit.RECIPES, *digits.RECIPES)}
