"""Recipes by their names: that of the model, or of a stage or variant that is no checkpoint."""

from __future__ import annotations

from deit_zoo.errors import RecipeError
from deit_zoo.recipes import cait, deit, deit3, digits, variants
from deit_zoo.recipes.recipe import Recipe
from deit_zoo.registry import MODELS
from deit_zoo.registry.names import lookup, normalize, resolve

# A recipe that one of these defines is found by its name; in the order of the models.
MODULES = (deit, cait, deit3, digits, variants)
_DEFINED = [v for module in MODULES for v in vars(module).values() if isinstance(v, Recipe)]
_DEFINED.sort(key=lambda recipe: list(MODELS).index(recipe.architecture))
RECIPES = {recipe.name: recipe for recipe in (*_DEFINED, *variants.RECIPES)}


def find_recipe(name: str) -> Recipe | None:
    """The recipe that a name means: its own, or any spelling of its model."""
    if (recipe := RECIPES.get(normalize(name))) is not None:
        return recipe
    spec = lookup(name)
    return None if spec is None else RECIPES.get(spec.name)


def variants_of(name: str) -> dict[str, str]:
    """The names of the recipes that are rows beside this one in the papers' tables."""
    return {
        recipe.name.removeprefix(f"{name}_").replace("_", "-"): recipe.name
        for recipe in RECIPES.values()
        if recipe.variant_of == name
    }


def variant_name(name: str, variant: str) -> str:
    """The name of a variant's recipe. Raises RecipeError where there is none of this name."""
    base = find_recipe(name)
    base_name = resolve(name).name if base is None else base.name
    known = variants_of(base_name)
    own = normalize(variant).replace("_", "-")
    if own not in known:
        there = f"there are {', '.join(known)}" if known else "it has none"
        raise RecipeError(f"{base_name} has no variant {variant!r}; {there}")
    return known[own]
