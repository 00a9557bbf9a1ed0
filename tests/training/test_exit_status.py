"""How a run of many processes ended, from the one that knows to the one that waits."""

from __future__ import annotations

from pathlib import Path

import pytest

from deit_zoo.errors import DataError, ZooError
from deit_zoo.training import exit_status as outcome


def test_where_nothing_was_said_nothing_is_known(tmp_path: Path) -> None:
    assert outcome.left(tmp_path) == {}
    assert outcome.told_error({}) is None


@pytest.mark.parametrize(
    "facts", [{"done": True}, {"signal": 15}, {"error": ["DataError", "no image"]}]
)
def test_what_was_said_is_known(tmp_path: Path, facts: dict[str, object]) -> None:
    outcome.leave(tmp_path, **facts)
    assert outcome.left(tmp_path) == facts


def test_the_last_word_counts(tmp_path: Path) -> None:
    outcome.leave(tmp_path, signal=15)
    outcome.leave(tmp_path, done=True)
    assert outcome.left(tmp_path) == {"done": True}


def test_an_earlier_outcome_is_forgotten(tmp_path: Path) -> None:
    outcome.leave(tmp_path, done=True)
    outcome.clear(tmp_path)
    outcome.clear(tmp_path)  # there is nothing left
    assert list(tmp_path.iterdir()) == []


def test_an_error_is_of_the_kind_that_it_was() -> None:
    told = outcome.told_error({"error": ["DataError", "no image"]})
    assert type(told) is DataError
    assert str(told) == "no image"


def test_an_error_of_a_kind_that_is_not_known_is_told_all_the_same() -> None:
    told = outcome.told_error({"error": ["FutureError", "no image"]})
    assert type(told) is ZooError
    assert str(told) == "no image"
