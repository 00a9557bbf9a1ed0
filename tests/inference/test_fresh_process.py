"""Memory and cold starts of our models, each in a process of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from deit_zoo.errors import ZooError
from deit_zoo.inference import fresh_process
from deit_zoo.inference.throughput import Case

DIGITS = Case(model="deit_pico_digits", img_size=(16, 16), pretrained=True)


def test_a_fresh_process_says_how_long_it_took_and_how_much_memory() -> None:
    answer = fresh_process.fresh_process(DIGITS, "eager")
    assert answer["seconds"] > answer["load_seconds"] > 0
    if answer["peak_mb"] is not None:
        assert 0 < answer["grown_mb"] < answer["peak_mb"]


def test_a_fresh_process_that_fails_says_why(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 'Traceback\nMemoryError: too much' >&2; exit 1\n")
    python.chmod(0o755)
    monkeypatch.setattr(fresh_process.sys, "executable", str(python))
    with pytest.raises(ZooError) as failed:
        fresh_process.fresh_process(DIGITS, "eager")
    assert str(failed.value) == (
        "deit_pico_digits eager failed in a process of its own (MemoryError: too much)"
    )


def test_a_cold_start_is_the_median_of_processes_after_the_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seconds = iter([9.0, 1.0, 3.0, 2.0])
    files = []

    def answer(case: Case, mode: str, weights: Path) -> dict[str, float | None]:
        assert weights.is_file()
        files.append(weights)
        return {"seconds": next(seconds), "load_seconds": 0.5, "peak_mb": None}

    monkeypatch.setattr(fresh_process, "fresh_process", answer)
    assert fresh_process.cold_start(DIGITS, 3) == {
        "model": "deit_pico_digits",
        "who": "deit_zoo",
        "seconds": 2.0,
        "load_seconds": 0.5,
        "peak_mb": None,
    }
    assert len(files) == 4
