"""A process that is stopped is known by its silence; any other is left alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deit_zoo.training import elastic, heartbeat

BEATING = """
import sys, time
from pathlib import Path
from deit_zoo.training import heartbeat
heartbeat.BEAT_SECONDS = 0.05
heartbeat.beat(Path(sys.argv[1]), "3")
print("beating", flush=True)
time.sleep(600)
"""


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look often, and wait for half a second."""
    monkeypatch.setattr(heartbeat, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(heartbeat, "SILENT_SECONDS", 0.5)


@pytest.mark.usefixtures("impatient")
def test_a_process_that_is_stopped_is_told_and_killed() -> None:
    told: list[str] = []
    with heartbeat.watch(told.append) as folder:
        command = [sys.executable, "-c", BEATING, str(folder)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "beating\n"
            process.send_signal(signal.SIGSTOP)
            assert process.wait(60) == -signal.SIGKILL
    assert told == ["process 3 gives no sign of life for 0.5 seconds; it is killed"]
    assert not folder.exists()


@pytest.mark.usefixtures("impatient")
def test_a_process_that_has_the_number_of_one_that_is_gone_is_left_alone() -> None:
    with heartbeat.watch(pytest.fail) as folder:
        file = folder / f"0-{os.getpid()}"
        file.touch()
        deadline = time.monotonic() + 60
        while file.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not file.exists()


def test_a_process_without_room_for_its_file_is_not_watched(tmp_path: Path) -> None:
    heartbeat.beat(tmp_path / "gone", "0")


def test_a_process_that_still_loads_its_libraries_is_not_watched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["-c", str(tmp_path), str(os.getppid()), str(tmp_path)])
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setitem(sys.modules, "deit_zoo.training.trainer", None)
    with pytest.raises(ImportError):
        elastic.main()
    assert not list(tmp_path.iterdir())
