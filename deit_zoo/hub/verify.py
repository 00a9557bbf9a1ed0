"""What is on this machine, read to the last byte, without the network."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from deit_zoo.errors import CheckpointError
from deit_zoo.files import ASSETS, SUMS_FILE, digest
from deit_zoo.manifest import Checkpoint
from deit_zoo.weights import cache, fetch

_LINE = re.compile(r"([0-9a-f]{64}) [ *](.+)")


@dataclass(frozen=True, kw_only=True, slots=True)
class CachedFile:
    """A file of this machine, the SHA-256 it must have where one is known, and its proof."""

    name: str
    file: Path
    sha256: str | None
    proof: str
    remedy: str


@dataclass(frozen=True, kw_only=True, slots=True)
class VerifyResult:
    """What reading a file gave: its bytes, its digest, and a sentence where it is not right."""

    holding: CachedFile
    bytes: int
    sha256: str | None
    problem: str | None


def holdings(checkpoint: Checkpoint) -> Iterator[CachedFile]:
    """The files of a record that are on this machine; embedded ones even where they are missing."""
    for source in checkpoint.sources:
        if source.kind == "builtin":
            file: Path | None = ASSETS / str(source.filename)
            sha256, remedy = source.sha256, "install deit_zoo again"
        else:
            file, sha256 = fetch.held(source)
            remedy = f"type `deit-zoo weights fetch {checkpoint.name}` to get it again"
        if file is not None:
            yield CachedFile(
                name=checkpoint.name, file=file, sha256=sha256, proof=source.proof, remedy=remedy
            )


def holding_of(checkpoint: Checkpoint, file: Path) -> CachedFile:
    """What is known of the file that a record was located as."""
    unknown = CachedFile(name=checkpoint.name, file=file, sha256=None, proof="none", remedy="")
    return next((held for held in holdings(checkpoint) if held.file == file), unknown)


def folder_holdings(folder: Path) -> Iterator[CachedFile]:
    """The files that a folder's SHA256SUMS lists. Raises CheckpointError where it has none."""
    for filename, sha256 in read_sums(folder).items():
        yield CachedFile(
            name=str(folder),
            file=folder / filename,
            sha256=sha256,
            proof="SHA256SUMS",
            remedy="fetch the folder again",
        )


def read_through(holding: CachedFile, advance: Callable[[int], None]) -> VerifyResult:
    """Hash a file whatever was remembered of it, and remember what it is now."""
    problem = None
    try:
        found = digest(holding.file, advance)
        size = holding.file.stat().st_size
    except OSError as error:
        problem = f"{holding.file} cannot be read ({error.strerror}); {holding.remedy}"
        return VerifyResult(holding=holding, bytes=0, sha256=None, problem=problem)
    cache.remember(holding.file, found)
    if holding.sha256 not in (None, found):
        problem = (
            f"{holding.file} has SHA-256 {found}, but {holding.sha256} is expected; "
            f"{holding.remedy}"
        )
    return VerifyResult(holding=holding, bytes=size, sha256=found, problem=problem)


def read_sums(folder: Path) -> dict[str, str]:
    """The digest of each file that a folder's SHA256SUMS names; CheckpointError where it cannot."""
    sums = folder / SUMS_FILE
    try:
        lines = [_LINE.fullmatch(line) for line in sums.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{folder} has no readable {SUMS_FILE}, so nothing says what its files should be; give "
            "a folder that `deit-zoo weights fetch NAME --to DIR` made"
        ) from error
    found = {line[2]: line[1] for line in lines if line is not None}
    if not found or len(found) < len(lines):
        raise CheckpointError(
            f"{sums} is not what `sha256sum` writes; fetch the folder again with "
            "`deit-zoo weights fetch NAME --to DIR`"
        )
    return found
