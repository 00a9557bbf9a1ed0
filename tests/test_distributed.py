"""A process alone is a group of one; of many, none outlives the process that started it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys

import pytest
import torch

from deit_zoo.distributed import DistributedContext, how_it_ended, init_distributed
from deit_zoo.errors import DataError, ZooError

# A parent that starts a child which watches it, tells the child's number, and waits.
FAMILY = """
import subprocess, sys, time
child = '''
import os, time
from deit_zoo.distributed import die_with_parent
die_with_parent(os.getppid())
print(os.getpid(), flush=True)
time.sleep(100)
'''
subprocess.Popen([sys.executable, "-c", child])
time.sleep(100)
"""


def test_a_process_alone_is_the_first_and_only_one() -> None:
    group = DistributedContext(device=torch.device("cpu"))
    assert (group.rank, group.size, group.is_main) == (0, 1, True)


def test_others_are_not_the_first() -> None:
    assert not DistributedContext(device=torch.device("cpu"), rank=1, size=2).is_main


def test_alone_a_sum_is_what_it_was() -> None:
    values = torch.tensor([1.0, 2.0])
    assert DistributedContext(device=torch.device("cpu")).all_reduce(values) is values
    assert values.tolist() == [1.0, 2.0]


def test_alone_the_first_acts_itself() -> None:
    assert DistributedContext(device=torch.device("cpu")).run_on_main(lambda: "done") == "done"


def test_alone_an_error_is_raised_as_it_is() -> None:
    def fail() -> None:
        raise DataError("no image")

    with pytest.raises(DataError, match=r"^no image$"):
        DistributedContext(device=torch.device("cpu")).run_on_main(fail)


def test_a_port_that_another_run_has_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("localhost", 0)) as other:
        port = str(other.getsockname()[1])
        world = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": port}
        for name, value in world.items():
            monkeypatch.setenv(name, value)
        sentence = rf"^the 2 processes do not meet \(.*\b{port}\b.*\); set MASTER_ADDR"
        with pytest.raises(ZooError, match=sentence), init_distributed("cpu"):
            pass


@pytest.mark.parametrize("world", [{}, {"RANK": "0", "WORLD_SIZE": "1"}, {"WORLD_SIZE": "8"}])
def test_without_other_processes_no_group_is_formed(
    monkeypatch: pytest.MonkeyPatch, world: dict[str, str]
) -> None:
    # A WORLD_SIZE without a RANK is not torchrun's.
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in world.items():
        monkeypatch.setenv(name, value)
    with init_distributed("cpu") as group:
        assert group == DistributedContext(device=torch.device("cpu"))
        assert not torch.distributed.is_initialized()


def test_a_process_ends_when_the_one_that_started_it_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", FAMILY], stdout=subprocess.PIPE) as parent:
        assert parent.stdout
        child = int(parent.stdout.readline())
        os.kill(child, 0)  # it lives
        parent.send_signal(signal.SIGKILL)
        # The end of the pipe, which both held.
        assert parent.communicate(timeout=30) == (b"", None)


@pytest.mark.parametrize(
    ("code", "told"), [(-9, "was killed by SIGKILL"), (1, "ended with exit code 1")]
)
def test_how_a_process_ended_in_words(code: int, told: str) -> None:
    assert how_it_ended(code) == told
