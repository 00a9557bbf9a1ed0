"""One run in a folder at a time: a lock for as long as the process that began it lives.

The system lets go of it when that process dies. Who holds it, or held it and died, is in a file.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock, Timeout

from deit_zoo.errors import DataError
from deit_zoo.files import is_running, read_json, write_whole

LOCK_FILE, OWNER_FILE = ".lock", ".owner.json"
# Loader workers of a process that was killed hold its lock until they notice.
ORPHANS_SECONDS = 30.0
TOLD_SECONDS = 10.0  # after which it is told for whom a run waits


class Owner(NamedTuple):
    """The process that a run's folder belongs to."""

    host: str
    pid: int
    since: str

    @property
    def is_alive(self) -> bool:
        """Whether it may still be there: of another machine's nobody knows."""
        return self.host != socket.gethostname() or is_running(self.pid)

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"


@contextmanager
def run_lock(output: Path, tell: Callable[[str], None], seconds: float = 0.0) -> Iterator[None]:
    """Within it no other run begins in this folder, which is made where there is none.

    An owner that died is told. Raises DataError where another run has had it for all these seconds.
    """
    is_new = not output.exists()
    output.mkdir(parents=True, exist_ok=True)
    lock = FileLock(output / LOCK_FILE, thread_local=False)
    _acquire(lock, output, seconds, tell)
    locked = _identity(output / LOCK_FILE)
    try:
        if (former := read_owner(output)) is not None:
            tell(f"the run in {output} had no end ({former}); its lock is taken over")
        since = datetime.now(timezone.utc).isoformat(timespec="seconds")
        owner = Owner(socket.gethostname(), os.getpid(), since)
        write_whole(output / OWNER_FILE, json.dumps(owner._asdict()).encode())
        yield
    finally:
        # The folder may have been removed meanwhile, and made again by another run.
        is_own = _identity(output / LOCK_FILE) == locked
        if is_own:
            (output / OWNER_FILE).unlink(missing_ok=True)
            with suppress(PermissionError):  # on Windows it is open, and goes when it is released
                (output / LOCK_FILE).unlink(missing_ok=True)
        lock.release()
        if is_own and is_new:
            with suppress(OSError):  # something came of it
                output.rmdir()


def _identity(file: Path) -> tuple[int, int] | None:
    """What tells a file from another of its name; None where there is none."""
    try:
        facts = file.stat()
    except OSError:
        return None
    return facts.st_dev, facts.st_ino


def read_owner(output: Path) -> Owner | None:
    """Who has a folder, or had it and died; None where nobody says so."""
    try:
        record = read_json(output / OWNER_FILE)
        return Owner(str(record["host"]), int(record["pid"]), str(record["since"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _acquire(lock: FileLock, output: Path, seconds: float, tell: Callable[[str], None]) -> None:
    begun, is_told = time.monotonic(), False
    while True:
        try:
            lock.acquire(timeout=0)
            return
        except Timeout as error:
            owner = read_owner(output)
            is_dead = owner is not None and not owner.is_alive
            if time.monotonic() - begun > (max(seconds, ORPHANS_SECONDS) if is_dead else seconds):
                raise DataError(
                    f"{output} is in use by another run ({owner or 'whose process is not known'}); "
                    "wait for it or end it, or give another --output"
                ) from error
            if not is_told and time.monotonic() - begun > TOLD_SECONDS:
                is_told = True
                tell(f"{output} is in use by {owner or 'another run'}; waiting for it")
            time.sleep(0.1)
