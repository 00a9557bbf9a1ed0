"""Trees of processes for tests: started, found, signalled, and never left behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from support.command import ROOT, forked_python
from support.fork_server import NOTED

PROC = Path("/proc")
# A slow machine is no failure; a process that hangs is.
PATIENCE = 180.0


class Tree:
    """A process with all its descendants, wherever they went: each inherits a mark."""

    def __init__(self, command: Sequence[str], env: dict[str, str], folder: Path) -> None:
        self.mark = f"{NOTED}={uuid4().hex}"
        name, _, value = self.mark.partition("=")
        self.notes = Path(forked_python()).with_name(value)
        self.files = [folder / f"{value}.{stream}" for stream in ("stdout", "stderr")]
        with self.files[0].open("wb") as stdout, self.files[1].open("wb") as stderr:
            self.process = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**os.environ, **env, name: value},
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
            )

    @property
    def stdout(self) -> str:
        return self.files[0].read_text(encoding="utf-8")

    @property
    def stderr(self) -> str:
        return self.files[1].read_text(encoding="utf-8")

    def members(self) -> dict[int, dict[str, str]]:
        """The living processes of the tree and their environments, as they were started with."""
        found = {
            int(note.name): json.loads(note.read_text(encoding="utf-8"))
            for note in self.notes.glob("*[0-9]")
            if _is_alive(int(note.name))
        }
        for folder in PROC.iterdir():
            if not folder.name.isdigit():
                continue
            try:
                text = (folder / "environ").read_bytes().decode(errors="replace")
                command = (folder / "cmdline").read_bytes().decode(errors="replace")
            except OSError:  # it has just ended, or is another user's
                continue
            lines = text.split("\0")
            # A program that stands for a forked process is none of them; the process is.
            stands_for_another = f"{self.notes.parent}/python-" in command
            if self.mark in lines and not stands_for_another and _is_alive(int(folder.name)):
                found[int(folder.name)] = dict(line.split("=", 1) for line in lines if "=" in line)
        return found

    def ranks(self) -> dict[int, int]:
        """The process that trains of each rank."""
        launched = {p: e for p, e in self.members().items() if p != self.process.pid}
        return {int(env["RANK"]): pid for pid, env in launched.items() if "RANK" in env}

    def signal_all(self, number: int) -> None:
        """The signal to every process of the tree at once."""
        for pid in self.members():
            send(pid, number)

    def kill(self) -> None:
        """End the whole tree, however it grows meanwhile."""
        self.process.kill()  # also one that has not been forked yet
        while self.members():
            self.signal_all(signal.SIGKILL)
            time.sleep(0.01)
        self.process.wait()

    def code(self) -> int:
        """The exit code, when it comes."""
        return self.process.wait(PATIENCE)

    def until_gone(self, seconds: float = PATIENCE) -> None:
        """Wait for the last member to end."""
        patience = time.monotonic() + seconds
        while self.members():
            assert time.monotonic() < patience, f"still there: {sorted(self.members())}"
            time.sleep(0.02)

    def until(self, ready: Callable[[], object]) -> None:
        """Wait for something that happens while the tree lives."""
        patience = time.monotonic() + PATIENCE
        while not ready():
            assert self.process.poll() is None, f"ended {self.process.returncode}: {self.stderr}"
            assert time.monotonic() < patience, f"waited in vain: {self.stderr}"
            time.sleep(0.002)


def _is_alive(pid: int) -> bool:
    try:
        state = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[0]
    except OSError:  # it has just ended, or is another user's
        return False
    return state != "Z"


def send(pid: int, number: int) -> None:
    """A signal, to a process that may have just ended."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


@contextmanager
def forest(folder: Path) -> Iterator[Callable[..., Tree]]:
    """A way to start trees; none outlives the block."""
    trees: list[Tree] = []

    def start(*command: str, **env: str) -> Tree:
        trees.append(Tree(command, {"OMP_NUM_THREADS": "1", **env}, folder))
        return trees[-1]

    try:
        yield start
    finally:
        for tree in trees:
            tree.kill()


def python(*arguments: str) -> tuple[str, ...]:
    return (sys.executable, *arguments)


def forked(*arguments: str) -> tuple[str, ...]:
    """As `python`, with nothing to import, here and in what it starts."""
    return (forked_python(), *arguments)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port
