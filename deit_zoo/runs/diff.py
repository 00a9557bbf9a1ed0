"""What differs between two receipts, field by field."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from deit_zoo.recipes.recipe import REMARKS, Recipe

# In the order in which they are printed; a field belongs to the first of which a name begins it.
GROUPS: dict[str, tuple[str, ...]] = {
    "recipe": (
        "plan.recipe",
        "plan.recipe_sha256",
        "plan.modified",
        "seed",
        "modified",
        "assumed",
        "differs",
    ),
    "plan and machine": ("plan", "run"),
    "data": ("data",),
    "code and environment": ("environment",),
    "weights": ("sha256", "teacher"),
    "result": ("",),
}
ORDER = ("result", *(name for name in GROUPS if name != "result"), "clock")
# The log states how long each epoch took, so its digest is never the same twice.
CLOCK = ("sha256.log.jsonl",)
CLOCK_NAMES = ("started", "finished", "seconds", "hours")
SHA256 = re.compile("[0-9a-f]{64}")
ABSENT = object()  # what a field has on the side that lacks it


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """A field, by its names joined with dots, and its value in each receipt."""

    group: str
    field: str
    left: Any
    right: Any

    def to_dict(self) -> dict[str, Any]:
        """The difference as plain data; a side that lacks the field is not named."""
        sides = {"left": self.left, "right": self.right}
        return {"field": self.field} | {k: v for k, v in sides.items() if v is not ABSENT}

    def words(self) -> tuple[str, str]:
        """Both values in words, digests and fractions cut where that leaves them different."""
        left, right = _short(self.left), _short(self.right)
        return (left, right) if left != right else (shown(self.left), shown(self.right))


def compare(left: Mapping[str, Any], right: Mapping[str, Any]) -> list[Difference]:
    """The differences in the order of their groups, then as the receipts have them."""
    first, second = dict(_leaves(left, "")), dict(_leaves(right, ""))
    differences = [
        Difference(group=group_of(field), field=field, left=value, right=other)
        for field in first | second
        if not _same(value := first.get(field, ABSENT), other := second.get(field, ABSENT))
    ]
    return sorted(differences, key=lambda difference: ORDER.index(difference.group))


def compare_recipes(left: Recipe, right: Recipe) -> list[Difference]:
    """The differences of two recipes: what they do first, then what is said of them."""
    fields = compare({"plan": {"recipe": left.to_dict()}}, {"plan": {"recipe": right.to_dict()}})
    named = [replace(one, field=one.field.removeprefix("plan.recipe.")) for one in fields]
    return sorted(named, key=lambda one: one.field.partition(".")[0] in REMARKS)


def once(differences: Sequence[Difference]) -> list[tuple[str, str, str]]:
    """Fields with both values in words, without those that another field has told: of the same name
    and values, as in a plan and its receipt, or as a part of one that a side lacks."""
    rows: dict[tuple[str, ...], str] = {}
    fields = [one.field for one in differences]
    for one in differences:
        if not any(field.startswith(f"{one.field}.") for field in fields):
            rows.setdefault((one.field.rpartition(".")[2], *one.words()), one.field)
    return [(field, left, right) for (_, left, right), field in rows.items()]


def group_of(field: str) -> str:
    """The group of a field."""
    first, _, rest = field.partition(".")
    timed = first in ("environment", "run") and rest.rpartition("_")[2] in CLOCK_NAMES
    if field in CLOCK or timed:
        return "clock"
    for group, prefixes in GROUPS.items():
        if any(f"{field}.".startswith(f"{prefix}." if prefix else "") for prefix in prefixes):
            return group
    raise AssertionError(f"{field} has no group, though one takes all that is left")


def shown(value: Any) -> str:
    """A value as a person reads it."""
    if value is ABSENT:
        return "absent"
    if value is None or isinstance(value, bool):
        return {None: "none", True: "true", False: "false"}[value]
    if isinstance(value, list) and value:
        return ", ".join(map(shown, value))
    return str(value)


def _short(value: Any) -> str:
    if isinstance(value, str) and SHA256.fullmatch(value):
        return f"{value[:8]}…"
    return f"{value:.6g}" if isinstance(value, float) else shown(value)


def _leaves(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, child in value.items():
            yield from _leaves(child, f"{name}.{key}" if name else key)
    else:
        yield name, value


def _same(left: Any, right: Any) -> bool:
    # In Python true is 1, and NaN is not itself.
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    return bool(left == right) or (left != left and right != right)
