"""Runs beside each other: what each reached, and what of their recipes is not the same in all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from deit_zoo.recipes.recipe import REMARKS, Recipe, shown
from deit_zoo.runs.log import Run


def rows_of(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """A row for each run, by the top-1 of its last epoch, the best first; None is last."""
    names = _differing([run.recipe for run in runs if run.recipe is not None])
    rows = [_row(run, names) for run in runs]
    return sorted(rows, key=lambda row: -1.0 if row["top1"] is None else row["top1"], reverse=True)


def _row(run: Run, names: Sequence[str]) -> dict[str, Any]:
    last = run.log[-1]
    figures = [row["val_top1"] for row in run.log if row["val_top1"] is not None]
    return {
        "run": run.label,
        "recipe": run.recipe.name if run.recipe else None,
        "top1": last["val_top1"],
        "best_top1": max(figures, default=None),
        "val_loss": last.get("val_loss"),
        "epochs": last["epoch"] + 1,
        "seconds": sum(row.get("seconds") or 0.0 for row in run.log),
        "changed": {name: shown(getattr(run.recipe, name)) for name in names if run.recipe},
    }


def _differing(recipes: Sequence[Recipe]) -> list[str]:
    """The fields that have several values among the recipes."""
    return [
        field.name
        for field in fields(Recipe)
        if field.name not in (*REMARKS, "model")
        and len({shown(getattr(recipe, field.name)) for recipe in recipes}) > 1
    ]
