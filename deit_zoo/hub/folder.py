"""A checkpoint as a folder that needs nothing else: weights, digest, record.

It is what a machine without a network is given: `create(name, checkpoint=FOLDER)` checks and loads
it, and so does `sha256sum -c SHA256SUMS`.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from deit_zoo.errors import CheckpointError, IntegrityError
from deit_zoo.files import MODEL_FILE, SUMS_FILE, digest, write_whole
from deit_zoo.hub.verify import CachedFile, read_sums
from deit_zoo.manifest import manifest_path

RECORD_FILE = "checkpoint.json"
# The weights come last: without them a folder is not used.
FILES = (SUMS_FILE, RECORD_FILE, MODEL_FILE)
_TEMPORARY = ".deit_zoo."


def check_free(name: str, folder: Path) -> None:
    """Raises CheckpointError unless the folder is new, empty, or holds this very checkpoint."""
    if folder.exists() and not folder.is_dir():
        raise CheckpointError(f"{folder} is a file; give a folder as --to")
    names = [path.name for path in folder.iterdir()] if folder.exists() else []
    present = {name for name in names if not name.startswith(_TEMPORARY)}
    if present and not (present <= set(FILES) and _recorded_name(folder) == name):
        raise CheckpointError(
            f"{folder} holds other files ({', '.join(sorted(present)[:3])}); give a new or empty "
            "folder as --to"
        )


def write(holding: CachedFile, folder: Path, advance: Callable[[int], None]) -> str:
    """Leave the folder whole or as it was. Returns the SHA-256 of the weights in it."""
    if folder.exists() and (there := _whole(folder, holding)) is not None:
        return there
    # Beside what is new, inside what is there: a mounted disk cannot be renamed.
    temporary = (folder if folder.exists() else folder.parent) / f"{_TEMPORARY}{os.getpid()}"
    try:
        temporary.mkdir(parents=True)
        sha256 = copy(holding.file, temporary / MODEL_FILE, advance)
        if holding.sha256 not in (None, sha256):
            raise IntegrityError(
                f"{holding.file} has SHA-256 {sha256}, but {holding.sha256} is expected; "
                f"{holding.remedy}"
            )
        write_whole(temporary / RECORD_FILE, _record(holding.name))
        write_whole(temporary / SUMS_FILE, f"{sha256}  {MODEL_FILE}\n".encode())
        if folder.exists():
            for name in FILES:
                (temporary / name).replace(folder / name)
        else:
            temporary.rename(folder)
    except OSError as error:
        raise CheckpointError(
            f"{folder} cannot be written ({error.strerror}); give another folder as --to"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return sha256


def copy(source: Path, target: Path, advance: Callable[[int], None] = lambda count: None) -> str:
    """Copy a file to the disk. Returns the SHA-256 of what the copy holds."""
    with source.open("rb") as reader, target.open("wb") as writer:
        while chunk := reader.read(1 << 20):
            writer.write(chunk)
            advance(len(chunk))
        writer.flush()
        os.fsync(writer.fileno())
    return digest(target)


def _whole(folder: Path, holding: CachedFile) -> str | None:
    """The digest of the weights in a folder that has all they need and is what it says."""
    if not all((folder / name).is_file() for name in FILES):
        return None
    stated = read_sums(folder).get(MODEL_FILE)
    same = stated == digest(folder / MODEL_FILE) and holding.sha256 in (None, stated)
    return stated if same else None


def _record(name: str) -> bytes:
    """The manifest's record of a name, as the manifest writes it."""
    records = json.loads(manifest_path().read_text(encoding="utf-8"))["checkpoints"]
    return (json.dumps({name: records[name]}, indent=2, ensure_ascii=False) + "\n").encode()


def _recorded_name(folder: Path) -> str | None:
    try:
        record = json.loads((folder / RECORD_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return next(iter(record), None) if isinstance(record, dict) else None
