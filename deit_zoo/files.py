"""Files that are whole or not there, and the digests that say which bytes they hold."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path


def write_whole(file: Path, data: bytes) -> None:
    """Put `data` under `file`'s name, or leave what was there: temporary name, fsync, rename."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


def digest(file: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    sha256 = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            sha256.update(chunk)
    return sha256.hexdigest()
