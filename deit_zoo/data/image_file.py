"""The one place that opens images' files: regular ones alone, and none larger than an image.

A pipe would make its reader wait, and a device act, or never end.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from deit_zoo.errors import DataError

# Pillow's own bound on a decoded image.
MAX_PIXELS = 178_956_970
MOST_BYTES = 8 * MAX_PIXELS  # of a file, as of four channels of 16 bits


class UnreadableError(DataError):
    """A file is none that can be decoded here; `reason` says why, and what would help."""

    def __init__(self, name: object, reason: str) -> None:
        super().__init__(f"{name} is {reason}")
        self.reason = reason


def read_file(path: str | Path) -> bytes:
    """An image's file. Raises UnreadableError for what is no regular one, which is not opened."""
    if not stat.S_ISREG((status := os.stat(path)).st_mode):
        raise UnreadableError(path, _kind(status.st_mode))
    # Unbuffered, and no pathlib: either would cost as much as the reading.
    with open(path, "rb", buffering=0, opener=_open_without_waiting) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):  # what took its place meanwhile
            raise UnreadableError(path, _kind(status.st_mode))
        check_length(path, status.st_size)
        return file.readall()


def check_length(name: object, length: int) -> None:
    """Raises UnreadableError for a file that is longer than any image."""
    if length > MOST_BYTES:
        most = f"at most {MOST_BYTES / 1e9:.1f} GB are read"
        raise UnreadableError(name, f"of {length / 1e9:,.1f} GB, where {most}")


def _open_without_waiting(path: str, flags: int) -> int:
    """A FIFO would wait for a writer, and a terminal become that of this process."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0))


def _kind(mode: int) -> str:
    kinds = {stat.S_IFDIR: "folder", stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket"}
    return f"a {kinds.get(stat.S_IFMT(mode), 'device')}; give an image file"
