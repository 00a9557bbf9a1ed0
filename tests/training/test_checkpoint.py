"""States in time, wishes to stop, bad images, a full disk, and losses that are not finite."""

from __future__ import annotations

import errno
import threading
import time
from dataclasses import replace
from pathlib import Path
from signal import SIGTERM, SIGUSR1
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler

import deit_zoo
from deit_zoo.distributed import DistributedContext
from deit_zoo.errors import DataError, RecipeError, ZooError
from deit_zoo.recipes.digits import DEIT_PICO
from deit_zoo.recipes.plan import Plan
from deit_zoo.recipes.recipe import Recipe
from deit_zoo.training import checkpoint as checkpoint_module
from deit_zoo.training.checkpoint import CheckpointManager
from deit_zoo.training.loop import TrainState
from deit_zoo.training.losses import supervised
from deit_zoo.training.optim import Ema, optimizer_for
from deit_zoo.training.rollback import Failure, read_history
from deit_zoo.training.signals import GracefulStop, Interrupted
from deit_zoo.training.state_files import states
from deit_zoo.training.steps import EpochStats, StepResult

RECIPE = replace(DEIT_PICO, batch_size=256, replicas=2, lr=1e-3)
HOUR = 60.0
FULL = GradScaler("cpu", enabled=False)  # of full precision


def parts_of(recipe: Recipe, seed: int = 0, rank: int = 0, **others: Any) -> TrainState:
    torch.manual_seed(seed)
    model = deit_zoo.create("deit_pico_digits")
    ema = Ema(model, recipe.ema_decay) if recipe.ema_decay is not None else None
    others.setdefault("scaler", GradScaler("cpu", enabled=False))
    return TrainState(
        model=model,
        optimizer=optimizer_for(model, recipe),
        criterion=supervised,
        mix=lambda images, targets: (images, targets),
        replicas=range(recipe.replicas),
        group=DistributedContext(device=torch.device("cpu"), rank=rank),
        network=model,
        ema=ema,
        **others,
    )


def plan_of(recipe: Recipe = RECIPE, *, minutes: float = HOUR, images: int = 2048) -> Plan:
    return Plan(
        recipe=recipe,
        modified=True,
        device="cpu",
        processes=1,
        workers=0,
        num_images=images,
        state_minutes=minutes,
    )


class Run:
    """A manager, and what it told."""

    def __init__(
        self,
        output: Path,
        plan: Plan | None = None,
        origin: dict[str, Any] | None = None,
        **parts: Any,
    ) -> None:
        self.told: list[str] = []
        self.plan = plan or plan_of()
        self.stop = GracefulStop(self.told.append)
        self.parts = parts_of(self.plan.recipe, **parts)
        self.manager = CheckpointManager(
            self.plan,
            output,
            self.parts,
            self.stop,
            self.told.append,
            "image {}".format,
            origin=origin or {},
        )

    def step(self, **facts: Any) -> None:
        """A step of the epoch, as the loop counts it."""
        sums = self.manager.stats
        step = StepResult(number=sums.step, loss=1.0, grad_norm=1.0, lr=1e-3, finite=True, **facts)
        sums.step += 1
        sums.bad_images += len(step.bad)
        requests = self.manager.requests()
        self.manager.after_step(step)
        if requests.save or step.stop:
            self.manager.at_rest()
        self.manager.wait()

    def fail(self, step: StepResult) -> None:
        """Three steps in a row moved nothing, this is the last."""
        self.manager.stats.in_a_row = 3
        self.manager.roll_back(step)

    def finish_epoch(self) -> None:
        """The epoch is done, and its state on disk."""
        self.manager.finish_epoch("{}\n")
        self.manager.wait()

    def save(self) -> None:
        """Write a state."""
        self.manager.save()
        self.manager.wait()

    def weights(self) -> Tensor:
        return torch.cat([value.detach().flatten() for value in self.parts.model.parameters()])


def places(output: Path) -> list[str]:
    """Where the states of a run are."""
    return [path.name[:23] for path in states(output)]


def test_states_say_which_machines_trained_and_a_start_that_takes_no_step_is_none(
    tmp_path: Path,
) -> None:
    def begin(machine: str) -> Run:
        run = Run(tmp_path, origin={"plan": machine, "environment": {"gpu": machine}})
        run.manager.load() or run.save()
        return run

    begin("started, killed")
    first = begin("H100")
    first.step()
    first.manager.finish_epoch('{"seconds": 5.0}\n')
    first.manager.wait()
    idle = begin("A100").manager
    assert idle.record == first.manager.record
    assert (idle.record["plan"], bool(idle.record["finished"])) == ("H100", True)
    begin("H100").step()
    last = begin("V100")
    last.step()
    last.save()
    assert begin("A100").manager.record["environments"] == [
        {"gpu": "H100", "since": {"epoch": 0, "step": 0, "seconds": 0.0}},
        {"gpu": "V100", "since": {"epoch": 1, "step": 0, "seconds": 5.0}},
    ]


