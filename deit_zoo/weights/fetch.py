"""Where a checkpoint's bytes come from: the package, the Hub, the original URL, in that order.

A source that fails says why and the next is tried. What is cached and verified costs no request
and no write. A file with other bytes than its digest promises is never returned.
"""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import unquote, urlsplit

from deit_zoo.errors import CheckpointError, DownloadError, IntegrityError, OfflineError, ZooError
from deit_zoo.files import CONFIG_FILE, WEIGHT_FILES, digest, digest_of_blob, is_inside
from deit_zoo.manifest import Checkpoint, Source, is_repo_id
from deit_zoo.weights import cache
from deit_zoo.weights.cache import KnownFile, Sha256
from deit_zoo.weights.download import UnavailableError, download
from deit_zoo.weights.hub_constants import constants, try_to_load_from_cache
from deit_zoo.weights.hub_files import (
    SHA1,
    SHA256,
    Recorded,
    checked_download,
    describe,
    has_no_file,
    hub_download,
    key_of,
)
from deit_zoo.weights.places import WEIGHTS_ENVIRONMENT, carried_folders, repository_folder
from deit_zoo.weights.reach import Reach


class NoFileError(DownloadError):
    """A repository has no file of this name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Converted:
    """What an original file became; both digests name the file in the cache and prove it."""

    original_sha256: Sha256
    sha256: Sha256


def fetch_checkpoint(record: Checkpoint) -> KnownFile:
    """A verified safetensors file of a record, fetched if need be.

    Raises OfflineError where nothing is cached and the network may not be used, DownloadError with
    the reason of each source, IntegrityError with both digests where bytes are wrong twice.
    """
    file, wrong = _cached_file(record)
    if file is not None:
        return file
    carry = (
        f"type `deit-zoo weights fetch {record.name} --to DIR`, bring DIR here and set "
        f"{WEIGHTS_ENVIRONMENT}=DIR"
    )
    if constants.HF_HUB_OFFLINE:
        converted = cache.folder() / "converted"
        searched = [
            repository_folder(str(s.repo_id)) if s.kind == "hub" else converted
            for s in record.sources
        ]
        searched += carried_folders(record.name)
        raise wrong or OfflineError(
            f"the weights of {record.name} are not on this machine and HF_HUB_OFFLINE is set; "
            f"looked at {', '.join(map(str, searched))}; where there is a network {carry}"
        )
    reasons = [str(wrong)] if wrong else []
    reach = Reach(_server(source) for source in record.sources)
    with cache.one_at_a_time(record.name):
        file, _ = _cached_file(record)  # another process may have fetched it meanwhile
        if file is not None:
            return file
        for source in record.sources:
            try:
                if reason := reach.problem(_server(source)):
                    raise UnavailableError(reason)
                if source.kind == "hub":
                    return checked_download(source, describe(source))
                return _from_url(record.name, source)
            except UnavailableError as error:
                reasons.append(f"{describe(source)}: {error}")
            except IntegrityError as error:
                raise IntegrityError("; before it: ".join([str(error), *reasons])) from None
    raise DownloadError(
        f"the weights of {record.name} could not be had from any source "
        f"({'; '.join(reasons)}); put one of these right and try again, or on another machine "
        f"{carry}"
    )


def _cached_file(record: Checkpoint) -> tuple[KnownFile | None, ZooError | None]:
    """The verified file if it is on this machine, without a request; or what is wrong with it."""
    wrong = None
    for source in record.sources:
        file, problem = _checked(cached_source(record.name, source))
        if file is not None and file.sha256 is not None:
            return file, None
        wrong = problem or wrong
    return None, wrong


def _checked(file: KnownFile | None) -> tuple[KnownFile | None, ZooError | None]:
    """The file if it can be read and has the digest that it must have, or what is wrong with it.

    The Hub's cache names a small file by the SHA-1 that git gives it: so it is known too.
    """
    try:
        if file is not None:
            cache.check(file.path, file.sha256)
            if file.sha256 is None and SHA1.fullmatch(name := file.path.resolve().name):
                sha256 = digest_of_blob(file.path, name)
                return replace(file, sha256=sha256, proof="hub digest"), None
    except (IntegrityError, CheckpointError) as error:
        return None, error
    return file, None


def _from_url(name: str, source: Source) -> KnownFile:
    """The original file, its prefix checked, converted once to safetensors in the zoo's cache."""
    url = str(source.url)
    original = cache.folder() / "originals" / name / Path(urlsplit(url).path).name
    try:
        cache.make_folder(original.parent)
        for attempt in (1, 2):
            if not original.is_file():  # else a process was ended before it could convert it
                download(url, original)
            original_sha256 = digest(original)
            if original_sha256.startswith(source.sha256_prefix or ""):
                break
            original.unlink()
            if attempt == 2:
                raise IntegrityError(
                    f"{url} gave a file of SHA-256 {original_sha256} twice, but one that begins "
                    f"with {source.sha256_prefix} is expected; try another network"
                )
        converted = _converted_file(name, original_sha256)
        cache.make_folder(converted.parent)

        # Imports torch, which nothing else here needs.
        from deit_zoo.weights.formats import read_state, write_tensors

        sha256 = write_tensors(read_state(original, sha256=original_sha256).tensors, converted)
        cache.share(converted, but=~0o644)
    except OSError as error:
        parts = (error.filename, error.strerror or error)
        raise UnavailableError(": ".join(str(part) for part in parts if part)) from error
    except CheckpointError as error:
        _remove(original)
        raise UnavailableError(str(error)) from error
    cache.check(converted, sha256)
    cache.write_record("converted", url, {"original_sha256": original_sha256, "sha256": sha256})
    _remove(original)
    return KnownFile(path=converted, sha256=sha256, proof=source.proof)


