"""Receipts compared: every field in its group, and nothing left out."""

from __future__ import annotations

import json
from typing import Any

from deit_zoo.files import ASSETS
from deit_zoo.runs.diff import ABSENT, Difference, compare, group_of, shown
from support.tables import each_row

LEFT: dict[str, Any] = {
    "verdict": "reproduced",
    "reproduced": True,
    "plan": {"recipe": {"lr": 0.001, "betas": [0.9, 0.999]}, "workers": 4, "modified": False},
    "data": {"val": {"files": 360}},
    "environment": {"torch": "2.6.0", "finished": "2026-01-01T00:00:00+00:00"},
    "sha256": {"model.safetensors": "aa", "log.jsonl": "cc"},
}


def test_a_receipt_is_the_same_as_itself() -> None:
    assert compare(LEFT, json.loads(json.dumps(LEFT))) == []


def test_every_difference_is_told_in_the_order_of_the_groups() -> None:
    right: dict[str, Any] = {
        "verdict": "not reproduced",
        "reproduced": False,
        "plan": {"recipe": {"lr": 0.0005, "betas": [0.9, 0.95]}, "workers": 8, "modified": True},
        "data": {"val": {"files": 359}},
        "environment": {"torch": "2.7.0", "finished": "2026-02-02T00:00:00+00:00"},
        "sha256": {"model.safetensors": "bb", "log.jsonl": "dd"},
    }
    differences = [(one.group, one.field, one.left, one.right) for one in compare(LEFT, right)]
    assert differences == [
        ("result", "verdict", "reproduced", "not reproduced"),
        ("result", "reproduced", True, False),
        ("recipe", "plan.recipe.lr", 0.001, 0.0005),
        ("recipe", "plan.recipe.betas", [0.9, 0.999], [0.9, 0.95]),
        ("recipe", "plan.modified", False, True),
        ("plan and machine", "plan.workers", 4, 8),
        ("data", "data.val.files", 360, 359),
        ("code and environment", "environment.torch", "2.6.0", "2.7.0"),
        ("weights", "sha256.model.safetensors", "aa", "bb"),
        (
            "clock",
            "environment.finished",
            "2026-01-01T00:00:00+00:00",
            "2026-02-02T00:00:00+00:00",
        ),
        ("clock", "sha256.log.jsonl", "cc", "dd"),
    ]


def test_a_field_of_one_side_alone_is_a_difference() -> None:
    assert compare({"run": {"restarts": 1}}, {"teacher": None}) == [
        Difference(group="plan and machine", field="run.restarts", left=1, right=ABSENT),
        Difference(group="weights", field="teacher", left=ABSENT, right=None),
    ]


def test_a_field_that_holds_nothing_is_still_there() -> None:
    (difference,) = compare({"seed": 0, "assumed": {}}, {"seed": 0})
    assert (difference.field, difference.left, difference.right) == ("assumed", {}, ABSENT)


@each_row(
    ("left", "right", "same"),
    [
        (1, 1.0, True),
        (True, 1, False),
        (None, False, False),
        ({}, None, False),
        ({}, {}, True),
        (float("nan"), float("nan"), True),
        ("1", 1, False),
    ],
)
def test_values_are_the_same_as_json_has_them(left: Any, right: Any, same: bool) -> None:
    assert (compare({"seed": left}, {"seed": right}) == []) is same


@each_row(
    ("field", "group"),
    [
        ("model", "result"),
        ("reached.top1", "result"),
        ("published.source", "result"),
        ("band", "result"),
        ("standing.since", "result"),
        ("something.new", "result"),
        ("seed", "recipe"),
        ("assumed.lr", "recipe"),
        ("differs", "recipe"),
        ("plan.recipe_sha256", "recipe"),
        ("plan.recipe.seed", "recipe"),
        ("plan.state_minutes", "plan and machine"),
        ("plan.num_images", "plan and machine"),
        ("run.skipped_steps", "plan and machine"),
        ("data.train.listing_sha256", "data"),
        ("environment.gpu", "code and environment"),
        ("teacher.sha256", "weights"),
        ("run.seconds", "clock"),
        ("run.train_seconds", "clock"),
        ("run.started", "clock"),
    ],
)
def test_every_field_has_a_group(field: str, group: str) -> None:
    assert group_of(field) == group


def test_a_difference_as_plain_data_names_only_the_sides_that_have_it() -> None:
    both = Difference(group="recipe", field="seed", left=None, right=1)
    one = Difference(group="recipe", field="seed", left=ABSENT, right=1)
    assert both.to_dict() == {"field": "seed", "left": None, "right": 1}
    assert one.to_dict() == {"field": "seed", "right": 1}


@each_row(
    ("value", "text"),
    [
        (None, "none"),
        (True, "true"),
        (0.1 + 0.2, "0.30000000000000004"),
        ([0.9, None], "0.9, none"),
        ([], "[]"),
        (ABSENT, "absent"),
    ],
)
def test_a_value_is_shown_whole(value: Any, text: str) -> None:
    assert shown(value) == text


def test_two_shipped_receipts_differ_in_what_parts_the_models() -> None:
    student, distilled = (
        json.loads((ASSETS / f"{name}.receipt.json").read_text(encoding="utf-8"))
        for name in ("deit_pico_digits", "deit_pico_distilled_digits")
    )
    differences = {one.field: (one.left, one.right) for one in compare(student, distilled)}
    assert differences["plan.recipe.teacher"] == (None, "convnet_pico_digits")
    assert differences["plan.recipe.distillation"] == ("none", "hard")
    assert "data.train.files" not in differences
