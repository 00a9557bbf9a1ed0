"""Signs of life of a node's processes: one that is stopped or hangs would hold up all for good.

Once a second each touches its file on the machine's own disk. The launcher looks at these files;
under torchrun and srun, where the launcher is not ours, the processes look at each other's. A fresh
file says that a process runs, not that it gets on: for one that waits for a disk or for a GPU the
others wait as long as `distributed.TIMEOUT`. The touches begin when the libraries are loaded.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from deit_zoo.files import is_running, machine_key
from deit_zoo.terminal import Terminal

if TYPE_CHECKING:
    from deit_zoo.distributed import DistributedContext

BEAT_SECONDS = 1.0
SILENT_SECONDS = 60.0


def beat(folder: Path, rank: str) -> None:
    """Give signs of life from now on, on a thread of its own."""
    # Locked as long as this process lives, stopped or not: its number may be another's later.
    lock = FileLock(folder / f"{rank}-{os.getpid()}", thread_local=False)

    def touch() -> None:
        with suppress(OSError):  # who looks is gone, and the folder
            while True:
                time.sleep(BEAT_SECONDS)
                os.utime(lock.lock_file)

    with suppress(OSError):  # unwatched where there is no room for a file
        lock.acquire()
        threading.Thread(target=touch, daemon=True, name="heartbeat").start()


@contextmanager
def watch_each_other(group: DistributedContext) -> Iterator[None]:
    """Within it the processes of a node give signs of life, and each looks at the others'."""
    name = group.run_on_main(lambda: f"deit_zoo_{uuid.uuid4().hex}")
    # Where the folder of temporary files is shared, a number may be of another machine's process.
    folder = Path(tempfile.gettempdir()) / f"{name}_{machine_key()}"
    with suppress(OSError):
        folder.mkdir(mode=0o700, exist_ok=True)
    beat(folder, str(group.rank))
    with watch(folder):
        yield


@contextmanager
def watch(folder: Path) -> Iterator[Path]:
    """Within it, processes that beat in this folder and fall silent are told, and killed.

    Afterwards it is gone.
    """
    done = threading.Event()
    thread = threading.Thread(target=_watch, args=(folder, done), daemon=True)
    thread.start()
    try:
        yield folder
    finally:
        done.set()
        thread.join()
        shutil.rmtree(folder, ignore_errors=True)


def _watch(folder: Path, done: threading.Event) -> None:
    # Looks are counted, not seconds: where the whole machine was suspended nobody was silent.
    seen: dict[str, tuple[int, int]] = {}
    while not done.wait(BEAT_SECONDS):
        for file in folder.glob("*"):
            with suppress(FileNotFoundError):  # another that looks has killed it
                time_ns = file.stat().st_mtime_ns
                former, looks = seen.get(file.name, (time_ns, 0))
                looks = looks + 1 if time_ns == former else 0
                seen[file.name] = time_ns, looks
                if looks * BEAT_SECONDS >= SILENT_SECONDS:
                    _kill(file)


def _kill(file: Path) -> None:
    rank, pid = file.name.split("-")
    try:
        with FileLock(file, timeout=0):
            alive = False
    except Timeout:
        alive = True
    with suppress(PermissionError):  # on Windows it is open
        file.unlink()  # whoever else looks has nothing to tell then
    if alive and is_running(int(pid)):
        silence = f"gives no sign of life for {SILENT_SECONDS:g} seconds; it is killed"
        Terminal(stderr=True).print(f"process {rank} {silence}")
        with suppress(ProcessLookupError):
            # The second ends it on Windows.
            os.kill(int(pid), getattr(signal, "SIGKILL", signal.SIGTERM))
