"""Cold start: whole processes from their start to their first prediction."""

from __future__ import annotations

import sys

import pytest

from harness.cold import cold_starts, first_prediction
from harness.timing import ChildError
from support.command import forked_python


def test_the_first_line_is_the_answer_and_the_last_the_peak() -> None:
    code = 'print(\'{"answer": 3, "load_seconds": 0.5}\'); print(\'{"peak_mb": 7}\')'
    found = first_prediction([sys.executable, "-c", code])
    assert found.pop("seconds") > 0
    assert found == {"answer": 3, "load_seconds": 0.5, "peak_mb": 7}


def test_a_process_without_an_answer_says_why() -> None:
    with pytest.raises(ChildError, match=r"^ZeroDivisionError: "):
        first_prediction([sys.executable, "-c", "1 / 0"])


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes have torch already; how long they take is not what is tested."""
    monkeypatch.setattr(sys, "executable", forked_python("torch"))


@pytest.mark.slow
@pytest.mark.usefixtures("forked")
def test_the_digits_model_starts_alone_where_timm_has_none() -> None:
    found = cold_starts(["deit_pico_digits"], peers=["timm"], rounds=1, threads=1)
    [row] = found["rows"]
    assert (row["model"], row["who"]) == ("deit_pico_digits", "deit_zoo")
    assert 0 < row["load_seconds"] < row["seconds"]
    assert found["ratios"] == {}
    assert found["failed"] == [
        {
            "model": "deit_pico_digits",
            "who": "timm",
            "mode": "",
            "reason": "timm has no deit_pico_digits",
        }
    ]


@pytest.mark.slow
@pytest.mark.usefixtures("forked")
def test_timm_and_ours_predict_the_same() -> None:
    found = cold_starts(["deit_tiny"], peers=["timm", "transformers"], rounds=1, threads=1)
    ours, timm, _ = found["rows"]  # transformers prepares images otherwise
    assert ours["answer"] == timm["answer"]
    assert set(found["ratios"]) == {"deit_tiny, to timm", "deit_tiny, to transformers"}
    assert set(found["ratios"]["deit_tiny, to timm"]) == {"seconds", "load_seconds", "peak_mb"}
