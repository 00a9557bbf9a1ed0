"""Files that are whole or not there, and the digests that say which bytes they hold."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from collections.abc import Callable
from pathlib import Path

from deit_zoo.errors import IntegrityError

ASSETS = Path(__file__).parent / "assets"
# What lies in a folder that is a checkpoint, and in one that is a run.
MODEL_FILE, RECEIPT_FILE, SUMS_FILE = "model.safetensors", "receipt.json", "SHA256SUMS"
PLAN_FILE, LOG_FILE, STEPS_FILE = "plan.json", "log.jsonl", "steps.jsonl"


def write_whole(file: Path, data: bytes) -> None:
    """Put `data` under `file`'s name, or leave what was there: temporary name, fsync, rename."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        with temporary.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


def verify(file: Path, sha256: str) -> None:
    """Raises IntegrityError with both digests unless the file has this SHA-256."""
    if not file.is_file():
        raise IntegrityError(f"{file} is missing; install deit_zoo again")
    if (actual := digest(file)) != sha256:
        raise IntegrityError(
            f"{file} has SHA-256 {actual}, but {sha256} is expected; remove it and get it again"
        )


def digest(file: Path, advance: Callable[[int], None] = lambda count: None) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal; `advance` is called with each count read."""
    sha256 = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            sha256.update(chunk)
            advance(len(chunk))
    return sha256.hexdigest()


def read_sums(file: Path) -> dict[str, str]:
    """The digest of each file that a SHA256SUMS names; ValueError for what no sha256sum writes."""
    lines = file.read_text(encoding="utf-8").splitlines()
    entries = [re.fullmatch(r"([0-9a-f]{64}) [ *](.+)", line) for line in lines]
    sums = {entry[2]: entry[1] for entry in entries if entry is not None}
    if not sums or len(sums) < len(lines):
        raise ValueError(f"{file} is not what sha256sum writes")
    return sums
