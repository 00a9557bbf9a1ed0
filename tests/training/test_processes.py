"""One training, whatever shares the work: 1, 2 and 4 processes, and any number of workers.

The processes are real, of gloo's group, and train with the parts of a run (see ranks.py).
"""

from __future__ import annotations

import json
import math
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support import ranks
from support.command import PATIENCE, ROOT, Process
from support.processes import free_port
from support.ranks import MIDDLE, NOT_FINITE, SHORT, STEPS
from support.runs import digits_of

SCRIPT = str(Path(ranks.__file__))
AS_PROGRAM = "import runpy, sys; del sys.argv[0]; runpy.run_path(sys.argv[0], run_name='__main__')"
ALL = (
    *("float64", "float32", "continued", "taught", "untaught"),
    *("not finite", "evaluated", "cramped", "answered", "listed", "batches"),
)
JOBS = {
    1: (*ALL, "one worker", "three workers"),
    2: (*ALL, "batches of a worker", "batches of a killed worker"),
    4: ("float64", "float32", "continued", "batches"),
}
SIZES = [2, pytest.param(4, marks=pytest.mark.slow)]


class Results(dict[int, list[dict[str, Any]]]):
    """By the number of processes, what each process left; they train when they are asked for."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        digits_of(folder / "data", "0123456789", 52, 10)

    def __missing__(self, size: int) -> list[dict[str, Any]]:
        env = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(size)}
        folders = (self.folder / "data", self.folder)
        processes = [
            Process(
                ["-c", AS_PROGRAM, SCRIPT, *folders, *JOBS[size]],
                server="training",
                cwd=ROOT,
                env=os.environ | env | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(size)
        ]
        for process in processes:
            _, err = process.communicate(timeout=PATIENCE)
            assert process.returncode == 0, err
        files = [self.folder / f"{size}-{rank}.json" for rank in range(size)]
        self[size] = [json.loads(file.read_text()) for file in files]
        return self[size]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return Results(tmp_path_factory.mktemp("ranks"))


def difference(found: list[float], expected: list[float]) -> float:
    """The largest relative difference."""
    return max(abs(f - e) / abs(e) for f, e in zip(found, expected, strict=True))


@pytest.fixture(scope="module")
def of(results: Results) -> Callable[[int, str], Any]:
    """A job's result in the first process of a group."""
    return lambda size, job: results[size][0][job]


def test_every_step_has_another_loss(of: Callable[[int, str], Any]) -> None:
    assert len(set(of(1, "float64"))) == STEPS


@pytest.mark.parametrize("size", SIZES)
def test_processes_that_share_the_replicas_walk_the_same_losses(
    of: Callable[[int, str], Any], size: int
) -> None:
    assert difference(of(size, "float64"), of(1, "float64")) < 1e-9


@pytest.mark.parametrize("size", SIZES)
def test_in_single_precision_they_differ_by_rounding_alone(
    of: Callable[[int, str], Any], size: int
) -> None:
    assert difference(of(size, "float32"), of(1, "float32")) < 1e-3


@pytest.mark.parametrize("size", SIZES)
def test_every_process_hears_the_loss_of_all(results: Results, size: int) -> None:
    assert all(of_rank["float64"] == results[size][0]["float64"] for of_rank in results[size])


@pytest.mark.parametrize("job", ["one worker", "three workers"])
def test_the_number_of_workers_changes_no_bit(of: Callable[[int, str], Any], job: str) -> None:
    assert of(1, job) == of(1, "float32")


@pytest.mark.parametrize(
    ("size", "job"),
    [
        (2, "batches"),
        (2, "batches of a worker"),
        (2, "batches of a killed worker"),
        pytest.param(4, "batches", marks=pytest.mark.slow),
    ],
)
def test_processes_that_decode_for_each_other_see_what_one_alone_sees(
    results: Results, size: int, job: str
) -> None:
    (alone,) = results[1]
    together = {
        key: seen for of_rank in results[size] for key, seen in of_rank[job]["seen"].items()
    }
    assert len(alone["batches"]["seen"]["0"]) == STEPS
    assert together == alone["batches"]["seen"]


@pytest.mark.parametrize("size", SIZES)
def test_processes_read_an_image_of_a_step_once_for_all(results: Results, size: int) -> None:
    alone = results[1][0]["batches"]["reads"]
    together = [number for of_rank in results[size] for number in of_rank["batches"]["reads"]]
    # Three places of each, but for those that reach from one step into the next.
    assert len(alone) < 0.36 * STEPS * 64
    assert sorted(together) == sorted(alone)


