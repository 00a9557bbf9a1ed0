"""The zoo's own cache: which files were verified, what the Hub stated, who is fetching.

Nothing here is needed to use a file. Where the folder cannot be written to, nothing is remembered:
the next use hashes again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from deit_zoo.errors import DownloadError, ZooError
from deit_zoo.files import expand_user, verify, write_whole

CACHE_ENVIRONMENT, VERIFY_ENVIRONMENT = "DEIT_ZOO_CACHE", "DEIT_ZOO_VERIFY"
VERIFY_CHOICES = ("once", "always", "never")
# DeiT-B takes a minute on a slow line, CaiT-M48 a quarter of an hour.
LOCK_SECONDS = 1800.0


def folder() -> Path:
    """Where converted files and records live: DEIT_ZOO_CACHE, or the user's cache folder."""
    if chosen := os.environ.get(CACHE_ENVIRONMENT):
        return expand_user(chosen)
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    try:
        return Path(base).expanduser() / "deit_zoo"
    except RuntimeError as error:
        raise ZooError(
            f"this user has no home folder, where the cache would be; set {CACHE_ENVIRONMENT} to a "
            "folder"
        ) from error


def check(file: Path, sha256: str) -> None:
    """Raises IntegrityError with both digests unless the file has this SHA-256.

    A file that was hashed once is known by path, size, modification time and inode, and is not
    hashed again; DEIT_ZOO_VERIFY=always hashes at every use, never not at all.
    """
    policy = os.environ.get(VERIFY_ENVIRONMENT, "once")
    if policy not in VERIFY_CHOICES:
        raise ZooError(f"{VERIFY_ENVIRONMENT} is {policy!r}; set it to once, always or never")
    if policy == "never" or (policy == "once" and _remembered(file) == sha256):
        return
    verify(file, sha256)
    remember(file, sha256)


def remember(file: Path, sha256: str) -> None:
    """Record that the file as it is now has this digest."""
    write_record("verified", str(file.resolve()), _fingerprint(file) | {"sha256": sha256})


def read_record(kind: str, key: str) -> dict[str, Any] | None:
    """What was recorded under a key; None where nothing whole was."""
    try:
        record: Any = json.loads(_record_file(kind, key).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and record.get("key") == key else None


def write_record(kind: str, key: str, record: dict[str, Any]) -> None:
    """Record something under a key, where the cache can be written to."""
    file = _record_file(kind, key)
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, (json.dumps(record | {"key": key}, sort_keys=True) + "\n").encode())


@contextlib.contextmanager
def one_at_a_time(name: str) -> Iterator[None]:
    """Let one process of this machine fetch `name` while the others wait for its result."""
    lock_folder = folder() / "locks"
    try:
        lock_folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(lock_folder / f"{name}.lock", timeout=LOCK_SECONDS)
        lock.acquire()
    except Timeout as error:
        raise DownloadError(
            f"another process has been fetching {name} for {LOCK_SECONDS / 60:.0f} minutes; look "
            f"at it, or remove {lock_folder / name}.lock if there is none"
        ) from error
    except OSError as error:
        raise DownloadError(
            f"the cache {folder()} cannot be written to ({error.strerror}); set "
            f"{CACHE_ENVIRONMENT} to a folder that can"
        ) from error
    try:
        yield
    finally:
        lock.release()


def _remembered(file: Path) -> str | None:
    record = read_record("verified", str(file.resolve()))
    if record is None or not _fingerprint(file).items() <= record.items():
        return None
    return str(record["sha256"])


def _fingerprint(file: Path) -> dict[str, Any]:
    status = file.stat()
    return {"size": status.st_size, "mtime_ns": status.st_mtime_ns, "inode": status.st_ino}


def _record_file(kind: str, key: str) -> Path:
    return folder() / kind / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"
