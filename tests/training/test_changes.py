"""What of a recipe may be changed in the folder of a run, and what is kept of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from deit_zoo.errors import RecipeError
from deit_zoo.files import ASSETS, digest
from deit_zoo.recipes.plan import Plan
from deit_zoo.training.changes import check_changes, with_changes
from deit_zoo.training.job import Change, Job
from deit_zoo.training.launch import make_plan
from deit_zoo.training.rollback import Failure, History, write_history
from deit_zoo.training.state_files import TrainPosition, save_state

DATA, FINGERPRINT = "digits", {"train": {"files": 1437}}


def plan_of(*changes: str) -> Plan:
    return make_plan("deit_pico_digits", gpus=0, changes=changes, workers=0)


def job_of(*changes: str) -> Job:
    return Job(plan=plan_of(*changes), data=DATA, fingerprint=FINGERPRINT)


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """The folder of a run that failed in step 5 of its third epoch, of 20 steps each."""
    job_of().write(tmp_path)
    write_history(tmp_path, History(failure=Failure(step=44, message="the loss is nan")))
    return tmp_path


def state_after(output: Path, epoch: int, step: int) -> None:
    """A file with the name of a state."""
    (output / "state" / f"epoch-{epoch:05d}-step-{step:06d}-0123456789abcdef.safetensors").touch()


@pytest.mark.parametrize(
    "change", ["lr=1e-4", "clip_grad=1", "warmup_lr=1e-7", "min_lr=1e-6", "weight_decay=0.1"]
)
def test_what_moves_weights_may_be_changed_where_a_run_has_failed(
    output: Path, change: str
) -> None:
    state_after(output, 2, 4)
    check_changes(output, plan_of(), plan_of(change).recipe)


@pytest.mark.parametrize(
    "change",
    ["epochs=141", "batch_size=128", "seed=1", "img_size=32", "mixup=0.1", "eps=1e-6"],
)
def test_all_else_may_not(output: Path, change: str) -> None:
    with pytest.raises(RecipeError) as caught:
        check_changes(output, plan_of(), plan_of("lr=1e-4", change).recipe)
    name, _, value = change.partition("=")
    before = getattr(plan_of().recipe, name)
    assert str(caught.value) == (
        f"{output} holds a run of another recipe (deit_pico_digits, whose {name} is {before}, not "
        f"{float(value) if isinstance(before, float) else value}); it may go on with another lr, "
        "clip_grad, warmup_lr, min_lr, weight_decay; give a new --output"
    )


def test_every_field_that_differs_is_named_and_a_finished_run_may_be_trained_further(
    tmp_path: Path,
) -> None:
    (tmp_path / "model.safetensors").touch()
    former, now = plan_of("data=folder"), plan_of("data=folder", "epochs=150", "mixup=0.1")
    with pytest.raises(RecipeError) as caught:
        check_changes(tmp_path, former, now.recipe)
    assert str(caught.value) == (
        f"{tmp_path} holds a run of another recipe (deit_pico_digits, whose epochs is 140, not "
        "150, mixup is 0.2, not 0.1); give a new --output, or train its weights further: deit-zoo "
        f"finetune {tmp_path}"
    )


def test_nothing_may_be_changed_once_a_state_lies_beyond_the_failing_step(output: Path) -> None:
    state_after(output, 2, 5)
    with pytest.raises(RecipeError, match=r"whose lr is 0\.002, not 0\.0001\); give a new"):
        check_changes(output, plan_of(), plan_of("lr=1e-4").recipe)


def test_nothing_may_be_changed_where_nothing_failed(output: Path) -> None:
    write_history(output, History())
    with pytest.raises(RecipeError, match=r"whose lr is 0\.002, not 0\.0001\); give a new"):
        check_changes(output, plan_of(), plan_of("lr=1e-4").recipe)


def test_a_run_that_begins_has_no_changes(tmp_path: Path) -> None:
    job = job_of("lr=1e-4")
    assert with_changes(job, tmp_path) == job


def test_a_change_is_kept_with_both_values_and_the_digest_before(output: Path) -> None:
    changed = with_changes(job_of("lr=1e-4", "clip_grad=1"), output)
    assert changed.changes == (
        Change(
            epoch=0,
            step=0,
            recipe_sha256=plan_of().recipe.digest,
            fields={"lr": [0.002, 1e-4], "clip_grad": [None, 1.0]},
        ),
    )
    assert changed.earlier_recipes == (plan_of().recipe.digest,)
    assert changed.changed_fields == ("lr", "clip_grad")


def test_changes_stay_known_when_the_run_goes_on(output: Path) -> None:
    first = with_changes(job_of("lr=1e-4"), output)
    first.write(output)
    assert with_changes(job_of("lr=1e-4"), output) == first


def test_a_recipe_that_was_changed_back_is_still_modified(output: Path) -> None:
    with_changes(job_of("lr=1e-4"), output).write(output)
    back = with_changes(job_of(), output)
    assert back.plan.modified
    assert [change.fields for change in back.changes] == [
        {"lr": [0.002, 1e-4]},
        {"lr": [1e-4, 0.002]},
    ]


@pytest.mark.parametrize(("field", "key"), [("init_from", "start"), ("teacher", "teacher")])
def test_another_path_to_the_same_weights_is_no_change(
    tmp_path: Path, field: str, key: str
) -> None:
    shipped = ASSETS / "deit_pico_digits.safetensors"
    copy, other = tmp_path / "copy.safetensors", ASSETS / "convnet_pico_digits.safetensors"
    copy.write_bytes(shipped.read_bytes())
    given = ["distillation=hard", "alpha=0.5", "teacher=convnet_pico_digits"]
    former, again, wrong = (job_of(*given, f"{field}={file}") for file in (shipped, copy, other))
    former.write(tmp_path)
    position = TrainPosition(epoch=1, facts={key: {"sha256": digest(shipped)}})
    save_state(tmp_path, position, {"x": torch.ones(1)}, former.plan.recipe.digest)
    check_changes(tmp_path, former.plan, again.plan.recipe)
    job = with_changes(again, tmp_path)
    assert job.earlier_recipes == (former.plan.recipe.digest,)
    assert (job.changed_fields, job.changes_in_words()) == ((), "")
    with pytest.raises(RecipeError, match=rf"whose {field} is {shipped}, not {other}\)"):
        check_changes(tmp_path, former.plan, wrong.plan.recipe)
