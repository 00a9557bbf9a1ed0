"""What says which bytes a folder should hold, and which of what is said is believed.

A folder's SHA256SUMS, or a run's receipt, says what its files were when it was written; whoever
writes into the folder can write that too. Weights that were carried have a record of the manifest
beside them (`checkpoint.json`): then the installed manifest counts most.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from deit_zoo.errors import CheckpointError, FormatError, IntegrityError
from deit_zoo.files import (
    MODEL_FILE,
    RECEIPT_FILE,
    RECORD_FILE,
    SUMS_FILE,
    WEIGHTS_SUFFIXES,
    as_record,
    digest,
    is_inside,
    read_json,
    read_sums,
)
from deit_zoo.manifest import Checkpoint, manifest_path, read_manifest
from deit_zoo.registry import MODELS
from deit_zoo.weights.cache import KnownFile, Sha256, verified
from deit_zoo.weights.places import carried_folders, is_there


@dataclass(frozen=True, kw_only=True, slots=True)
class _Receipt:
    sha256: dict[str, Sha256]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Source:
    sha256: Sha256 | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class _Record:
    sources: list[_Source]


def stated_digests(folder: Path) -> tuple[dict[str, str], str]:
    """The digest of each file as SHA256SUMS or a run's receipt states it, and which of them does.

    Raises CheckpointError where neither is there, or one that cannot be believed.
    """
    sums, receipt = folder / SUMS_FILE, folder / RECEIPT_FILE
    try:
        if receipt.exists() and not sums.exists():
            return _receipt_digests(receipt), RECEIPT_FILE
        return read_sums(sums), SUMS_FILE
    except FormatError as error:
        raise CheckpointError(
            f"{error}; fetch the folder again, or remove that file to load weights without proof"
        ) from error
    except OSError as error:
        raise CheckpointError(
            f"{folder} has no readable {SUMS_FILE} ({error.strerror}), so nothing says what its "
            "files should be; give a folder that `deit-zoo weights fetch NAME --to DIR` made, or "
            "that of a run"
        ) from error


def known_file(file: Path) -> KnownFile:
    """Weights, or what lies beside them, with the digest that their folder states, if any does.

    Raises CheckpointError where the folder states digests but none of this file, IntegrityError
    where it contradicts itself or the manifest.
    """
    folder = file.parent
    known = KnownFile(path=file, sha256=None, proof="none")
    if any((folder / name).exists() for name in (SUMS_FILE, RECEIPT_FILE)):
        digests, stating = stated_digests(folder)
        if file.name not in digests:
            raise CheckpointError(
                f"{folder / stating} states no SHA-256 for {file.name}; remove one of the two: "
                f"without {stating} the folder is read without proof"
            )
        known = KnownFile(path=file, sha256=digests[file.name], proof=stating)
    if file.suffix in WEIGHTS_SUFFIXES and (folder / RECORD_FILE).exists():
        return _checked_by_record(known)
    return known


def carried_file(record: Checkpoint) -> KnownFile | None:
    """The weights of a record in the folders that DEIT_ZOO_WEIGHTS names, with their proof.

    A folder holds one model, or one in each of its folders. Raises IntegrityError where what it
    states is not what the manifest pins, CheckpointError where it states nothing.
    """
    for folder in carried_folders(record.name):
        if not is_there(folder / RECORD_FILE) or carried_name(folder) != record.name:
            continue
        if not is_there(folder / MODEL_FILE):
            raise CheckpointError(
                f"{folder} has no {MODEL_FILE}; if it is still being copied, wait for it, else "
                f"fetch it again with `deit-zoo weights fetch {record.name} --to DIR`"
            )
        known = known_file(folder / MODEL_FILE)
        if known.sha256 is None:
            stated_digests(folder)  # which says that there are none
        return known
    return None


def carried_name(folder: Path) -> str:
    """The model whose record lies in a folder of carried weights."""
    return next(iter(_record(folder / RECORD_FILE)))


def _checked_by_record(known: KnownFile) -> KnownFile:
    """Weights with the strongest proof: the digest of the manifest, else of the record beside them.

    Where the folder states none, it is that of their bytes.
    """
    folder = known.path.parent
    [(name, record)] = _record(folder / RECORD_FILE).items()
    if name not in MODELS:
        raise CheckpointError(
            f"{folder / RECORD_FILE} is of {name!r:.120}, and no model has this name; fetch the "
            "folder again"
        )
    installed = read_manifest().get(name)
    origin = f"{folder / known.proof} states" if known.sha256 else f"{folder} has"
    for where, sources, word in (
        (folder / RECORD_FILE, record.sources, RECORD_FILE),
        (manifest_path(), installed.sources if installed is not None else (), "pinned"),
    ):
        pinned = {source.sha256 for source in sources if source.sha256 is not None}
        if not pinned:
            continue
        if (sha256 := known.sha256) is None:
            with verified(known.path, None) as same:
                sha256 = digest(same)
        if sha256 not in pinned:
            raise IntegrityError(
                f"{origin} SHA-256 {sha256} for {known.path.name}, but {where} pins "
                f"{' or '.join(sorted(map(str, pinned)))} for {name}; fetch the folder again"
            )
        known = KnownFile(path=known.path, sha256=sha256, proof=word)
    return known


def _record(file: Path) -> dict[str, _Record]:
    try:
        record = as_record(read_json(file), dict[str, _Record], str(file))
        if len(record) != 1:
            raise FormatError(f"{file} holds {len(record)} records, not one")
    except (OSError, FormatError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise CheckpointError(f"{file} is no record ({reason}); fetch the folder again") from error
    return record


def _receipt_digests(file: Path) -> dict[str, str]:
    digests = as_record(read_json(file), _Receipt, str(file)).sha256
    if outside := next((name for name in digests if not is_inside(name)), None):
        raise FormatError(f"{file} names {outside!r:.120}, which is not in its folder")
    return digests
