"""Where each value of a recipe is from: the comment beside it, in the file that holds it."""

from __future__ import annotations

import ast
import inspect
import io
import tokenize
from functools import cache
from types import ModuleType

from deit_zoo.recipes import MODULES
from deit_zoo.recipes.recipe import REMARKS, Recipe

ASSUMED = "assumed: "
UNUSED, DEFAULT = "not used", "deit_zoo's default"


def sources_of(recipe: Recipe) -> dict[str, str]:
    """What stands beside each value; of one that nobody published, why it was chosen."""
    sources = _comments(recipe.name) | {n: ASSUMED + why for n, why in recipe.assumed.items()}
    return {
        name: sources.get(name, UNUSED if value in (None, "none", "uniform") else DEFAULT)
        for name, value in recipe.to_dict().items()
        if name not in (*REMARKS, "name", "model", "data")
    }


def _comments(name: str) -> dict[str, str]:
    """The comments beside the values of a recipe, and of the recipes that it is made from."""
    base, own = _definitions()[name]
    return own if base is None else _comments(base) | own


@cache
def _definitions() -> dict[str, tuple[str | None, dict[str, str]]]:
    """Of every recipe by its name: the one that it is made from, and its own comments."""
    definitions: dict[str, tuple[str | None, dict[str, str]]] = {}
    for module in MODULES:
        definitions |= _defined_in(module)
    return definitions


def _defined_in(module: ModuleType) -> dict[str, tuple[str | None, dict[str, str]]]:
    """A recipe is a call that names it; first its base, and dicts of values with comments too."""
    text = inspect.getsource(module)
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    beside = {
        token.start[0]: token.string.lstrip("# ")
        for token in tokens
        if token.type == tokenize.COMMENT
    }

    def comments_of(call: ast.Call) -> dict[str, str]:
        comments: dict[str, str] = {}
        for keyword in call.keywords:
            if keyword.arg is None:  # **VALUES
                comments |= comments_of(assigned[ast.unparse(keyword.value)])
            elif keyword.value.lineno in beside:
                comments[keyword.arg] = beside[keyword.value.lineno]
        return comments

    tree = ast.parse(text)
    assigned = {
        ast.unparse(node.targets[0]): node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call)
    }
    definitions = {}
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        for name in (keyword.value for keyword in call.keywords if keyword.arg == "name"):
            base = vars(module)[ast.unparse(call.args[0])].name if call.args else None
            definitions[ast.literal_eval(name)] = base, comments_of(call)
    return definitions
