"""A process that is stopped is known by its silence; any other is left alone."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from deit_zoo.distributed import DistributedContext
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
@pytest.mark.parametrize("lookers", [1, 2])  # a launcher; or processes that look at each other
def test_a_process_that_is_stopped_is_told_once_and_killed(
    lookers: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "beats"
    folder.mkdir()
    with ExitStack() as stack:
        for _ in range(lookers):
            stack.enter_context(heartbeat.watch(folder))
        command = [sys.executable, "-c", BEATING, str(folder)]
        process = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        assert process.stdout is not None
        assert process.stdout.readline() == "beating\n"
        process.send_signal(signal.SIGSTOP)
        assert process.wait(60) == -signal.SIGKILL
    silence = "process 3 gives no sign of life for 0.5 seconds; it is killed\n"
    assert capsys.readouterr().err == silence
    assert not folder.exists()


@pytest.mark.usefixtures("impatient")
def test_a_process_that_has_the_number_of_one_that_is_gone_is_left_alone(tmp_path: Path) -> None:
    with heartbeat.watch(tmp_path / "beats") as folder:
        folder.mkdir()
        file = folder / f"0-{os.getpid()}"
        file.touch()
        deadline = time.monotonic() + 60
        while file.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not file.exists()


def test_processes_of_two_machines_do_not_look_at_each_others_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As where the folder of temporary files is on a disk that nodes share.
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    group = SimpleNamespace(rank=0, run_on_main=lambda function: "deit_zoo_1")
    folders = []
    for host in ("one", "two"):
        monkeypatch.setattr(socket, "gethostname", lambda host=host: host)
        with heartbeat.watch_each_other(cast(DistributedContext, group)):
            folders += [path.name for path in tmp_path.iterdir()]
    assert len(set(folders)) == 2


def test_a_process_without_room_for_its_file_is_not_watched(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    heartbeat.beat(tmp_path / "file", "0")


def test_a_process_that_still_loads_its_libraries_is_not_watched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["-c", str(tmp_path), str(os.getppid()), str(tmp_path)])
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setitem(sys.modules, "deit_zoo.training.trainer", None)
    with pytest.raises(ImportError):
        elastic.main()
    assert not list(tmp_path.iterdir())
