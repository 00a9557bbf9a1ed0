"""Lines of steps.jsonl: when one is due, and what it says of the steps that it covers."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from deit_zoo.recipes.digits import DEIT_PICO
from deit_zoo.recipes.plan import Plan
from deit_zoo.runs.json_lines import append_line
from deit_zoo.training.step_meter import StepMeter
from deit_zoo.training.steps import EpochStats, StepResult

NAN, INF = math.nan, math.inf


def meter_of(log_steps: int, stats: EpochStats | None = None, epoch: int = 0) -> StepMeter:
    """A meter of epochs of 20 steps of 64 images."""
    plan = Plan(
        recipe=DEIT_PICO,
        modified=False,
        device="cpu",
        processes=1,
        workers=0,
        num_images=1437,
        log_steps=log_steps,
    )
    meter = StepMeter(plan)
    meter.begin(epoch, stats or EpochStats())
    return meter


def result(number: int, loss: float = 2.0, grad_norm: float = 1.0) -> StepResult:
    finite = math.isfinite(loss) and math.isfinite(grad_norm)
    return StepResult(number=number, loss=loss, grad_norm=grad_norm, lr=1e-3, finite=finite)


def lines(meter: StepMeter, *steps: StepResult) -> list[dict[str, Any]]:
    """What is logged of steps that take 2 s each, half a second of it for data."""
    records = []
    for step in steps:
        meter.stats.step = step.number + 1
        meter.stats.seconds += 2.0
        meter.stats.data_seconds += 0.5
        meter.stats.skipped += not step.finite
        if record := meter.add(step):
            records.append(record)
    return records


def covered(records: list[dict[str, Any]]) -> list[tuple[int, int]]:
    """The step of each line, and how many it covers."""
    return [(record["step"], record["steps"]) for record in records]


def test_a_line_is_due_every_so_many_steps_and_at_the_end_of_an_epoch() -> None:
    records = lines(meter_of(8), *map(result, range(20)))
    assert covered(records) == [(7, 8), (15, 8), (19, 4)]


def test_of_an_epoch_that_is_shorter_there_is_one_line() -> None:
    assert covered(lines(meter_of(50), *map(result, range(20)))) == [(19, 20)]


def test_a_run_that_continues_has_its_lines_where_it_would_have_had_them() -> None:
    records = lines(meter_of(8, EpochStats(step=13)), *map(result, range(13, 20)))
    assert covered(records) == [(15, 3), (19, 4)]


def test_a_line_has_the_mean_loss_and_the_largest_norm_since_the_line_before() -> None:
    steps = [result(0, 9.0, 99.0), result(1, 1.0, 1.0), result(2, 2.0, 8.0), result(3, 6.0, 3.0)]
    meter = meter_of(2)
    _, line = lines(meter, *steps)
    assert (line["loss"], line["last_loss"]) == (4.0, 6.0)
    assert (line["max_grad_norm"], line["grad_norm"]) == (8.0, 3.0)
    assert line["skipped"] == 0


def test_a_line_has_the_speed_and_the_wait_for_data_since_the_line_before() -> None:
    # The epoch was slow until here; then 2 s a step of 64 images.
    meter = meter_of(2, EpochStats(step=8, seconds=1000.0, data_seconds=900.0))
    (line,) = lines(meter, result(8), result(9))
    assert (line["images_per_second"], line["data_share"]) == (32.0, 0.25)


def test_a_line_says_how_much_memory_the_process_has_had() -> None:
    if not Path("/proc/self/status").is_file():
        pytest.skip("read from /proc here")
    (line,) = lines(meter_of(1), result(0))
    assert 2**20 < line["memory"] < 2**40  # a Python with torch is some hundred MB


def test_a_step_that_was_skipped_is_a_line_at_once() -> None:
    meter = meter_of(8)
    records = lines(meter, result(0, 3.0, 7.0), result(1, NAN, INF), *map(result, range(2, 8)))
    assert covered(records) == [(1, 2), (7, 6)]
    assert [record["skipped"] for record in records] == [1, 0]
    assert (records[0]["loss"], records[0]["max_grad_norm"]) == (3.0, 7.0)


def test_what_is_not_finite_is_null_in_the_file_and_named_beside_it(tmp_path: Path) -> None:
    file = tmp_path / "steps.jsonl"
    for step in (result(0, 2.5, INF), result(1, NAN, NAN), result(2, -INF, NAN)):
        (record,) = lines(meter_of(1), step)
        append_line(file, record)
    text = file.read_text(encoding="utf-8")
    rows = [json.loads(line, parse_constant=pytest.fail) for line in text.splitlines()]
    assert [(row["last_loss"], row["grad_norm"]) for row in rows] == [
        (2.5, None),
        (None, None),
        (None, None),
    ]
    assert [row["not_finite"] for row in rows] == [
        {"grad_norm": "inf"},
        {"last_loss": "nan", "grad_norm": "nan"},
        {"last_loss": "-inf", "grad_norm": "nan"},
    ]
    # No step was taken, so there is no mean.
    assert {(row["loss"], row["max_grad_norm"]) for row in rows} == {(None, None)}
