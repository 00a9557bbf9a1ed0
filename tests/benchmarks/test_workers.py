"""Processes that get ready together and answer one at a time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.timing import ChildError
from harness.workers import Worker, in_order_of_readiness, settle, still

MODULE = """
import time

def side(task):
    time.sleep(task.get("seconds", 0))
    if "wrong" in task:
        raise ValueError(task["wrong"])
    print("not an answer")
    return {"ready": task["name"]}, lambda number: 1 / number

def clock(task):
    def tick():
        while True:
            with open(task["file"], "a") as stream:
                print(time.monotonic(), file=stream)
            time.sleep(0.02)
    tick()
"""


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where workers find what they build."""
    (tmp_path / "sides.py").write_text(MODULE, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


@pytest.fixture
def workers() -> Iterator[list[Worker]]:
    """All that a test starts; none outlives it."""
    started: list[Worker] = []
    yield started
    for worker in started:
        worker.close()


def settled(*workers: Worker) -> None:
    while not all(worker.is_settled for worker in workers):
        settle(workers, 30.0)


def test_a_worker_says_what_it_built_and_answers(workers: list[Worker]) -> None:
    workers.append(Worker("sides:side", {"name": "a"}))
    settled(*workers)
    assert workers[0].ready == {"ready": "a"}
    assert workers[0].ask(4) == 0.25


def test_a_worker_that_could_not_answer_once_answers_again(workers: list[Worker]) -> None:
    workers.append(Worker("sides:side", {"name": "a"}))
    settled(*workers)
    with pytest.raises(ChildError, match=r"^ZeroDivisionError: division by zero$"):
        workers[0].ask(0)
    assert workers[0].ask(2) == 0.5


def test_a_worker_that_builds_nothing_says_why(workers: list[Worker]) -> None:
    workers.append(Worker("sides:side", {"wrong": "it is 1"}))
    settled(*workers)
    assert (workers[0].ready, workers[0].error) == (None, "ValueError: it is 1")


def test_a_worker_that_died_is_an_error_at_the_next_question(workers: list[Worker]) -> None:
    workers.append(Worker("sides:side", {"name": "a"}))
    settled(*workers)
    workers[0].process.kill()
    with pytest.raises(ChildError, match=r"^it ended"):
        workers[0].ask(1)


def test_who_is_ready_comes_first(workers: list[Worker]) -> None:
    slow, quick = (
        Worker("sides:side", {"name": "slow", "seconds": 2}),
        Worker("sides:side", {"name": "quick"}),
    )
    workers += [slow, quick]
    order = list(in_order_of_readiness([slow, quick], lambda worker: [worker]))
    assert order == [quick, slow]


def test_within_a_stillness_a_worker_does_nothing(workers: list[Worker], tmp_path: Path) -> None:
    file = tmp_path / "ticks"
    workers.append(Worker("sides:clock", {"file": str(file)}))
    while not file.exists():
        time.sleep(0.01)
    with still(workers):
        time.sleep(0.1)
        before = file.read_text(encoding="utf-8")
        time.sleep(0.5)
        assert file.read_text(encoding="utf-8") == before
    time.sleep(0.5)
    assert file.read_text(encoding="utf-8") != before
