"""For maintainers: ask the Hub for commit, size and digest of its files, and write them down.

A revision that is pinned stays; a digest that is pinned must be what the Hub says.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from huggingface_hub import HfApi, constants
from msgspec import Meta

from deit_zoo.errors import (
    CheckpointError,
    DownloadError,
    FormatError,
    IntegrityError,
    OfflineError,
)
from deit_zoo.files import as_record, read_json, write_whole, writing
from deit_zoo.manifest import Source, read_manifest
from deit_zoo.version import __version__
from deit_zoo.weights.cache import Commit, Sha256
from deit_zoo.weights.download import UnavailableError
from deit_zoo.weights.hub_files import LIBRARY, describe, hub_error_context


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """What the Hub states of a file."""

    revision: Commit
    sha256: Sha256 | None
    bytes: Annotated[int, Meta(ge=0)] | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """One fact of the manifest that is now another."""

    name: str
    fact: str
    before: str | int | None
    after: str | int


def pin(
    path: Path,
    names: Sequence[str] = (),
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Change]:
    """Pin every Hub file of these records, or of all. Returns what changed in the manifest.

    Raises IntegrityError where the Hub contradicts what is pinned, DownloadError with each reason
    where it cannot tell; then nothing is written.
    """
    records = read_manifest(path)
    if unknown := [name for name in names if name not in records]:
        raise CheckpointError(f"{path} has no record of {', '.join(unknown)}; name others")
    if constants.HF_HUB_OFFLINE:
        raise OfflineError("pin asks the Hub, but HF_HUB_OFFLINE is set; unset it")
    data = read_json(path)
    sources = [
        (name, fields)
        for name in names or records
        for fields in data["checkpoints"][name]["sources"]
        if fields["kind"] == "hub"
    ]
    changes: list[Change] = []
    failed: dict[str, list[str]] = {}  # the names of each reason
    for done, (name, fields) in enumerate(sources, start=1):
        try:
            stated = hub_facts(Source(**fields))
        except UnavailableError as error:
            failed.setdefault(str(error), []).append(name)
        else:
            changes += _update(name, fields, stated)
        progress(done, len(sources))
    if failed:
        reasons = "; ".join(f"{', '.join(names)}: {reason}" for reason, names in failed.items())
        raise DownloadError(
            f"nothing was pinned: the Hub did not tell of all ({reasons}); mend this or name others"
        )
    if changes:
        text = json.dumps(data, indent=2, ensure_ascii=False) + "\n"
        with writing(path, "with --manifest", CheckpointError):
            write_whole(path, text.encode())
    return changes


def hub_facts(source: Source) -> dict[str, Any]:
    """What the Hub states of a file, at its pinned commit or else at `main`."""
    api = HfApi(library_name=LIBRARY, library_version=__version__)
    revision = source.revision or "main"
    with hub_error_context(source, revision):
        repository = api.model_info(str(source.repo_id), revision=revision, files_metadata=True)
    for file in repository.siblings or ():
        if file.rfilename == source.filename:
            sha256 = file.lfs.sha256 if file.lfs else None
            facts = {"revision": repository.sha, "sha256": sha256, "bytes": file.size}
            try:
                return asdict(as_record(facts, Facts, "what it states"))
            except FormatError as error:
                raise UnavailableError(str(error)) from error
    raise UnavailableError(f"{describe(source)} has no file {source.filename}")


def _update(name: str, fields: dict[str, Any], stated: dict[str, Any]) -> Iterator[Change]:
    """Write what the Hub states into a source that did not know it."""
    for fact, after in stated.items():
        before = fields[fact]
        if after is None or before == after:
            continue
        if before is not None:
            raise IntegrityError(
                f"{name} is pinned to {fact} {before}, but the Hub's {fields['repo_id']} states "
                f"{after}; nothing was written: find out which is right, and edit the record"
            )
        fields[fact] = after
        yield Change(name=name, fact=fact, before=before, after=after)
