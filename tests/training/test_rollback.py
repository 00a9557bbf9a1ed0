"""Which state a run goes back to, which steps it leaves out, and what is kept of it."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from deit_zoo.errors import DataError
from deit_zoo.training.rollback import (
    Failure,
    History,
    Rollback,
    read_history,
    span,
    step_in_words,
    to_receipt,
    write_history,
)

STEPS = 100  # of an epoch


def returned(
    history: History, states: list[int], failed: int, num_failed: int = 3, steps: int = 1000
) -> History:
    """The history after one more return."""
    rollback = history.next(
        states,
        steps=steps,
        why="the loss is nan",
        failed=failed,
        num_failed=num_failed,
        loss=math.nan,
        grad_norm=1.0,
    )
    return replace(history, rollbacks=(*history.rollbacks, rollback))


def facts(history: History) -> list[tuple[int, int, int]]:
    """Of each return: where to, and the first and the last step that is left out."""
    return [(each.back_to, each.first, each.failed) for each in history.rollbacks]


def test_a_first_failure_leaves_out_the_failing_steps_and_the_one_before() -> None:
    # Steps 247 to 249 moved nothing; 246 is the last that did.
    history = returned(History(), [100, 200], 249)
    assert facts(history) == [(200, 246, 249)]


def test_weights_that_one_step_spoiled_leave_out_that_and_the_one_before() -> None:
    history = returned(History(), [100, 200], 249, num_failed=1)
    assert facts(history) == [(200, 248, 249)]


def test_each_further_failure_goes_back_further_and_leaves_out_ten_times_as_much() -> None:
    history = returned(History(), [100, 200], 249)
    history = returned(history, [100, 200], 249)
    history = returned(history, [100], 249)
    assert facts(history) == [(200, 246, 249), (100, 237, 249), (100, 147, 249)]


def test_a_fourth_failure_leaves_out_no_more_than_the_third() -> None:
    history = History()
    for _ in range(4):
        history = returned(history, [0], 249)
    assert facts(history)[3] == facts(history)[2]


def test_in_a_short_run_no_more_than_a_quarter_of_an_epoch_is_left_out_before_the_failing() -> None:
    history = History()
    for _ in range(3):
        history = returned(history, [0], 249, steps=20)
    assert [first for _, first, _ in facts(history)] == [246, 242, 242]


@pytest.mark.parametrize("states", [[200, 247], [200, 248, 249], [150, 200]])
def test_what_is_left_out_does_not_depend_on_when_states_were_written(states: list[int]) -> None:
    # 246 is the suspect: a state that holds it is none to go back to.
    assert facts(returned(History(), states, 249))[0][1:] == (246, 249)
    assert facts(returned(History(), states, 249))[0][0] == 200


@pytest.mark.parametrize(("failed", "steps"), [(349, 50), (999, 1000)])
def test_a_failure_soon_after_or_in_the_same_epoch_is_one_at_the_same_place(
    failed: int, steps: int
) -> None:
    history = returned(History(), [100, 200], 249, steps=steps)
    assert returned(history, [100, 200], failed, steps=steps).rollbacks[1].attempt == 1


@pytest.mark.parametrize(("failed", "steps"), [(350, 50), (1000, 1000)])
def test_a_failure_well_beyond_is_a_first_one(failed: int, steps: int) -> None:
    history = returned(History(), [100, 200], 249, steps=steps)
    history = returned(history, [200, 340], failed, steps=steps)
    assert facts(history)[1] == (340, failed - 3, failed)


def test_a_second_failure_goes_back_behind_a_state_that_may_be_spoiled() -> None:
    # 300 is well before the second failure, but was trained from the state that failed first.
    history = returned(History(), [100, 200], 249)
    history = returned(history, [100, 200, 300], 330)
    assert facts(history)[1] == (100, 318, 330)


def test_no_step_is_left_out_that_the_state_has_taken() -> None:
    assert facts(returned(History(), [200], 201, num_failed=2)) == [(200, 200, 201)]


def test_the_steps_of_an_epoch_are_those_of_all_returns() -> None:
    history = returned(returned(History(), [100], 201), [100], 205)
    assert facts(history) == [(100, 198, 201), (100, 193, 205)]
    assert history.left_out(1, STEPS) == set(range(93, 100))
    assert history.left_out(2, STEPS) == set(range(6))
    assert history.left_out(0, STEPS) == set()


@pytest.mark.parametrize(
    ("position", "rollbacks", "current"),
    [(150, 0, True), (151, 0, False), (150, 1, True), (151, 1, False), (240, 2, True)],
)
def test_a_state_is_current_unless_a_later_return_went_back_over_it(
    position: int, rollbacks: int, current: bool
) -> None:
    history = returned(returned(History(), [150, 200], 249), [150, 200], 249)
    assert [each.back_to for each in history.rollbacks] == [200, 150]
    assert history.is_current(position, rollbacks) is current


def test_a_history_is_read_as_it_was_written(tmp_path: Path) -> None:
    history = replace(returned(History(), [3], 9), failure=Failure(step=9, message="the loss"))
    write_history(tmp_path, history)
    assert read_history(tmp_path) == history


def test_a_history_on_disk_is_json_without_nan(tmp_path: Path) -> None:
    write_history(tmp_path, returned(History(), [3], 9))
    text = (tmp_path / "state" / "rollbacks.json").read_text(encoding="utf-8")
    assert json.loads(text, parse_constant=pytest.fail)["rollbacks"][0]["loss"] is None


def test_a_run_without_trouble_has_an_empty_history(tmp_path: Path) -> None:
    assert read_history(tmp_path) == History()


@pytest.mark.parametrize(
    "content",
    [
        *("", "[]", "{}", '{"rollbacks": [{}], "failure": null}'),
        '{"rollbacks": [], "failure": {"step": "x", "message": "y"}}',
    ],
)
def test_a_history_that_is_none_is_refused(tmp_path: Path, content: str) -> None:
    write_history(tmp_path, History())
    file = tmp_path / "state" / "rollbacks.json"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(DataError) as caught:
        read_history(tmp_path)
    assert str(caught.value) == (
        f"{file} is not what a run wrote; put it back as it was, or remove it to continue without "
        "its rollbacks"
    )


@pytest.mark.parametrize(
    ("first", "last", "words"),
    [
        (5, 5, "epoch 1, step 6"),
        (105, 110, "steps 6 to 11 of epoch 2"),
        (95, 101, "epoch 1, step 96 to epoch 2, step 2"),
    ],
)
def test_steps_are_said_as_people_count(first: int, last: int, words: str) -> None:
    assert span(first, last, STEPS) == words


def test_a_place_is_said_as_people_count() -> None:
    assert step_in_words(249, STEPS) == "epoch 3, step 50"


def test_a_receipt_counts_as_the_log_does() -> None:
    rollback = Rollback(
        why="the gradient norm is inf",
        failed=201,
        first=198,
        back_to=100,
        attempt=0,
        loss=2.5,
        grad_norm=None,
    )
    assert to_receipt(History(rollbacks=(rollback,)), STEPS) == [
        {
            "why": "the gradient norm is inf",
            "loss": 2.5,
            "grad_norm": None,
            "at": {"epoch": 2, "step": 1},
            "back_to": {"epoch": 1, "step": 0},
            "left_out": [{"epoch": 1, "step": 98}, {"epoch": 2, "step": 1}],
        }
    ]
