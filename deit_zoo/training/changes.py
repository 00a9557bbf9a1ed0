"""A recipe that is changed after its run has failed: what may be, and what is kept of it."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

from deit_zoo.errors import RecipeError, first_of
from deit_zoo.files import MODEL_FILE
from deit_zoo.recipes.plan import Plan
from deit_zoo.recipes.recipe import Recipe, differences, shown
from deit_zoo.training.job import Change, Job
from deit_zoo.training.rollback import read_history
from deit_zoo.training.run_data import former_job

MOST_NAMED = 6  # fields, in a sentence
# What moves weights; all else shapes data, draws, the network or the length of a run.
CHANGEABLE = ("lr", "clip_grad", "warmup_lr", "min_lr", "weight_decay")

WEIGHTS = {"init_from": "start", "teacher": "teacher"}  # fields, and what states say of each


def check_changes(output: Path, former: Plan, recipe: Recipe) -> None:
    """Raises RecipeError where a run would go on by another recipe, unless it may.

    It may where numbers that were not finite ended it, with other values of what moves weights.
    """
    if recipe.digest == former.recipe.digest:
        return
    changes = recipe_changes(output, former.recipe, recipe)
    allowed = CHANGEABLE if may_change(output, former) else ()
    others = [
        f"{name} is {shown(its)}, not {shown(value)}"
        for name, value, its in changes
        if name not in allowed
    ]
    if others:
        named = first_of(others, MOST_NAMED)
        may = f"; it may go on with another {', '.join(allowed)}" if allowed else ""
        advice = ""
        if former.recipe.data == "folder" and (output / MODEL_FILE).is_file():  # it has ended
            further = shlex.join(["deit-zoo", "finetune", str(output)])
            advice = f", or train its weights further: {further}"
        raise RecipeError(
            f"{output} holds a run of another recipe ({former.recipe.name}, whose {named}){may}; "
            f"give a new --output{advice}"
        )


def recipe_changes(output: Path, former: Recipe, recipe: Recipe) -> list[tuple[str, Any, Any]]:
    """The fields in which a recipe is not the former one: name, value, the former's.

    Another path to the weights that the run's states name by their digest is no change.
    """
    changes = differences(recipe, former)
    if not any(name in WEIGHTS for name, _, _ in changes):
        return changes
    from deit_zoo.training.build import first_stage_facts
    from deit_zoo.training.state_files import facts_kept
    from deit_zoo.training.teacher import facts_of

    kept = facts_kept(output)

    def is_same(name: str, value: Any, its: Any) -> bool:
        if name not in WEIGHTS or None in (value, its) or not (before := kept.get(WEIGHTS[name])):
            return False
        now = first_stage_facts(recipe) if name == "init_from" else facts_of(recipe)
        return bool(before["sha256"]) and now is not None and now["sha256"] == before["sha256"]

    return [change for change in changes if not is_same(*change)]


def may_change(output: Path, plan: Plan) -> bool:
    """Whether numbers that were not finite ended a run, and no state lies beyond them yet."""
    from deit_zoo.training.state_files import position_of, states

    failure = read_history(output).failure
    if failure is None:
        return False
    steps = plan.steps_per_epoch
    positions = (position_of(file) for file in states(output))
    return all(epoch * steps + step <= failure.step for epoch, step in positions)


def with_changes(job: Job, output: Path) -> Job:
    """A job that goes on, with what of its recipe was changed on the way, before and now."""
    former = former_job(output)
    if former is None:
        return job
    changes = former.changes
    if job.plan.recipe.digest != former.plan.recipe.digest:
        changes = (*changes, change_of(former.plan, job.plan, output))
    modified = job.plan.modified or any(change.fields for change in changes)
    plan = replace(job.plan, modified=modified, reading=former.plan.reading)
    return replace(job, plan=plan, changes=changes)


def change_of(former: Plan, plan: Plan, output: Path) -> Change:
    """What differs between two plans of a run, from the state on that it continues from."""
    from deit_zoo.training.state_files import position_of, usable_states

    history, steps = read_history(output), former.steps_per_epoch
    # The run itself tells which states cannot be used.
    file = next(usable_states(output, history, steps, lambda sentence: None), None)
    epoch, step = (0, 0) if file is None else position_of(file)
    return Change(
        epoch=epoch,
        step=step,
        recipe_sha256=former.recipe.digest,
        fields={
            name: [before, after]
            for name, after, before in recipe_changes(output, former.recipe, plan.recipe)
        },
    )
