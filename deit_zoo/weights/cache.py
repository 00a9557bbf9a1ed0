"""The zoo's own cache: which files were verified, what the Hub stated, who is fetching.

Nothing here is needed to use a file. Where there is no folder, or none that can be written to,
nothing is remembered: the next use hashes again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

from filelock import FileLock, Timeout
from msgspec import Meta

from deit_zoo.errors import CheckpointError, DownloadError, IntegrityError, ZooError
from deit_zoo.files import (
    OpenedFile,
    as_record,
    digest,
    opened,
    read_bytes,
    read_json,
    verify,
    write_whole,
)
from deit_zoo.terminal import Terminal
from deit_zoo.weights.places import CACHE_ENVIRONMENT as CACHE_ENVIRONMENT
from deit_zoo.weights.places import RECORD_BYTES
from deit_zoo.weights.places import folder as folder

VERIFY_ENVIRONMENT = "DEIT_ZOO_VERIFY"
VERIFY_CHOICES = ("once", "always", "never")
# DeiT-B takes a minute on a slow line, CaiT-M48 a quarter of an hour.
LOCK_SECONDS = 1800.0
HASHINGS = 3  # that a file is replaced meanwhile, as by another process that fetches it, is no harm
SILENT_SECONDS = 2.0  # of waiting for another process
Sha256 = Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]
Commit = Annotated[str, Meta(pattern=r"\A[0-9a-f]{40}\Z")]
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class KnownFile:
    """A file of this machine, the SHA-256 that it must have where one is known, and its proof."""

    path: Path
    sha256: str | None
    proof: str


def check(file: Path, sha256: str | None) -> None:
    """Raises IntegrityError with both digests unless the file has this SHA-256; as `verified`."""
    with verified(file, sha256):
        pass


@contextlib.contextmanager
def verified(file: Path, sha256: str | None) -> Iterator[OpenedFile]:
    """The open file, found to have this SHA-256: what is read within it is what was hashed.

    A file that was hashed once is known by path, size, both its times and inode, and is not
    hashed again; DEIT_ZOO_VERIFY=always hashes at every use, never not at all. None is for a file
    of which no digest is known. CheckpointError where it cannot be read.
    """
    with contextlib.ExitStack() as stack:
        try:
            same = stack.enter_context(opened(file))
        except OSError as error:
            raise CheckpointError(
                f"{file} cannot be read ({error.strerror}); give a file that you may read"
            ) from error
        if sha256 is not None:
            _check(same, sha256)
        yield same


def _check(file: OpenedFile, sha256: str) -> None:
    policy = os.environ.get(VERIFY_ENVIRONMENT, "once")
    if policy not in VERIFY_CHOICES:
        raise ZooError(f"{VERIFY_ENVIRONMENT} is {policy!r}; set it to once, always or never")
    stamp = _stamp(file)
    if policy == "never" or (policy == "once" and _remembered(file, stamp) == sha256):
        return
    for _ in range(HASHINGS):
        verify(file, sha256)
        before, stamp = stamp, _stamp(file)
        if before == stamp:
            _remember(file, stamp, sha256)
            return
    raise IntegrityError(f"{file} was changed each time it was hashed; end what writes to it")


def hash_now(file: Path, advance: Callable[[int], None]) -> tuple[str, int]:
    """Digest and size of a file, hashed whatever was remembered of it, and remembered."""
    with opened(file) as same:
        stamp = _stamp(same)
        sha256 = digest(same, advance)
        if _stamp(same) == stamp:
            _remember(same, stamp, sha256)
        return sha256, stamp["size"]


def _stamp(file: OpenedFile) -> dict[str, int]:
    """What says that a file is still the one that was hashed. Whoever sets its modification time
    back changes the time of its inode (`ctime`), which no program can set."""
    of = file.status
    stamp = {"size": of.st_size, "mtime_ns": of.st_mtime_ns, "ctime_ns": of.st_ctime_ns}
    return stamp | {"inode": of.st_ino}


def _remember(file: OpenedFile, stamp: dict[str, int], sha256: str) -> None:
    write_record("verified", str(file.path.resolve()), stamp | {"sha256": sha256})


def _remembered(file: OpenedFile, stamp: dict[str, int]) -> Any:
    record = read_record("verified", str(file.path.resolve()), dict[str, Any])
    return record.get("sha256") if record and stamp.items() <= record.items() else None


def read_record(kind: str, key: str, record: type[T]) -> T | None:
    """What was recorded under a key; None where nothing whole of this kind was."""
    try:
        content = read_json(_record_file(kind, key), RECORD_BYTES)
        if content["key"] != key:
            return None
        return as_record(content, record, kind)
    except (OSError, ZooError, KeyError, TypeError):
        return None


def write_record(kind: str, key: str, record: dict[str, Any]) -> None:
    """Record something under a key, where the cache can be written to."""
    content = json.dumps(record | {"key": key}, sort_keys=True) + "\n"
    with contextlib.suppress(OSError, ZooError):
        write_shared(_record_file(kind, key), content.encode())


def write_shared(file: Path, content: bytes) -> None:
    """Write a file of the cache, whole, for those that the cache is open to."""
    make_folder(file.parent)
    write_whole(file, content)
    share(file, but=~0o644)


def make_folder(place: Path, but: int = 0) -> None:
    """Make a folder of the cache, shared with those that the cache is open to."""
    folder().mkdir(parents=True, exist_ok=True)
    for new in (one for one in (*reversed(place.parents), place) if not one.exists()):
        with contextlib.suppress(FileExistsError):  # another process was quicker
            new.mkdir()
            share(new, but)


def share(new: Path, but: int) -> None:
    """Give what was made the mode of its folder, `but` these bits, whatever the umask."""
    with contextlib.suppress(PermissionError):  # some disks of a network refuse it
        new.chmod(stat.S_IMODE(new.parent.stat().st_mode) & ~but)


@contextlib.contextmanager
def one_at_a_time(name: str) -> Iterator[None]:
    """Let one process of this machine fetch `name` while the others wait for its result."""
    locks = folder() / "locks"
    holder = locks / f"{name}.holder"
    try:
        # Who may write into the folder may wait by its locks, whoever made them; filelock takes
        # none of another user in a folder where each removes their own alone.
        make_folder(locks, but=stat.S_ISVTX)
        lock = FileLock(locks / f"{name}.lock", mode=0o600 | locks.stat().st_mode & 0o666)
        _acquire(lock, name, holder)
    except Timeout as error:
        raise DownloadError(
            f"{_text_of(holder)} has been fetching {name} for {LOCK_SECONDS / 60:.0f} minutes; "
            f"look at it, or remove {lock.lock_file} if there is none"
        ) from error
    except OSError as error:
        raise DownloadError(
            f"the cache {folder()} cannot be written to ({error.strerror}: {error.filename}); set "
            f"{CACHE_ENVIRONMENT} to a folder that can"
        ) from error
    try:
        with contextlib.suppress(OSError, ZooError):  # what another user left may have to stay
            write_whole(holder, f"process {os.getpid()} on {socket.gethostname()}".encode())
        yield
    finally:
        with contextlib.suppress(OSError):
            holder.unlink()
        lock.release()


def _acquire(lock: FileLock, name: str, holder: Path) -> None:
    """Wait for the others, and after a while say for whom."""
    try:
        lock.acquire(timeout=min(SILENT_SECONDS, LOCK_SECONDS))
    except Timeout:
        Terminal(stderr=True).print(
            f"waiting for {_text_of(holder)}, which is fetching {name}; at most "
            f"{LOCK_SECONDS / 60:.0f} minutes",
            markup=False,
        )
        lock.acquire(timeout=LOCK_SECONDS)


def _text_of(holder: Path) -> str:
    """Who wrote that it has the lock; a process that was killed leaves it without."""
    try:
        return read_bytes(holder, RECORD_BYTES).decode()
    except (OSError, ValueError):
        return "another process"


def _record_file(kind: str, key: str) -> Path:
    return folder() / kind / f"{hashlib.sha256(os.fsencode(key)).hexdigest()[:32]}.json"
