"""What differs between two receipts, field by field; nothing is left out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

# In the order in which they are told; a field belongs to the first of which a name begins it.
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


class Absent:
    """What a field has on the side that lacks it."""

    def __repr__(self) -> str:
        return "absent"


ABSENT = Absent()


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
        held = {side: value for side, value in sides.items() if value is not ABSENT}
        return {"field": self.field} | held


def compare(left: Mapping[str, Any], right: Mapping[str, Any]) -> list[Difference]:
    """The differences in the order of their groups, then as the receipts have them."""
    mine, theirs = dict(_leaves(left, "")), dict(_leaves(right, ""))
    found = [
        Difference(
            group=group_of(name),
            field=name,
            left=mine.get(name, ABSENT),
            right=theirs.get(name, ABSENT),
        )
        for name in mine | theirs
        if not _same(mine.get(name, ABSENT), theirs.get(name, ABSENT))
    ]
    return sorted(found, key=lambda one: ORDER.index(one.group))


def group_of(field: str) -> str:
    """The group of a field."""
    first, _, rest = field.partition(".")
    timed = first in ("environment", "run") and rest.rpartition("_")[2] in CLOCK_NAMES
    if field in CLOCK or timed:
        return "clock"
    for group, beginnings in GROUPS.items():
        if any(f"{field}.".startswith(f"{name}." if name else "") for name in beginnings):
            return group
    raise AssertionError(f"{field} has no group, though one takes all that is left")


def shown(value: Any) -> str:
    """A value as a person reads it."""
    if value is None or isinstance(value, bool):
        return {None: "none", True: "true", False: "false"}[value]
    if isinstance(value, list) and value:
        return ", ".join(map(shown, value))
    return str(value)


def _leaves(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, held in value.items():
            yield from _leaves(held, f"{name}.{key}" if name else key)
    else:
        yield name, value


def _same(left: Any, right: Any) -> bool:
    # In Python true is 1, and NaN is not itself.
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    return bool(left == right) or (left != left and right != right)
