"""Where each value of a recipe is from: the comment beside it, in the file that holds it."""

from __future__ import annotations

import ast
import inspect
import io
import tokenize
from collections.abc import Iterator
from functools import cache
from types import ModuleType

from deit_zoo import recipes
from deit_zoo.recipes.recipe import REMARKS, Recipe

ASSUMED = "assumed: "
UNUSED, DEFAULT = "not used", "deit_zoo's default"


def sources_of(recipe: Recipe) -> dict[str, str]:
    """What stands beside each value; of one that nobody published, why it was chosen."""
    told = _told(recipe.name) | {name: ASSUMED + why for name, why in recipe.assumed.items()}
    return {
        name: told.get(name, UNUSED if value in (None, "none", "uniform") else DEFAULT)
        for name, value in recipe.to_dict().items()
        if name not in (*REMARKS, "name", "model", "data")
    }


def _told(name: str) -> dict[str, str]:
    """The comments beside the values of a recipe, and of the recipes that it is made from."""
    comments: dict[str, str] = {}
    where: tuple[str, str] | None = _places()[name]
    while where is not None:
        where, own = _definitions()[where]
        comments = own | comments
    return comments


@cache
def _places() -> dict[str, tuple[str, str]]:
    """The module and the variable of every recipe."""
    return {
        value.name: (module.__name__, variable)
        for module in _modules()
        for variable, value in vars(module).items()
        if isinstance(value, Recipe) and (module.__name__, variable) in _definitions()
    }


@cache
def _definitions() -> dict[tuple[str, str], tuple[tuple[str, str] | None, dict[str, str]]]:
    """Of every variable that is a recipe: the one that it is made from, and its own comments."""
    return {
        (module.__name__, variable): definition
        for module in _modules()
        for variable, definition in _defined_in(module)
    }


def _defined_in(
    module: ModuleType,
) -> Iterator[tuple[str, tuple[tuple[str, str] | None, dict[str, str]]]]:
    text = inspect.getsource(module)
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    beside = {
        token.start[0]: token.string.lstrip("# ")
        for token in tokens
        if token.type == tokenize.COMMENT
    }
    imported: dict[str, str] = {}
    for node in ast.parse(text).body:
        if isinstance(node, ast.ImportFrom):
            imported |= {alias.name: str(node.module) for alias in node.names}
        if not (isinstance(node, ast.Assign) and isinstance(node.value, ast.Call)):
            continue
        [target], call = node.targets, node.value
        base = call.args[0].id if call.args and isinstance(call.args[0], ast.Name) else None
        origin = (imported.get(base, module.__name__), base) if base else None
        own = {
            str(keyword.arg): beside[keyword.value.lineno]
            for keyword in call.keywords
            if keyword.value.lineno in beside
        }
        yield ast.unparse(target), (origin, own)


def _modules() -> list[ModuleType]:
    """Those that hold recipes, which end in a list of them."""
    return [
        value
        for value in vars(recipes).values()
        if isinstance(value, ModuleType) and hasattr(value, "RECIPES")
    ]