def _remove(original: Path) -> None:
    with suppress(PermissionError):  # another user's, in a folder where each removes their own
        original.unlink()


def fetch_address(text: str) -> KnownFile:
    """The file of `hf://org/repo[@revision][/file]`, with the digest that the Hub states.

    Where no file is named it is the first of WEIGHT_FILES that there is. A commit never changes and
    is not asked for again; anything else is, unless offline. Only then a file of unknown digest is
    taken.
    """
    source = _source_of(text)
    sources = [source] if source.filename else [replace(source, filename=n) for n in WEIGHT_FILES]
    errors = []
    for one in sources:
        try:
            return _fetch_source(one, text)
        except (NoFileError, OfflineError) as error:
            errors.append(error)
    raise errors[0]


def fetch_config(text: str, weights: Path, filename: str = CONFIG_FILE) -> None:
    """Put a configuration beside the weights that an address gave, where the repository has one.

    Raises DownloadError where the Hub does not say. Its cache remembers what a commit has not got.
    """
    source = _source_of(text)
    place = Path(source.filename or filename).with_name(filename).as_posix()
    # The cache has a folder for each commit.
    commit = next((part for part in reversed(weights.parts) if SHA1.fullmatch(part)), "")
    source = replace(source, filename=place, revision=commit)
    known = try_to_load_from_cache(str(source.repo_id), place, revision=commit)
    if isinstance(known, str) and (wrong := _checked(cached_source("", source))[1]):
        raise wrong
    if known is not None or constants.HF_HUB_OFFLINE or not commit:
        return
    reason = None
    try:
        hub_download(source, commit, again=False)  # so the cache learns that there is none
        checked_download(source, text)
    except UnavailableError as error:
        reason = None if has_no_file(error) else str(error)
    if reason is not None:
        raise DownloadError(f"{filename} of {text} could not be fetched: {reason}; try again")


def _source_of(text: str) -> Source:
    """What an address means; without a file where none is named. Raises CheckpointError."""
    # As huggingface_hub spells revisions: these with their slashes, any other with %2F for each.
    revisions = r"refs/pr/\d+|refs/convert/[\w.-]+|[^/]+"
    match = re.fullmatch(rf"hf://([^/@]+/[^/@]+)(?:@({revisions}))?(?:/(.+))?", text)
    if match is None:
        raise CheckpointError(
            f"checkpoint {text!r} is no Hub address; write hf://ORG/REPO, "
            "hf://ORG/REPO@REVISION or hf://ORG/REPO@REVISION/FILE"
        )
    repo_id, revision, filename = match[1], unquote(match[2] or ""), match[3]
    check_repo_id(repo_id)
    for part in filter(None, (revision, filename)):
        if not is_inside(part):
            raise CheckpointError(
                f"checkpoint {text!r}: {part!r} is no revision or file of the Hub"
            )
    return Source(kind="hub", repo_id=repo_id, filename=filename, revision=revision or "main")


def _fetch_source(source: Source, text: str) -> KnownFile:
    wrong = None
    if constants.HF_HUB_OFFLINE or SHA1.fullmatch(str(source.revision)):
        file, wrong = _checked(cached_source("", source))
        if file is not None and (file.sha256 is not None or constants.HF_HUB_OFFLINE):
            return file
    if constants.HF_HUB_OFFLINE:
        raise wrong or OfflineError(
            f"{text} is not on this machine and HF_HUB_OFFLINE is set; looked at "
            f"{repository_folder(str(source.repo_id))}; fetch it where there is a network"
        )
    try:
        if reason := Reach([_server(source)]).problem(_server(source)):
            raise UnavailableError(reason)
        return checked_download(source, text)
    except UnavailableError as error:
        reason, is_missing = str(error), has_no_file(error)
    # Not from the error: its traceback would show whole addresses.
    kind = NoFileError if is_missing else DownloadError
    raise kind(f"{text} could not be fetched: {reason}; check it and type it again")


def check_repo_id(repo_id: str) -> None:
    """Raises CheckpointError for what the Hub has no repository of, before it is asked."""
    if not is_repo_id(repo_id):
        raise CheckpointError(
            f"no repository is named {repo_id!r:.120}; give ORG/NAME as the Hub has it"
        )


def _server(source: Source) -> str:
    """The address whose server has a source."""
    return str(source.url) if source.kind == "url" else constants.ENDPOINT


def cached_source(name: str, source: Source) -> KnownFile | None:
    """A source's file on this machine and the digest that it must have; None where it is not here.

    The digest is the manifest's, or the one that the Hub stated when the file came, or the name
    that the Hub's cache gives a large file. A cache that was copied without its links has none.
    """
    if source.kind == "hub":
        recorded = cache.read_record("stated", key_of(source), Recorded)
        revision = source.revision or "main"
        if recorded is not None and not SHA1.fullmatch(revision):
            revision = recorded.commit
        file = try_to_load_from_cache(str(source.repo_id), str(source.filename), revision=revision)
        path = Path(file) if isinstance(file, str) else None
        sha256 = source.sha256 or (recorded.sha256 if recorded is not None else None)
        if path is not None and sha256 is None and SHA256.fullmatch(path.resolve().name):
            sha256 = path.resolve().name
    else:
        converted = cache.read_record("converted", str(source.url), Converted)
        if converted is None or not converted.original_sha256.startswith(
            source.sha256_prefix or ""
        ):
            return None
        path = _converted_file(name, converted.original_sha256)
        sha256 = converted.sha256
    if path is None or not path.is_file():
        return None
    return KnownFile(path=path, sha256=sha256, proof=source.proof if sha256 else "none")


def _converted_file(name: str, original_sha256: str) -> Path:
    return cache.folder() / "converted" / f"{name}-{original_sha256[:12]}.safetensors"
