"""Whole runs that meet numbers that are not finite: they go on, go back, or can be continued."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import deit_zoo
from deit_zoo.errors import RecipeError, ZooError
from deit_zoo.runs.receipt import Verdict
from deit_zoo.training.finetune import finetune
from deit_zoo.training.rollback import read_history
from deit_zoo.training.state_files import not_finite, states
from deit_zoo.weights.load import read_tensors
from support.faults import spoil
from support.runs import log_of, receipt_of, sha256_of, strict_json, train, words_of

# Three epochs of eight steps, cut from the recipe of the embedded model.
CHANGES = ("epochs=3", "batch_size=32", "replicas=2", "warmup_epochs=0")
begin, words = partial(train, CHANGES), partial(words_of, CHANGES)
ALWAYS = [(epoch, step) for epoch in (1, 2) for step in range(8)]
# A loss of three steps on end, each time that they are met.
THREE = [(1, 3), (1, 4), (1, 5)]
FAULT = f"from support.faults import spoil; spoil('gradient', {THREE})\n"


@pytest.fixture(scope="module", autouse=True)
def manifest(manifest_of: Callable[[float | None], Path]) -> Iterator[None]:
    """One without a figure to compare with."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEIT_ZOO_MANIFEST", str(manifest_of(None)))
        yield