# Only of more than two does the order of a sum matter.
@pytest.mark.parametrize("size", [1, *SIZES])
def test_an_epoch_that_goes_on_from_a_state_goes_on_bit_for_bit(
    of: Callable[[int, str], Any], size: int
) -> None:
    assert of(size, "continued") == of(size, "float32")[MIDDLE:]


def test_a_teacher_teaches_two_processes_what_it_teaches_one(
    of: Callable[[int, str], Any],
) -> None:
    assert len(of(1, "taught")) == SHORT
    assert difference(of(2, "taught"), of(1, "taught")) < 1e-9


def test_a_head_that_nobody_teaches_does_not_hold_up_two_processes(
    of: Callable[[int, str], Any],
) -> None:
    assert len(of(1, "untaught")) == SHORT
    assert difference(of(2, "untaught"), of(1, "untaught")) < 1e-9


def test_a_loss_that_one_process_lacks_is_a_step_that_both_skip(results: Results) -> None:
    for of_rank in results[2]:
        found = of_rank["not finite"]["losses"]
        ill = [number for number, loss in enumerate(found) if math.isnan(loss)]
        # The last of three in a row ends the epoch before it is told.
        assert ill == list(NOT_FINITE[:-1])


def test_both_processes_end_at_the_same_step(results: Results) -> None:
    assert [of_rank["not finite"]["ended"] for of_rank in results[2]] == [NOT_FINITE[-1]] * 2


def test_after_skipped_steps_both_processes_hold_the_same_weights(results: Results) -> None:
    first, second = (of_rank["not finite"]["weights"] for of_rank in results[2])
    assert first == second


def test_the_steps_between_skipped_ones_are_those_of_one_process(
    of: Callable[[int, str], Any],
) -> None:
    two, one = (
        [loss for loss in of(size, "not finite")["losses"] if not math.isnan(loss)]
        for size in (2, 1)
    )
    assert len(two) == NOT_FINITE[-1] + 1 - len(NOT_FINITE)
    assert difference(two, one) < 1e-9


def test_files_are_listed_by_the_first_process_for_all(results: Results) -> None:
    first, second = (of_rank["listed"] for of_rank in results[2])
    assert (len(first.pop("folders")), second.pop("folders")) == (10, [])
    assert len(second["known"]) == 520
    assert first == second


def test_two_processes_open_every_validation_image_once(results: Results) -> None:
    opened = [number for of_rank in results[2] for number in of_rank["evaluated"]["opened"]]
    assert sorted(opened) == list(range(100))


def test_two_processes_measure_what_one_measures(results: Results) -> None:
    alone = results[1][0]["evaluated"]
    for of_rank in results[2]:
        found = of_rank["evaluated"]
        assert (found["top1"], found["num_images"]) == (alone["top1"], 100)
        assert found["loss"] == pytest.approx(alone["loss"], rel=1e-6)


def test_a_batch_too_large_for_the_memory_of_one_is_halved_by_all(results: Results) -> None:
    alone = results[1][0]["evaluated"]
    for size in (1, 2):
        cramped = [of_rank["cramped"] for of_rank in results[size]]
        assert {(found["top1"], found["num_images"]) for found in cramped} == {(alone["top1"], 100)}
        assert all(found["loss"] == pytest.approx(alone["loss"], rel=1e-6) for found in cramped)
    shares = [*range(64, 100)], [*range(32, 64), *range(96, 100)]  # of halves, then of quarters
    assert cramped[1]["opened"] == [*shares[0], *shares[1]]


def test_two_processes_answer_for_a_page_of_results_each_to_its_share(results: Results) -> None:
    folders = [results.folder / f"answered by {size}" for size in (1, 2)]
    first, second = ([*of_rank["answered"]["opened"]] for of_rank in results[2])
    assert 0 < len(second) < len(first)
    # The first draws mistakes beside.
    assert set(second).isdisjoint(range(256))
    assert {*first, *second} == {*range(520)}
    of_one, of_two = ((folder / "results" / "predictions.csv") for folder in folders)
    assert of_one.read_text() == of_two.read_text()


def test_an_image_that_one_process_cannot_read_for_it_is_told_by_both(results: Results) -> None:
    for of_rank in results[2]:
        [sentence] = [said for said in of_rank["answered"]["said"] if "alone" in said]
        assert sentence.startswith("the results are of the validation images alone, for ")
        assert sentence.endswith(" is broken")
    page = results.folder / "answered by 2" / "without" / "results"
    assert len((page / "predictions.csv").read_text().splitlines()) == 1 + 100
