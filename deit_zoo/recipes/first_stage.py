"""Where a second stage begins: at a published model, at a run, or at a stage trained before it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from deit_zoo.errors import RecipeError
from deit_zoo.files import RECEIPT_FILE, expand_user, read_json
from deit_zoo.recipes import RECIPES
from deit_zoo.recipes.recipe import Recipe, differences
from deit_zoo.registry import MODELS
from deit_zoo.registry.names import is_path, lookup


def trained_first(recipe: Recipe) -> Recipe | None:
    """The first stage that nobody published and that the same images train."""
    stage = RECIPES.get(recipe.init_from or "")
    shipped = RECIPES.get(recipe.name, recipe)
    if stage is None or stage.name in MODELS or stage.data != shipped.data:
        return None
    return stage


def resolve_init_from(recipe: Recipe) -> tuple[str, str | None] | None:
    """The model to build and its checkpoint (None: the published one); None begins at random."""
    source = recipe.init_from
    if source is None:
        return None
    if (first := lookup(source)) is not None and not is_path(source):
        own = MODELS[recipe.architecture].variant(recipe.blocks, recipe.stem)
        if (first.builder, first.arch) != (own.builder, own.arch):
            raise RecipeError(
                f"init_from is {source!r}, which is not built as {own.name} is; give a first stage "
                "of the same architecture"
            )
        return first.name, None
    if source.startswith("hf://") or expand_user(source).exists():
        return recipe.architecture, source
    if source in RECIPES:
        raise RecipeError(
            f"{recipe.name} begins from {source}, whose weights nobody published; train it first "
            f"with deit-zoo reproduce {source}, then type --set init_from=runs/{source}"
        )
    raise RecipeError(
        f"init_from is {source!r}, which is no model, no recipe and no file; give a model's name, "
        "a run's folder, a .safetensors or .pth file, or hf://ORG/REPO"
    )


def modifications(recipe: Recipe, shipped: Recipe) -> list[tuple[str, Any, Any]]:
    """The differences, but for what is none in a training: another of the published layouts, and
    a run of just the first stage that the shipped recipe names."""
    published = replace(recipe, layouts=shipped.layouts).layout is not None
    same = {"replicas": published, "init_from": _is_run_of(recipe.init_from, shipped.init_from)}
    return [change for change in differences(recipe, shipped) if not same.get(change[0])]


def _is_run_of(source: str | None, stage: str | None) -> bool:
    file = expand_user(source or "") / RECEIPT_FILE
    if None in (source, stage) or not file.is_file():
        return False
    try:
        receipt = read_json(file)
        return bool(receipt["model"] == stage and not receipt["modified"])
    except (ValueError, KeyError, TypeError):
        return False