@pytest.fixture
def spoiled(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Spoil numbers of runs in this process."""
    return lambda *faults, **options: spoil(*faults, **options, replace=monkeypatch.setattr)


def skipped(output: Path) -> list[int]:
    return [row["skipped_steps"] for row in log_of(output)]


def assert_finite(output: Path) -> None:
    """Neither the weights nor any state hold a number that is not finite."""
    for file in (*states(output), output / "model.safetensors"):
        if file.exists():
            assert not_finite(read_tensors(file)) is None


def test_one_gradient_that_is_no_number_in_the_last_step_of_an_epoch_is_skipped(
    tmp_path: Path, digits_folder: Path, spoiled: Callable[..., None]
) -> None:
    spoiled("gradient", [(1, 7)], once=True)
    begin(tmp_path, digits_folder)
    assert skipped(tmp_path) == [0, 1, 0]
    assert receipt_of(tmp_path)["run"]["rewinds"] == 0
    assert_finite(tmp_path)


def test_steps_that_fail_each_time_they_are_met_are_left_out(
    tmp_path: Path,
    digits_folder: Path,
    spoiled: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    spoiled("gradient", THREE)
    begin(tmp_path, digits_folder)
    why = "the gradient norm is nan"
    told = (
        f"{why} at epoch 2, step 6; going back to epoch 2, step 1 (1 of 3 times) and leaving out "
        "steps 3 to 6 of epoch 2"
    )
    assert [line for line in capsys.readouterr().err.splitlines() if "going back" in line] == [told]
    assert skipped(tmp_path) == [0, 4, 0]
    run = receipt_of(tmp_path)["run"]
    (rollback,) = run["rollbacks"]
    assert (run["skipped_steps"], run["rewinds"], rollback["why"]) == (4, 1, why)
    assert rollback["at"] == {"epoch": 1, "step": 5}
    assert rollback["back_to"] == {"epoch": 1, "step": 0}
    assert rollback["left_out"] == [{"epoch": 1, "step": 2}, {"epoch": 1, "step": 5}]
    assert rollback["loss"] is not None
    assert_finite(tmp_path)
    went_over = (tmp_path / "steps.rolled_back.jsonl").read_text(encoding="utf-8").splitlines()
    assert ["not_finite" in strict_json(line) for line in went_over] == [True] * 3


# Where one process after another is killed, each from where the one before it has come to; the last
# state and the number of returns that it leaves.
KILLS = {
    "among the steps that fail": (
        'at_call(run.MetricLogger, "step", 12)',
        ("epoch-00001-step-000003", 0),
    ),
    "before the return is kept": (
        'at_call(checkpoint, "write_history", 0)',
        ("epoch-00001-step-000003", 0),
    ),
    "after the return is kept": (
        'at_call(checkpoint, "remove_beyond", 0)',
        ("epoch-00001-step-000003", 1),
    ),
    "in the first step after those left out": (
        'at_call(run.MetricLogger, "step", 0)',
        ("epoch-00001-step-000002", 1),
    ),
    "in the next epoch": ('at_call(run.MetricLogger, "step", 3)', ("epoch-00002-step-000001", 1)),
}


@pytest.mark.slow
def test_a_run_that_leaves_steps_out_and_is_killed_ends_in_the_same_bits(
    tmp_path: Path, digits_folder: Path, command: Any
) -> None:
    undisturbed, output = tmp_path / "undisturbed", tmp_path / "run"
    done = command(*words(undisturbed, digits_folder), before=FAULT)
    assert done.status == 0, done.err
    for moment, (kill, left) in KILLS.items():
        dead = command(
            *words(output, digits_folder, "state_minutes=0"),
            before=f"{FAULT}wait_for_states()\n{kill}",
        )
        assert dead.status == -9, f"{moment}: {dead.err}"
        last = states(output)[-1].name.rpartition("-")[0]
        assert (last, len(read_history(output).rollbacks)) == left, moment
    again = command(*words(output, digits_folder), before=FAULT)
    assert again.status == 0, again.err
    assert sha256_of(output) == sha256_of(undisturbed)
    assert skipped(output) == skipped(undisturbed) == [0, 4, 0]
    assert receipt_of(output)["run"]["rewinds"] == 1


def test_a_weight_that_the_last_step_of_an_epoch_spoils_is_neither_measured_nor_kept(
    tmp_path: Path,
    digits_folder: Path,
    spoiled: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    spoiled("weight", [(1, 7)])
    begin(tmp_path, digits_folder)
    assert (
        "a weight is not finite at epoch 2, step 8; going back to epoch 2, step 1 (1 of 3 times) "
        "and leaving out steps 7 to 8 of epoch 2"
    ) in capsys.readouterr().err.splitlines()
    assert skipped(tmp_path) == [0, 2, 0]
    assert_finite(tmp_path)
    # Each epoch has its last line, also where its last steps are left out.
    lines = [strict_json(row) for row in (tmp_path / "steps.jsonl").read_text().splitlines()]
    covered = [[row[key] for key in ("epoch", "step", "steps", "skipped")] for row in lines]
    assert covered == [[0, 7, 8, 0], [1, 5, 6, 2], [2, 7, 8, 0]]


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory, digits_folder: Path) -> Path:
    """The folder of a run that failed in its second epoch and always would; no test changes it."""
    output = tmp_path_factory.mktemp("failed") / "run"
    with pytest.MonkeyPatch.context() as patch:
        spoil("loss", ALWAYS, replace=patch.setattr)
        with pytest.raises(ZooError) as caught:
            begin(output, digits_folder)
    assert re.fullmatch(
        r"the loss is nan at epoch \d, step \d, after going back 3 times; the same command "
        r"continues from the last good state, also with a lower rate \(--set lr=0\.001\) or "
        r"bounded gradients \(--set clip_grad=1\)",
        str(caught.value),
    )
    return output


@pytest.fixture
def failed(tmp_path: Path, left: Path) -> Path:
    """A copy of that folder, to be continued."""
    return Path(shutil.copytree(left, tmp_path / "run"))


def test_a_run_that_always_fails_leaves_states_that_are_finite(left: Path) -> None:
    assert len(read_history(left).rollbacks) == 3
    assert states(left)
    assert_finite(left)


def test_the_same_command_continues_a_run_that_failed(failed: Path, digits_folder: Path) -> None:
    begin(failed, digits_folder)
    assert [row["epoch"] for row in log_of(failed)] == [0, 1, 2]
    run = receipt_of(failed)["run"]
    assert (run["rewinds"], run["changes"]) == (3, [])
    assert_finite(failed)


def test_another_rate_continues_a_run_that_failed_as_modified(
    failed: Path, digits_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    verdict = begin(failed, digits_folder, "lr=0.001", "clip_grad=1")
    receipt, plan = receipt_of(failed), strict_json((failed / "plan.json").read_text())
    (change,) = receipt["run"]["changes"]
    assert change["fields"] == {"lr": [0.002, 0.001], "clip_grad": [None, 1.0]}
    assert capsys.readouterr().err.splitlines()[0] == (
        f"continuing after epoch {change['epoch']}, step {change['step']}; changed on the way: "
        "lr, clip_grad"
    )
    assert plan["changes"] == [change]
    assert (plan["recipe"]["lr"], plan["modified"], receipt["modified"]) == (0.001, True, True)
    assert {"lr", "clip_grad"} < set(verdict.modified)
    assert log_of(failed)[-1]["lr"] < 0.001
    # The command that began it is now another's, and what continues it is said.
    with pytest.raises(
        RecipeError, match=r"\(deit_pico_digits, whose lr is 0\.001, not 0\.002, clip"
    ):
        begin(failed, digits_folder)


@pytest.mark.parametrize("change", ["epochs=4", "seed=1", "drop_path_rate=0.1", "optimizer=sgd"])
def test_what_shapes_a_run_is_not_changed_where_it_failed(
    left: Path, digits_folder: Path, change: str
) -> None:
    before = (left / "plan.json").read_bytes()
    with pytest.raises(RecipeError) as caught:
        begin(left, digits_folder, "lr=0.001", change)
    name, _, value = change.partition("=")
    assert f"whose {name} is " in str(caught.value)
    assert f", not {value}); it may go on with another lr, clip_grad, warmup_lr, " in str(
        caught.value
    )
    assert (left / "plan.json").read_bytes() == before


def test_a_run_that_has_not_failed_keeps_its_rate(
    failed: Path, tmp_path: Path, digits_folder: Path
) -> None:
    begin(failed, digits_folder)  # beyond the failing step: it has failed no longer
    with pytest.raises(RecipeError) as caught:
        begin(failed, digits_folder, "lr=0.001")
    assert str(caught.value) == (
        f"{failed} holds a run of another recipe (deit_pico_digits, whose lr is 0.002, not 0.001); "
        "give a new --output"
    )


def test_a_rate_that_is_far_too_high_ends_the_run_in_one_sentence(
    tmp_path: Path, digits_folder: Path
) -> None:
    expected = (
        r"the loss is (nan|inf) at epoch \d, step \d, after going back 3 times; the same command "
        r"continues from the last good state, also with a lower rate \(--set lr=5e\+29\) or "
        r"bounded gradients \(--set clip_grad=1\)"
    )
    with pytest.raises(ZooError) as caught:
        begin(tmp_path, digits_folder, "lr=1e30")
    assert re.fullmatch(expected, str(caught.value))


@pytest.mark.slow
def test_the_log_is_cut_where_a_run_goes_back_over_the_end_of_an_epoch(
    tmp_path: Path, digits_folder: Path, spoiled: Callable[..., None]
) -> None:
    # Three steps of epoch 3 fail, and those after them: the second time it goes back to epoch 2.
    spoiled("loss", [(2, step) for step in range(1, 8)])
    begin(tmp_path, digits_folder)
    back = [each["back_to"]["epoch"] for each in receipt_of(tmp_path)["run"]["rollbacks"]]
    assert back[:2] == [2, 1]
    assert [row["epoch"] for row in log_of(tmp_path)] == [0, 1, 2]


@pytest.mark.slow
def test_a_fine_tuning_that_failed_continues_at_another_rate(
    tmp_path: Path, digits_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DEIT_ZOO_MANIFEST")  # it begins from the embedded weights
    data, output = tmp_path / "data", tmp_path / "run"
    names = {"0": "round", "1": "straight"}
    for split in ("train", "val"):
        for digit, name in names.items():
            shutil.copytree(digits_folder / split / digit, data / split / name)

    def tune(*changes: str) -> Verdict:
        changes = ("epochs=3", *changes)
        return finetune("deit_pico_digits", data=data, output=output, changes=changes, workers=0)

    with pytest.MonkeyPatch.context() as patch:
        spoil("loss", ALWAYS, replace=patch.setattr)
        with pytest.raises(ZooError, match=r", after going back 3 times; the same command "):
            tune()
    with pytest.raises(RecipeError, match=r"whose epochs is 3, not 4, .+\); it may go on with "):
        tune("epochs=4", "lr=1e-5")
    tune("lr=1e-5")
    (change,) = receipt_of(output)["run"]["changes"]
    assert change["fields"]["lr"][1] == 1e-5
    assert deit_zoo.create("deit_pico_digits", checkpoint=output).num_classes == 2
