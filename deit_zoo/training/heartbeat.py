"""Signs of life of a node's processes: one that is stopped or hangs would hold up all for good.

Each touches a file of its own once a second, of the machine's own disk; the launcher looks at them.
That says that a process runs, not that it gets on: for one that waits for a disk or for a GPU
others wait as long as `distributed.TIMEOUT`. They begin when the libraries are loaded.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from deit_zoo.files import is_running

BEAT_SECONDS = 1.0
SILENT_SECONDS = 60.0


def beat(folder: Path, rank: str) -> None:
    """Give signs of life from now on, on a thread of its own."""
    file = folder / f"{rank}-{os.getpid()}"

    def touch() -> None:
        with suppress(OSError):  # the launcher is gone, and its folder
            while True:
                time.sleep(BEAT_SECONDS)
                os.utime(file)

    with suppress(OSError):  # unwatched where there is no room for a file
        file.touch()
        threading.Thread(target=touch, daemon=True, name="heartbeat").start()


@contextmanager
def watch(tell: Callable[[str], None]) -> Iterator[Path]:
    """Within it, processes that beat in this folder and fall silent are told, and killed."""
    done = threading.Event()
    with TemporaryDirectory(prefix="deit_zoo_", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        thread = threading.Thread(target=_watch, args=(folder, done, tell), daemon=True)
        thread.start()
        try:
            yield folder
        finally:
            done.set()
            thread.join()


def _watch(folder: Path, done: threading.Event, tell: Callable[[str], None]) -> None:
    # Looks are counted, not seconds: where the whole machine was suspended nobody was silent.
    seen: dict[str, tuple[int, int]] = {}
    while not done.wait(BEAT_SECONDS):
        for file in folder.iterdir():
            time_ns = file.stat().st_mtime_ns
            former, looks = seen.get(file.name, (time_ns, 0))
            looks = looks + 1 if time_ns == former else 0
            seen[file.name] = time_ns, looks
            if looks * BEAT_SECONDS >= SILENT_SECONDS:
                file.unlink()
                _kill(file, tell)


def _kill(file: Path, tell: Callable[[str], None]) -> None:
    rank, pid = file.name.split("-")
    command = Path("/proc") / pid / "cmdline"
    if not is_running(int(pid)):
        return
    with suppress(ProcessLookupError, FileNotFoundError):
        if command.parent.parent.is_dir() and os.fsencode(file.parent) not in command.read_bytes():
            return  # another process, which was given the number of one that is gone
        tell(f"process {rank} gives no sign of life for {SILENT_SECONDS:g} seconds; it is killed")
        os.kill(int(pid), getattr(signal, "SIGKILL", signal.SIGTERM))  # which ends it on Windows
