"""Runs beside each other: what each reached, and what of their recipes is not the same in all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from deit_zoo.recipes.recipe import REMARKS, Recipe, shown
from deit_zoo.runs.log import Run


def rows_of(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """A row for each run, by the figure of its last epoch that counts, the best first.

    None is last. The figure is top-1, and where images have several labels mean average precision.
    """
    names = _differing([run.recipe for run in runs if run.recipe is not None])
    rows = [_row(run, names) for run in runs]
    return sorted(rows, key=_worth, reverse=True)


def _worth(row: dict[str, Any]) -> float:
    figure = row["top1"] if row["best_mean_ap"] is None else row["mean_ap"]
    return -1.0 if figure is None else figure


def _figures(run: Run, name: str) -> dict[str, float | None]:
    """A figure of the last epoch, and of the best."""
    values = [row.get(f"val_{name}") for row in run.log]
    best = max((value for value in values if value is not None), default=None)
    return {name: values[-1], f"best_{name}": best}


def _row(run: Run, names: Sequence[str]) -> dict[str, Any]:
    last = run.log[-1]
    return {
        "run": run.label,
        "recipe": run.recipe.name if run.recipe else None,
        **_figures(run, "top1"),
        **_figures(run, "mean_ap"),
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
        if field.name not in (*REMARKS, "name", "model")
        and len({shown(getattr(recipe, field.name)) for recipe in recipes}) > 1
    ]
