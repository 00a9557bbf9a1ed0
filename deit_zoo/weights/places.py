"""Where weights may lie on this machine, and whether those of a model do.

No file is opened but the small record of a folder that was carried here: what a file holds is found
out by who loads it. Nothing is imported that takes time, so that a list of models is there at once.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from deit_zoo.errors import CheckpointError, ZooError
from deit_zoo.files import MODEL_FILE, RECORD_FILE, expand_user, read_json

if TYPE_CHECKING:
    from deit_zoo.manifest import Checkpoint, Source

CACHE_ENVIRONMENT, WEIGHTS_ENVIRONMENT = "DEIT_ZOO_CACHE", "DEIT_ZOO_WEIGHTS"
RECORD_BYTES = 1 << 16
Place = Literal["carried", "embedded", "cached"]


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


def hub_folder() -> Path:
    """The Hub's cache, as huggingface_hub finds it, whose import takes longer than all of this."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join("~", ".cache")
    home = os.environ.get("HF_HOME") or os.path.join(base, "huggingface")
    chosen = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    return Path(os.path.expandvars(os.path.expanduser(chosen or os.path.join(home, "hub"))))


def repository_folder(repo_id: str) -> Path:
    """The folder of a repository's files in the Hub's cache."""
    return hub_folder() / f"models--{repo_id.replace('/', '--')}"


def place_of(record: Checkpoint) -> Place | None:
    """Where the weights of a record would be taken from without a network; None for nowhere."""
    for folder in carried_folders(record.name):
        with contextlib.suppress(ZooError, OSError):  # who loads it is told, and `doctor` says it
            if _is_of(record.name, folder):
                return "carried"
    if any(source.kind == "builtin" for source in record.sources):
        return "embedded"
    return "cached" if any(_is_cached(record.name, source) for source in record.sources) else None


def carried_folders(name: str) -> list[Path]:
    """The folders that DEIT_ZOO_WEIGHTS names for a model: one of its own, or one of this alone."""
    named = filter(None, os.environ.get(WEIGHTS_ENVIRONMENT, "").split(os.pathsep))
    return [folder for base in named for folder in (expand_user(base) / name, expand_user(base))]


def unreadable_records(names: Iterable[str]) -> list[str]:
    """What is wrong with the records of carried folders that cannot be read."""
    reasons = {}
    for folder in (folder for name in names for folder in carried_folders(name)):
        try:
            _is_of("", folder)
        except (ZooError, OSError) as error:
            reasons[folder] = str(error)
    return list(reasons.values())


def _is_of(name: str, folder: Path) -> bool:
    """Whether a folder was carried for a model. Raises ZooError or OSError for a broken record."""
    file = folder / RECORD_FILE
    if not (is_there(file) and is_there(folder / MODEL_FILE)):
        return False
    record = read_json(file, RECORD_BYTES)
    return isinstance(record, dict) and name in record


def is_there(file: Path) -> bool:
    """Whether a file is there. Raises CheckpointError where nobody lets this user look."""
    try:
        return stat.S_ISREG(file.stat().st_mode)
    except PermissionError as error:
        raise CheckpointError(
            f"{file.parent} cannot be read (permission denied); let its owner open it by chmod -R "
            f"a+rX, or take it out of {WEIGHTS_ENVIRONMENT}"
        ) from error
    except OSError:
        return False


def _is_cached(name: str, source: Source) -> bool:
    # A user without a home has no cache, nor has one who may not look into it.
    with contextlib.suppress(ZooError, OSError):
        if source.kind == "hub":
            commit = source.revision or "*"
            repository = repository_folder(str(source.repo_id))
            files = repository.glob(f"snapshots/{commit}/{source.filename}")
            return any(file.is_file() for file in files)  # a link whose blob is gone is none
        digest = (source.sha256_prefix or "")[:12]
        digest += (12 - len(digest)) * "[0-9a-f]"
        return any((folder() / "converted").glob(f"{name}-{digest}.safetensors"))
    return False
