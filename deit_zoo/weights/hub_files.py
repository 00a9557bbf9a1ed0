"""A file of the Hub, with the digest that the Hub states; what it answers badly is a sentence."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from deit_zoo.errors import CheckpointError, IntegrityError
from deit_zoo.files import digest, digest_of_blob, write_whole
from deit_zoo.manifest import Source
from deit_zoo.weights import cache, hub_answers, web
from deit_zoo.weights.cache import Commit, KnownFile, Sha256
from deit_zoo.weights.download import ATTEMPTS, BACKOFF_SECONDS, RETRIED, UnavailableError
from deit_zoo.weights.places import repository_folder

LIBRARY = "deit_zoo"
# httpx's base class of errors, under whichever name this huggingface_hub imports it.
HTTP_ERROR: type[Exception] = next(
    base for base in HfHubHTTPError.__mro__ if base.__name__ == "HTTPError"
)
SHA1, SHA256 = re.compile("[0-9a-f]{40}"), re.compile("[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Stated:
    """What the Hub states of a file: the commit that holds it, its digest where it is large, and
    where it is small the SHA-1 that git gives it."""

    commit: str
    sha256: str | None
    git_sha1: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Recorded:
    """The commit that a file came from, and the digest that it had."""

    commit: Commit
    sha256: Sha256


def describe(source: Source) -> str:
    """Where a source is, in words."""
    return str(source.url) if source.kind == "url" else f"the Hub's {source.repo_id}"


def key_of(source: Source) -> str:
    """What a file of the Hub is remembered by."""
    at = f"@{source.revision}" if source.revision else ""
    return f"{source.repo_id}{at}/{source.filename}"


def _metadata(source: Source) -> Stated:
    revision = source.revision or "main"
    url = hf_hub_url(str(source.repo_id), str(source.filename), revision=revision)
    with hub_error_context(source, revision):
        metadata = get_hf_file_metadata(url, library_name=LIBRARY, retry_on_errors=True)
    # The ETag of a large file is its SHA-256, of a small one its git object's SHA-1.
    commit, etag = metadata.commit_hash or "", metadata.etag or ""
    if not SHA1.fullmatch(commit):
        raise UnavailableError("it does not answer as a Hub does: check HF_ENDPOINT")
    if SHA1.fullmatch(revision) and commit != revision:
        raise UnavailableError(f"it answers commit {revision} with {commit}: check HF_ENDPOINT")
    if not (SHA1.fullmatch(etag) or SHA256.fullmatch(etag)):
        raise UnavailableError(f"it states no digest ({etag!r:.80}): check HF_ENDPOINT")
    return Stated(
        commit=commit,
        sha256=etag if SHA256.fullmatch(etag) else None,
        git_sha1=etag if SHA1.fullmatch(etag) else None,
    )


def checked_download(source: Source, where: str) -> KnownFile:
    """The file with its digest; a wrong one is dropped, and fetched once more.

    The digest that the manifest pins counts, else the one that the file had when it first came, of
    this commit, or of any where the manifest leaves the commit open; else what the Hub states now.
    """
    if source.revision is not None and source.sha256 is not None:
        stated = Stated(commit=source.revision, sha256=source.sha256)
    else:
        stated = _metadata(source)
    key = key_of(source if source.revision is None else replace(source, revision=stated.commit))
    recorded = cache.read_record("stated", key, Recorded) if source.sha256 is None else None
    meant = f"if the change is meant, remove {cache.folder() / 'stated'}"
    if recorded is not None and stated.sha256 not in (None, recorded.sha256):
        raise IntegrityError(
            f"{where} now states SHA-256 {stated.sha256} for {source.filename}, but stated "
            f"{recorded.sha256} before; {meant}"
        )
    expected = source.sha256 or (recorded.sha256 if recorded else stated.sha256)
    for again in (False, True):
        path = hub_download(source, stated.commit, again)
        try:
            sha256 = expected or digest_of_blob(path, stated.git_sha1)
            cache.check(path, sha256)
        except IntegrityError:
            actual = digest(path)
            _drop(path)
            continue
        except (CheckpointError, OSError) as error:  # another user's, who keeps it
            raise UnavailableError(str(error)) from error
        if source.sha256 is None:
            known = asdict(Recorded(commit=stated.commit, sha256=sha256))
            for revision in {source.revision, stated.commit}:
                cache.write_record("stated", key_of(replace(source, revision=revision)), known)
        _write_ref(source, stated.commit)
        return KnownFile(path=path, sha256=sha256, proof=source.proof)
    raise IntegrityError(
        f"{where} gave a file of SHA-256 {actual} twice, but "
        f"{expected or f'one that git names {stated.git_sha1}'} is expected; "
        f"try another network or mirror (HF_ENDPOINT){f', or, {meant}' if recorded else ''}"
    )


def _write_ref(source: Source, commit: str) -> None:
    """Let the Hub's cache say which commit a branch or a tag is, so that it is found offline.

    huggingface_hub is asked for the file by its commit, and writes none.
    """
    revision = source.revision or "main"
    if revision != commit:
        file = repository_folder(str(source.repo_id)) / "refs" / revision
        with suppress(OSError):  # a cache that somebody else fills
            file.parent.mkdir(parents=True, exist_ok=True)
            write_whole(file, commit.encode())


def hub_download(source: Source, revision: str, again: bool) -> Path:
    """The file through huggingface_hub; a line that breaks or a store that is ill gets more."""
    repo_id, filename = str(source.repo_id), str(source.filename)
    attempt = 1
    while True:
        try:
            with hub_error_context(source, revision):
                file = hf_hub_download(
                    repo_id,
                    filename,
                    revision=revision,
                    library_name=LIBRARY,
                    force_download=again,
                )
                return Path(file)
        except UnavailableError as error:
            if attempt == ATTEMPTS or not _may_pass(error.__cause__):
                raise
        time.sleep(BACKOFF_SECONDS * 2 ** (attempt - 1))
        attempt += 1


def _may_pass(error: BaseException | None) -> bool:
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in RETRIED
    # After a time-out huggingface_hub has tried again itself.
    kind = type(error).__name__
    return isinstance(error, HTTP_ERROR) and not kind.endswith(("TooManyRedirects", "Timeout"))


def _drop(file: Path) -> None:
    """Remove a wrong file of the Hub's cache; what a link there leads to elsewhere is not ours.

    Raises UnavailableError where it is another user's, who alone can remove it.
    """
    target = Path(os.path.realpath(file))
    try:
        file.unlink(missing_ok=True)
        if target.is_relative_to(os.path.realpath(constants.HF_HUB_CACHE)):
            target.unlink(missing_ok=True)
    except OSError as error:
        raise UnavailableError(
            f"{file} is wrong and cannot be removed ({error.strerror}); let its owner remove it, "
            "or set HF_HOME to a folder of your own"
        ) from error


def has_no_file(error: UnavailableError) -> bool:
    """Whether a repository is there, and the file is not."""
    cause = error.__cause__
    return isinstance(cause, EntryNotFoundError) and not isinstance(cause, LocalEntryNotFoundError)


def _mask(record: logging.LogRecord) -> bool:
    """Let every record pass, as long as a person reads, without its secrets."""
    record.msg, record.args = web.shortened(record.getMessage()), None
    return True


@contextmanager
def hub_error_context(source: Source, revision: str) -> Iterator[None]:
    """Within it, what huggingface_hub raises becomes one plain reason, and what it logs is masked.

    It logs whole addresses, with what they ask by. What it is answered is checked first.
    """
    for handler in logging.getLogger("huggingface_hub").handlers:
        handler.addFilter(_mask)
    hub_answers.check_from_now_on()
    try:
        yield
    except GatedRepoError as error:
        raise UnavailableError(
            "it is gated: ask for access on its page, then set HF_TOKEN"
        ) from error
    except RepositoryNotFoundError as error:
        raise UnavailableError("no such repository, or a private one: set HF_TOKEN") from error
    except RevisionNotFoundError as error:
        raise UnavailableError(f"it has no revision {revision}") from error
    except LocalEntryNotFoundError as error:
        raise UnavailableError(web.reason_of(error.__cause__ or error)) from error
    except EntryNotFoundError as error:
        raise UnavailableError(f"it has no file {source.filename}") from error
    except (OSError, RuntimeError, ValueError, HTTP_ERROR) as error:  # hf_xet: RuntimeError
        raise UnavailableError(web.reason_of(error.__cause__ or error)) from error
    except Exception as error:  # what is no answer of a Hub is taken apart as if it were one
        raise UnavailableError("it does not answer as a Hub does: check HF_ENDPOINT") from error
