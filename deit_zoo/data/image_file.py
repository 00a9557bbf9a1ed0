"""The one place that opens the files of images and archives: regular ones alone.

A pipe would make its reader wait, and a device act, or never end.
"""

from __future__ import annotations

import os
import stat
from functools import partial
from pathlib import Path

from deit_zoo.errors import DataError
from deit_zoo.files import open_descriptor

# Pillow's own bound on a decoded image.
MAX_PIXELS = 178_956_970
MOST_BYTES = 8 * MAX_PIXELS  # of a file, as of four channels of 16 bits

DATA_URL = "data:image/"  # what the address begins with that an image is written out in
BITS = "bits"  # in the info of a decoded image: of a pixel, where these are more than are left


class UnreadableError(DataError):
    """A file is none that can be decoded here; `reason` says why, and what would help.

    Pickle and torch make it anew from its sentence alone.
    """

    def __init__(self, name: object, reason: str = "") -> None:
        super().__init__(f"{name} is {reason}" if reason else str(name))
        self.reason = reason


def missing_image(name: object) -> DataError:
    """What is said of a path that names nothing."""
    if str(name).startswith(DATA_URL):
        return DataError(
            f"{str(name)[:40]}... is an image as text; give its bytes, which are "
            "base64.b64decode(text.partition(',')[2])"
        )
    return DataError(f"{name} does not exist; give an image file, a folder or a URL")


def read_file(path: str | Path) -> bytes:
    """An image's file. Raises UnreadableError for what is none, or larger than any image."""
    # Unbuffered, and no pathlib: either would cost as much as the reading.
    with open(open_regular(path, "an image file"), "rb", buffering=0) as file:
        check_length(path, os.fstat(file.fileno()).st_size)
        return file.readall()


def open_regular(path: str | Path, what: str) -> int:
    """A file's descriptor. Raises UnreadableError for what is no regular one, unopened."""
    return open_descriptor(path, partial(_check_regular, what=what))


def check_length(name: object, length: int) -> None:
    """Raises UnreadableError for a file that is longer than any image."""
    if length > MOST_BYTES:
        most = f"at most {MOST_BYTES / 1e9:.1f} GB are read"
        raise UnreadableError(name, f"of {length / 1e9:,.1f} GB, where {most}")


def _check_regular(path: str | os.PathLike[str], mode: int, *, what: str) -> None:
    if not stat.S_ISREG(mode):
        kinds = {stat.S_IFDIR: "folder", stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket"}
        kind = kinds.get(stat.S_IFMT(mode), "device")
        raise UnreadableError(path, f"a {kind}; give {what}")
