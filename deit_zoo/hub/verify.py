"""Files of this machine, read to the last byte without the network."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from deit_zoo.errors import CheckpointError, FormatError, IntegrityError
from deit_zoo.files import (
    ASSETS,
    CONFIG_FILE,
    MODEL_FILE,
    PREPROCESSOR_FILE,
    RECEIPT_FILE,
    RECORD_FILE,
    SUMS_FILE,
    WEIGHTS_SUFFIXES,
    digest,
    expand_user,
)
from deit_zoo.manifest import Checkpoint, manifest_record, read_manifest
from deit_zoo.registry.names import is_path, resolve
from deit_zoo.weights import cache
from deit_zoo.weights.cache import KnownFile
from deit_zoo.weights.fetch import cached_source
from deit_zoo.weights.proof import carried_file, known_file, stated_digests


@dataclass(frozen=True, kw_only=True, slots=True)
class CachedFile(KnownFile):
    """A known file under the name of its model, and what mends it."""

    name: str
    remedy: str = "fetch it again"

    @classmethod
    def of(cls, name: str, file: KnownFile, remedy: str = "fetch it again") -> CachedFile:
        """A file that is known by itself."""
        return cls(name=name, path=file.path, sha256=file.sha256, proof=file.proof, remedy=remedy)

    def mismatch(self, sha256: str) -> str | None:
        """A sentence where `sha256` is not what the file must have."""
        if self.sha256 in (None, sha256):
            return None
        return f"{self.path} has SHA-256 {sha256}, but {self.sha256} is expected; {self.remedy}"


@dataclass(frozen=True, kw_only=True, slots=True)
class VerifyResult:
    """What reading a file gave: its bytes, its digest, and a sentence where it is not right."""

    file: CachedFile
    bytes: int
    sha256: str | None
    problem: str | None


def cached_files(record: Checkpoint) -> Iterator[CachedFile]:
    """The files of a record that are on this machine; embedded ones even where they are missing."""
    if (carried := carried_file(record)) is not None:
        yield CachedFile.of(record.name, carried, remedy="fetch the folder again")
    for source in record.sources:
        if source.kind == "builtin":
            path = ASSETS / str(source.filename)
            file: KnownFile | None = KnownFile(path=path, sha256=source.sha256, proof=source.proof)
            remedy = "install deit_zoo again"
        else:
            file = cached_source(record.name, source)
            remedy = f"type `deit-zoo weights fetch {record.name}` to get it again"
        if file is not None:
            yield CachedFile.of(record.name, file, remedy=remedy)


def listed_files(folder: Path) -> Iterator[CachedFile]:
    """The files that a folder's SHA256SUMS, or the receipt of a run, has digests of.

    Raises CheckpointError where it has neither, lists a file that is not a regular one within it,
    or does not list its weights or configurations; IntegrityError where it contradicts the
    manifest.
    """
    digests, stating = stated_digests(folder)
    weights = {path.name for path in folder.iterdir() if path.suffix in WEIGHTS_SUFFIXES}
    listed = {name for name in digests if Path(name).suffix in WEIGHTS_SUFFIXES}
    unlisted = sorted(weights - listed) or ([] if listed else [MODEL_FILE])
    if stating == SUMS_FILE:
        read = (CONFIG_FILE, PREPROCESSOR_FILE)
        unlisted += [name for name in read if (folder / name).exists() and name not in digests]
    if unlisted:
        raise CheckpointError(
            f"{folder / stating} has no digest of {unlisted[0]}, so nothing says what it should "
            "be; fetch the folder again, or remove that file"
        )
    for filename, sha256 in digests.items():
        path = folder / filename
        _check_confined(path, folder)
        proof = known_file(path).proof if filename in weights else stating
        remedy = "train it again" if stating == RECEIPT_FILE else "fetch the folder again"
        yield CachedFile(name=str(folder), path=path, sha256=sha256, proof=proof, remedy=remedy)


def _check_confined(path: Path, folder: Path) -> None:
    """Raises CheckpointError for a listed name that leads out of the folder, or to no file."""
    # Unlike those of a Path, these bear links in a circle and names that are too long.
    real = os.path.realpath(path)
    if not Path(real).is_relative_to(os.path.realpath(folder)):
        raise CheckpointError(f"{path} leads out of {folder}, so it was not read; copy the file")
    if os.path.exists(real) and not os.path.isfile(real):
        raise CheckpointError(f"{path} is no regular file, so it was not read; remove it")


def files_of(name: str) -> list[CachedFile]:
    """The files of a model, or of a folder that is given by its path, or holds such folders."""
    path = expand_user(name)
    if is_path(name) or (path.is_dir() and path.name != name):
        inner = {record.parent for record in path.glob(f"*/{RECORD_FILE}")}
        inner |= {path / one for one in read_manifest() if (path / one).is_dir()}  # half copied too
        folders = [path] if (path / SUMS_FILE).exists() or not inner else sorted(inner)
        return [file for folder in folders for file in listed_files(folder)]
    return list(cached_files(manifest_record(resolve(name).name)))


def verify_file(file: CachedFile, advance: Callable[[int], None]) -> VerifyResult:
    """Hash a file whatever was remembered of it, and remember what it is now."""
    try:
        sha256, size = cache.hash_now(file.path, advance)
    except (OSError, FormatError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        problem = f"{file.path} cannot be read ({reason}); {file.remedy}"
        return VerifyResult(file=file, bytes=0, sha256=None, problem=problem)
    return VerifyResult(file=file, bytes=size, sha256=sha256, problem=file.mismatch(sha256))


def copy_checked(source: Path, target: Path, sha256: str | None, remedy: str) -> str:
    """Copy a file. Returns its SHA-256; raises IntegrityError where another is known."""
    actual = copy_file(source, target)
    if sha256 not in (None, actual):
        raise IntegrityError(
            f"the copy of {source} has SHA-256 {actual}, but {sha256} is expected; {remedy}"
        )
    return actual


def copy_file(
    source: Path, target: Path, advance: Callable[[int], None] = lambda count: None
) -> str:
    """Copy a file to the disk. Returns the SHA-256 of what the copy holds."""
    with source.open("rb") as reader, target.open("wb") as writer:
        while chunk := reader.read(1 << 20):
            writer.write(chunk)
            advance(len(chunk))
        writer.flush()
        os.fsync(writer.fileno())
    return digest(target)