def test_a_run_goes_on_with_the_teacher_alone_that_it_began_with(tmp_path: Path) -> None:
    Run(tmp_path, origin={"teacher": {"sha256": "a" * 64}}).save()
    assert Run(tmp_path, origin={"teacher": {"sha256": "a" * 64}}).manager.load()
    with pytest.raises(
        RecipeError, match=r"bbb\.\.\., and the run in .* with that of a{12}\.\.\.; put "
    ):
        Run(tmp_path, origin={"teacher": {"sha256": "b" * 64}}).manager.load()


def test_nothing_is_kept_before_its_time(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.step()
    assert places(tmp_path) == []


def test_a_state_is_kept_after_a_step_when_it_is_time(tmp_path: Path) -> None:
    run = Run(tmp_path, plan_of(minutes=0.0))
    run.step()
    run.step()
    assert places(tmp_path) == ["epoch-00000-step-000001", "epoch-00000-step-000002"]


def test_the_time_to_the_next_state_begins_with_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(checkpoint_module.time, "monotonic", lambda: now)
    run = Run(tmp_path, plan_of(minutes=15.0))
    for now in (899.0, 901.0, 1800.0, 1802.0):  # noqa: B007
        run.step()
    assert places(tmp_path) == ["epoch-00000-step-000002", "epoch-00000-step-000004"]


def test_a_state_is_kept_after_every_epoch(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.step()
    run.finish_epoch()
    assert places(tmp_path) == ["epoch-00001-step-000000"]
    assert (run.manager.epoch, run.manager.stats) == (1, EpochStats())


def test_no_state_is_kept_between_steps_that_were_skipped(tmp_path: Path) -> None:
    # To go back there would be to walk into the same loss.
    run = Run(tmp_path, plan_of(minutes=0.0))
    run.manager.stats.in_a_row = 1
    run.step()
    assert places(tmp_path) == []


def test_skipped_steps_in_a_row_are_counted_into_the_next_epoch(tmp_path: Path) -> None:
    # An epoch may be shorter than the row that ends a run.
    run = Run(tmp_path)
    run.manager.stats.in_a_row = 2
    run.finish_epoch()
    assert run.manager.stats == EpochStats(in_a_row=2)


def test_only_the_first_process_writes(tmp_path: Path) -> None:
    Run(tmp_path, rank=1).save()
    assert places(tmp_path) == []


def test_a_run_without_a_state_begins_at_the_beginning(tmp_path: Path) -> None:
    run = Run(tmp_path)
    assert run.manager.load() is False
    assert (run.manager.epoch, run.manager.stats, run.told) == (0, EpochStats(), [])


def test_a_run_goes_on_where_it_was(tmp_path: Path) -> None:
    recipe = replace(RECIPE, ema_decay=0.9)
    left = Run(tmp_path, plan_of(recipe), scaler=GradScaler("cpu", init_scale=2.0**20))
    left.parts.ema.module.load_state_dict(parts_of(recipe, seed=5).model.state_dict())
    left.manager.epoch = 3
    left.manager.stats = EpochStats(
        step=1, losses=1, loss=2.5, skipped=1, bad_images=4, seconds=9.0
    )
    left.save()
    found = Run(tmp_path, plan_of(recipe), seed=1, scaler=GradScaler("cpu"))
    assert found.manager.load() is True
    assert (found.manager.epoch, found.manager.stats) == (3, left.manager.stats)
    assert torch.equal(found.weights(), left.weights())
    assert found.parts.scaler.state_dict() == left.parts.scaler.state_dict()
    assert found.parts.scaler.state_dict()["scale"] == 2.0**20
    average = found.parts.ema.module.head.weight
    assert torch.equal(average, parts_of(recipe, seed=5).model.head.weight)


@pytest.mark.parametrize(
    ("before", "after"),
    [(FULL, GradScaler("cpu")), (GradScaler("cpu"), FULL)],
    ids=["to half", "from half"],
)
def test_a_run_goes_on_in_another_precision(
    tmp_path: Path, before: GradScaler, after: GradScaler
) -> None:
    left = Run(tmp_path, scaler=before)
    left.save()
    found = Run(tmp_path, seed=1, scaler=after)
    assert found.manager.load() is True
    assert torch.equal(found.weights(), left.weights())


def test_a_run_says_what_it_started_from_whatever_lies_there_when_it_goes_on(
    tmp_path: Path,
) -> None:
    first, later = (Run(tmp_path, origin={"start": {"sha256": name}}) for name in "ab")
    first.finish_epoch()
    assert later.manager.load()
    assert later.manager.record["start"] == {"sha256": "a"}


@pytest.mark.parametrize("number", [SIGTERM, SIGUSR1])
def test_a_wish_to_stop_leaves_a_state_and_the_signal(tmp_path: Path, number: int) -> None:
    run = Run(tmp_path)
    run.step()
    run.stop(number, None)
    with pytest.raises(Interrupted) as caught:
        run.step(stop=True)
    assert caught.value.number == number
    assert places(tmp_path) == ["epoch-00000-step-000002"]


def test_a_wish_of_another_process_stops_this_one_as_sigterm_would(tmp_path: Path) -> None:
    with pytest.raises(Interrupted) as caught:
        Run(tmp_path, rank=1).step(stop=True)
    assert caught.value.number == SIGTERM


def test_a_wish_to_stop_leaves_a_state_also_between_skipped_steps(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.manager.stats.in_a_row = 2
    with pytest.raises(Interrupted):
        run.step(stop=True)
    found = Run(tmp_path)
    found.manager.load()
    assert found.manager.stats.in_a_row == 2


def test_every_bad_image_is_told_by_its_name(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.step(bad=[3, 44])
    assert run.told == [
        "image 3 cannot be read; another image takes its place",
        "image 44 cannot be read; another image takes its place",
    ]


def test_more_than_three_bad_images_of_a_small_set_end_the_run(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.step(bad=[1, 2])
    run.step(bad=[3])  # more than 0.1 % of 2048
    with pytest.raises(DataError) as caught:
        run.step(bad=[4])
    assert str(caught.value) == (
        "4 of 2,048 images of epoch 1 could not be read, and a run can do without 3; `deit-zoo "
        "data check DIR` lists them"
    )


def test_bad_images_are_counted_anew_in_every_epoch(tmp_path: Path) -> None:
    run = Run(tmp_path)
    for number in range(3):
        run.step(bad=[number, number])
        run.finish_epoch()
    assert len(run.told) == 6


def test_a_full_disk_is_told_and_the_states_before_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, first = Run(tmp_path), Run(tmp_path)
    run.finish_epoch()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint_module, "save_state", full)
    with pytest.raises(DataError, match=r"cannot be written \(No space left on device\); give"):
        first.save()  # before a step: nothing would continue the run
    run.step()
    run.save()
    assert run.told == [
        "the state after epoch 1, step 1 could not be written (No space left on device); the run "
        f"goes on and the states before it stay; make room on the disk of {tmp_path}"
    ]
    assert places(tmp_path) == ["epoch-00001-step-000000"]


NAN, INF = float("nan"), float("inf")


def bad_step(number: int, loss: float = NAN, grad_norm: float = NAN) -> StepResult:
    """The last of three steps in a row that moved nothing."""
    return StepResult(number=number, loss=loss, grad_norm=grad_norm, lr=1e-3, finite=False)


def poison(model: torch.nn.Module) -> None:
    """One weight is no number."""
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] = NAN


def test_a_state_is_written_while_the_next_step_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, may_write = Run(tmp_path), threading.Event()
    real = checkpoint_module.save_state

    def when_allowed(*arguments: Any) -> Path:
        assert may_write.wait(60)
        return real(*arguments)

    monkeypatch.setattr(checkpoint_module, "save_state", when_allowed)
    before = run.weights()
    run.manager.save()
    torch.nn.init.zeros_(run.parts.model.head.weight)  # a step, before a byte is written
    assert places(tmp_path) == []
    may_write.set()
    run.manager.wait()
    found = Run(tmp_path, seed=1)
    found.manager.load()
    assert torch.equal(found.weights(), before)


def test_the_next_state_waits_for_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, order = Run(tmp_path), []
    real = checkpoint_module.save_state

    def slowly(output: Path, position: Any, *arguments: Any) -> Path:
        time.sleep(0.05)
        order.append(position.epoch)
        return real(output, position, *arguments)

    monkeypatch.setattr(checkpoint_module, "save_state", slowly)
    for _ in range(3):
        run.manager.finish_epoch("{}\n")
    run.manager.close()
    assert order == [1, 2, 3]
    assert places(tmp_path) == ["epoch-00002-step-000000", "epoch-00003-step-000000"]


def test_a_mistake_of_ours_in_the_writing_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise AssertionError("of ours")

    run = Run(tmp_path)
    monkeypatch.setattr(checkpoint_module, "save_state", broken)
    run.manager.save()
    with pytest.raises(AssertionError, match="of ours"):
        run.manager.close()


def test_a_state_with_a_number_that_is_not_finite_is_not_written(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.finish_epoch()
    poison(run.parts.model)
    run.step()
    run.save()
    assert run.told == [
        "the state after epoch 1, step 1 is not written, for it holds numbers that are not finite "
        "(model.cls_token); the states before it stay"
    ]
    assert places(tmp_path) == ["epoch-00001-step-000000"]


@pytest.mark.parametrize("what", ["model", "average"])
def test_weights_that_are_not_finite_are_seen_and_gone_back_from(tmp_path: Path, what: str) -> None:
    run = Run(tmp_path, plan_of(replace(RECIPE, ema_decay=0.9)))
    run.finish_epoch()
    for _ in range(3):
        run.step()
    assert run.manager.is_finite()
    poison(run.parts.model if what == "model" else run.parts.ema.module)
    assert not run.manager.is_finite()
    run.manager.roll_back()
    assert run.told == [
        "a weight is not finite at epoch 2, step 3; going back to epoch 2, step 1 (1 of 3 times) "
        "and leaving out steps 2 to 3 of epoch 2"
    ]
    assert run.manager.is_finite()


def test_after_bad_losses_a_run_goes_back_to_its_last_state_and_leaves_steps_out(
    tmp_path: Path,
) -> None:
    run = Run(tmp_path)
    run.step()
    run.finish_epoch()
    before = run.weights()
    torch.nn.init.zeros_(run.parts.model.head.weight)
    run.manager.stats.step = 5
    run.fail(bad_step(7))
    assert run.told == [
        "the loss is nan at epoch 2, step 8; going back to epoch 2, step 1 (1 of 3 times) and "
        "leaving out steps 5 to 8 of epoch 2"
    ]
    assert torch.equal(run.weights(), before)
    assert (run.manager.epoch, run.manager.stats.step) == (1, 0)
    assert run.manager.left_out() == {4, 5, 6, 7}


def test_what_was_left_out_is_known_after_the_next_start(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.finish_epoch()
    run.fail(bad_step(7))
    again = Run(tmp_path, seed=1)
    assert again.manager.load()
    assert again.manager.left_out() == {4, 5, 6, 7}
    assert again.manager.history == run.manager.history


def test_the_second_time_a_run_goes_back_to_the_state_before_the_newest(tmp_path: Path) -> None:
    run = Run(tmp_path)
    for _ in range(3):
        run.finish_epoch()
    run.fail(bad_step(7))
    assert (run.manager.epoch, len(states(tmp_path))) == (3, 2)
    run.manager.epoch = 3  # trained again
    run.fail(bad_step(7))
    assert run.told[1] == (
        "the loss is nan at epoch 4, step 8; going back to epoch 3, step 1 (2 of 3 times) and "
        "leaving out steps 4 to 8 of epoch 4"
    )
    assert run.manager.epoch == 2
    # A process that is killed now must not begin where the run has gone back from.
    assert places(tmp_path) == ["epoch-00002-step-000000"]


def test_the_third_time_a_run_leaves_out_more_where_no_state_lies_further_back(
    tmp_path: Path,
) -> None:
    run = Run(tmp_path, plan_of(images=256 * 200))  # 200 steps an epoch
    for _ in range(2):
        run.finish_epoch()
    for _ in range(3):
        run.manager.epoch = 2  # trained again
        run.fail(bad_step(150))
    assert [told.partition("; going back to ")[2] for told in run.told] == [
        "epoch 3, step 1 (1 of 3 times) and leaving out steps 148 to 151 of epoch 3",
        "epoch 2, step 1 (2 of 3 times) and leaving out steps 139 to 151 of epoch 3",
        "epoch 2, step 1 (3 of 3 times) and leaving out steps 99 to 151 of epoch 3",
    ]


def test_states_to_go_back_to_are_kept_until_the_run_is_past_the_place(tmp_path: Path) -> None:
    run = Run(tmp_path, plan_of(minutes=0.0, images=256 * 200))
    for _ in range(2):
        run.finish_epoch()
    run.fail(bad_step(7))
    for _ in range(3):
        run.step()
    before = ["epoch-00001-step-000000", "epoch-00002-step-000000"]
    assert places(tmp_path) == [*before, "epoch-00002-step-000002", "epoch-00002-step-000003"]
    run.finish_epoch()
    assert places(tmp_path)[:2] == before
    run.step()  # in another epoch, and more than a hundred steps beyond the last that failed
    assert places(tmp_path) == ["epoch-00003-step-000000", "epoch-00003-step-000001"]


def test_at_another_place_a_run_goes_back_to_the_newest_again(tmp_path: Path) -> None:
    run = Run(tmp_path, plan_of(images=256 * 200))
    run.finish_epoch()
    run.fail(bad_step(7))
    run.finish_epoch()
    run.finish_epoch()
    run.fail(bad_step(7))
    assert run.told[1] == (
        "the loss is nan at epoch 4, step 8; going back to epoch 4, step 1 (2 of 3 times) and "
        "leaving out steps 5 to 8 of epoch 4"
    )


@pytest.mark.parametrize(
    ("step", "why"),
    [
        (bad_step(7), "the loss is nan"),
        (bad_step(7, INF, 1.0), "the loss is inf"),
        (bad_step(7, 1.0, INF), "the gradient norm is inf"),
        (replace(bad_step(7, 1.0, 1.0), finite=True), "a weight is not finite"),
    ],
)
def test_it_is_told_what_was_not_finite(tmp_path: Path, step: StepResult, why: str) -> None:
    run = Run(tmp_path)
    run.finish_epoch()
    run.fail(step)
    assert run.told[0].startswith(f"{why} at epoch 2, step 8; going back to epoch 2, step 1 ")


def test_the_fourth_time_a_run_ends_and_names_the_step(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.finish_epoch()
    for _ in range(3):
        run.fail(bad_step(7))
    with pytest.raises(ZooError) as caught:
        run.fail(bad_step(7, INF))
    assert str(caught.value) == (
        "the loss is inf at epoch 2, step 8, after going back 3 times; the same command continues "
        "from the last good state, also with a lower rate (--set lr=0.0005) or bounded gradients "
        "(--set clip_grad=1)"
    )
    failure = read_history(tmp_path).failure
    assert failure == Failure(step=15, message=str(caught.value))


def test_a_start_may_go_back_three_times_again(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.finish_epoch()
    for _ in range(3):
        run.fail(bad_step(7))
    again = Run(tmp_path)
    again.manager.load()
    again.manager.roll_back(bad_step(7))
    assert len(again.manager.history.rollbacks) == 4


def test_states_kept_on_the_way_do_not_make_a_run_go_back_for_ever(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.finish_epoch()
    for _ in range(3):
        run.fail(bad_step(7))
        run.finish_epoch()
    with pytest.raises(ZooError, match=r"^the loss is nan at epoch \d, step 8, after going back "):
        run.fail(bad_step(7))


def test_a_state_that_a_run_has_gone_back_from_is_not_used(tmp_path: Path) -> None:
    # The process was killed after it had decided, before the state was removed.
    run = Run(tmp_path)
    run.finish_epoch()
    run.finish_epoch()
    given_up = states(tmp_path)[-1]
    data = given_up.read_bytes()
    for _ in range(2):
        run.fail(bad_step(7))
    given_up.write_bytes(data)
    again = Run(tmp_path)
    assert again.manager.load()
    assert (again.manager.epoch, again.told) == (1, [])
    assert places(tmp_path) == ["epoch-00001-step-000000"]


def test_before_any_state_a_run_ends_at_once(tmp_path: Path) -> None:
    with pytest.raises(ZooError) as caught:
        Run(tmp_path).manager.roll_back(bad_step(2))
    assert str(caught.value) == (
        "the loss is nan at epoch 1, step 3, before any state could be written; the same command "
        "begins again, also with a lower rate (--set lr=0.0005) or bounded gradients (--set "
        "clip_grad=1)"
    )


def test_in_half_precision_the_advice_is_also_to_compute_in_full(tmp_path: Path) -> None:
    with pytest.raises(ZooError, match=r" or in full precision \(--set precision=fp32\)$"):
        Run(tmp_path, dtype=torch.bfloat16).manager.roll_back(bad_step(0))


def test_where_gradients_are_bounded_the_advice_is_a_smaller_bound(tmp_path: Path) -> None:
    with pytest.raises(ZooError, match=r"\(--set clip_grad=0\.25\)$"):
        Run(tmp_path, plan_of(replace(RECIPE, clip_grad=0.5))).manager.roll_back(bad_step(0))
