"""Where a checkpoint's bytes come from: the package, the Hub, the original URL, in that order.

A source that fails says why and the next is tried. What is cached and verified costs no request
and no write. A file with other bytes than its digest promises is never returned.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

import requests
from huggingface_hub import (
    constants,
    get_hf_file_metadata,
    hf_hub_download,
    hf_hub_url,
    try_to_load_from_cache,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from deit_zoo.errors import CheckpointError, DownloadError, IntegrityError, OfflineError, redact
from deit_zoo.files import digest, digest_of_blob, is_inside
from deit_zoo.manifest import Checkpoint, Source, is_repo_id
from deit_zoo.terminal import Bar
from deit_zoo.weights import cache, hub_answers, web
from deit_zoo.weights.cache import Commit, GitSha1, KnownFile, Sha256
from deit_zoo.weights.config import CONFIG_FILE, WEIGHT_FILES
from deit_zoo.weights.places import WEIGHTS_ENVIRONMENT, carried_folders
from deit_zoo.weights.reach import Reach

LIBRARY = "deit_zoo"
ATTEMPTS, BACKOFF_SECONDS = 5, 1.0
CONNECT_ATTEMPTS = 2  # a refused connection or an unknown name seldom mends itself
LARGEST = 8 << 30  # bytes of a URL that states no size; CaiT-M48 has 1.4 GB
RETRIED = frozenset((429, 500, 502, 503, 504))
# httpx's base class of errors, under whichever name this huggingface_hub imports it.
HTTP_ERROR: type[Exception] = next(
    base for base in HfHubHTTPError.__mro__ if base.__name__ == "HTTPError"
)


_SHA1, _SHA256 = re.compile("[0-9a-f]{40}"), re.compile("[0-9a-f]{64}")


class UnavailableError(Exception):
    """A source has not got the file, and why; never leaves this module."""


class NoFileError(DownloadError):
    """A repository has no file of this name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stated:
    """What the Hub states of a file: the commit that holds it, its digest where it is large, and
    where it is small the SHA-1 that git gives it."""

    commit: Commit
    sha256: Sha256 | None
    git_sha1: GitSha1 | None = None


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
    if constants.HF_HUB_OFFLINE:
        converted = cache.folder() / "converted"
        searched = [_hf_folder(s) if s.kind == "hub" else converted for s in record.sources]
        searched += carried_folders(record.name)
        raise wrong or OfflineError(
            f"the weights of {record.name} are not on this machine and HF_HUB_OFFLINE is set; "
            f"looked at {', '.join(map(str, searched))}; where there is a network "
            f"type `deit-zoo weights fetch {record.name} --to DIR`, bring DIR here and set "
            f"{WEIGHTS_ENVIRONMENT}=DIR"
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
                    return _from_hub(source)
                return _from_url(record.name, source)
            except UnavailableError as error:
                reasons.append(f"{describe(source)}: {error}")
    raise DownloadError(
        f"the weights of {record.name} could not be had from any source "
        f"({'; '.join(reasons)}); mend one of these and try again, or on another machine type "
        f"`deit-zoo weights fetch {record.name} --to DIR`, bring DIR here and set "
        f"{WEIGHTS_ENVIRONMENT}=DIR"
    )


def _cached_file(record: Checkpoint) -> tuple[KnownFile | None, IntegrityError | None]:
    """The verified file if it is on this machine, without a request; or what is wrong with it."""
    wrong = None
    for source in record.sources:
        file, problem = _checked(cached_source(record.name, source))
        if file is not None and file.sha256 is not None:
            return file, None
        wrong = problem or wrong
    return None, wrong


def _checked(file: KnownFile | None) -> tuple[KnownFile | None, IntegrityError | None]:
    """The file if it has the digest that it must have, or what is wrong with it.

    The Hub's cache names a small file by the SHA-1 that git gives it: so it is known too.
    """
    try:
        if file is not None and file.sha256 is not None:
            cache.check(file.path, file.sha256)
        elif file is not None and _SHA1.fullmatch(name := file.path.resolve().name):
            sha256 = digest_of_blob(file.path, name)
            return replace(file, sha256=sha256, proof="hub digest"), None
    except IntegrityError as error:
        return None, error
    return file, None


def _from_hub(source: Source) -> KnownFile:
    """A file of the Hub, at the pinned commit or at the one that `main` is now.

    Without a pinned digest the one that the Hub states is checked, and recorded: should the Hub
    ever state another, that is an IntegrityError.
    """
    if source.revision is not None and source.sha256 is not None:
        stated = Stated(commit=source.revision, sha256=source.sha256)
    else:
        stated = _stated_by_hub(source)
    return _checked_download(source, stated, describe(source))


def _from_url(name: str, source: Source) -> KnownFile:
    """The original file, its prefix checked, converted once to safetensors in the zoo's cache."""
    url = str(source.url)
    original = cache.folder() / "originals" / name / Path(urlsplit(url).path).name
    try:
        original.parent.mkdir(parents=True, exist_ok=True)
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
        converted.parent.mkdir(parents=True, exist_ok=True)

        # Imports torch, which nothing else here needs.
        from deit_zoo.weights.formats import convert_pickle

        sha256 = convert_pickle(original, converted, original_sha256)
    except OSError as error:
        raise UnavailableError(f"{error.strerror or error}") from error
    except CheckpointError as error:
        original.unlink()
        raise UnavailableError(str(error)) from error
    cache.check(converted, sha256)
    about = Converted(original_sha256=original_sha256, sha256=sha256)
    cache.write_record("converted", url, asdict(about))
    original.unlink()
    return KnownFile(path=converted, sha256=sha256, proof=source.proof)


def fetch_address(text: str) -> KnownFile:
    """The file of `hf://org/repo[@revision][/file]`, with the digest that the Hub states.

    Where no file is named it is the first of WEIGHT_FILES that there is. A commit never changes and
    is not asked for again; anything else is, unless offline. Only then a file of unknown digest is
    taken.
    """
    source = _source_of(text)
    sources = [source] if source.filename else [replace(source, filename=n) for n in WEIGHT_FILES]
    missing: DownloadError | OfflineError | None = None
    for one in sources:
        try:
            return _fetch_source(one, text)
        except (NoFileError, OfflineError) as error:
            missing = missing or error
    assert missing is not None, "an address without a file"
    raise missing


def fetch_config(text: str, weights: Path) -> None:
    """Put `config.json` beside the weights that an address gave, where the repository has one.

    Raises DownloadError where the Hub does not say. Its cache remembers what a commit has not got.
    """
    source = _source_of(text)
    place = Path(source.filename or CONFIG_FILE).with_name(CONFIG_FILE).as_posix()
    # The cache has a folder for each commit.
    commit = next((part for part in reversed(weights.parts) if _SHA1.fullmatch(part)), "")
    source = replace(source, filename=place, revision=commit)
    known = try_to_load_from_cache(str(source.repo_id), place, revision=commit)
    if isinstance(known, str) and (wrong := _checked(cached_source("", source))[1]):
        raise wrong
    if known is not None or constants.HF_HUB_OFFLINE or not commit:
        return
    try:
        _download(source, commit, again=False)  # so the cache learns that there is none
        _checked_download(source, _metadata(source), text)
    except UnavailableError as error:
        reason = None if _has_no_file(error) else str(error)
    else:
        return
    if reason is not None:
        raise DownloadError(f"{CONFIG_FILE} of {text} could not be fetched: {reason}; try again")


def _has_no_file(error: UnavailableError) -> bool:
    """Whether a repository is there, and the file is not."""
    cause = error.__cause__
    return isinstance(cause, EntryNotFoundError) and not isinstance(cause, LocalEntryNotFoundError)


def _source_of(text: str) -> Source:
    """What an address means; without a file where none is named. Raises CheckpointError."""
    match = re.fullmatch(r"hf://([^/@]+/[^/@]+)(?:@([^/]+))?(?:/(.+))?", text)
    if match is None:
        raise CheckpointError(
            f"checkpoint {text!r} is no Hub address; write hf://ORG/REPO, "
            "hf://ORG/REPO@REVISION or hf://ORG/REPO@REVISION/FILE"
        )
    repo_id, revision, filename = match.groups()
    check_repo_id(repo_id)
    for part in filter(None, (revision, filename)):
        if not is_inside(part):
            raise CheckpointError(
                f"checkpoint {text!r}: {part!r} is no revision or file of the Hub"
            )
    return Source(kind="hub", repo_id=repo_id, filename=filename, revision=revision or "main")


def _fetch_source(source: Source, text: str) -> KnownFile:
    wrong = None
    if constants.HF_HUB_OFFLINE or _SHA1.fullmatch(str(source.revision)):
        file, wrong = _checked(cached_source("", source))
        if file is not None and (file.sha256 is not None or constants.HF_HUB_OFFLINE):
            return file
    if constants.HF_HUB_OFFLINE:
        raise wrong or OfflineError(
            f"{text} is not on this machine and HF_HUB_OFFLINE is set; looked at "
            f"{_hf_folder(source)}; fetch it where there is a network"
        )
    try:
        if reason := Reach([_server(source)]).problem(_server(source)):
            raise UnavailableError(reason)
        return _checked_download(source, _metadata(source), text)
    except UnavailableError as error:
        reason, is_missing = str(error), _has_no_file(error)
    # Not from the error: its traceback would show whole addresses.
    kind = NoFileError if is_missing else DownloadError
    raise kind(f"{text} could not be fetched: {reason}; check it and type it again")


def check_repo_id(repo_id: str) -> None:
    """Raises CheckpointError for what the Hub has no repository of, before it is asked."""
    if not is_repo_id(repo_id):
        raise CheckpointError(
            f"no repository is named {repo_id!r:.120}; give ORG/NAME as the Hub has it"
        )


def download(url: str, file: Path) -> None:
    """Bring a URL to a file through a `.part` that a later call continues from.

    Raises UnavailableError with the last reason when the attempts are used up.
    """
    for attempt in range(1, ATTEMPTS + 1):
        try:
            _continue(url, file)
        except _InterruptedError as error:
            if attempt >= error.attempts:
                raise UnavailableError(f"{error} ({attempt} attempts)") from error
            backoff = BACKOFF_SECONDS * 2 ** (attempt - 1)
            time.sleep(backoff if error.pause is None else error.pause)
        else:
            return


def describe(source: Source) -> str:
    """Where a source is, in words."""
    return str(source.url) if source.kind == "url" else f"the Hub's {source.repo_id}"


def _server(source: Source) -> str:
    """The address whose server has a source."""
    return str(source.url) if source.kind == "url" else constants.ENDPOINT


class _InterruptedError(Exception):
    """A download that another attempt may complete, after the pause that the server asks for."""

    def __init__(self, reason: str, *, pause: float | None = None, attempts: int = ATTEMPTS):
        super().__init__(reason)
        self.pause, self.attempts = pause, attempts


def _continue(url: str, file: Path) -> None:
    """One attempt, from where the last one ended if the server still has the same file."""
    part, etag = file.with_name(f"{file.name}.part"), file.with_name(f"{file.name}.etag")
    tag = etag.read_bytes() if part.exists() and etag.exists() else b""
    have = part.stat().st_size if re.fullmatch(rb"[!-~]+", tag) else 0
    headers = {"Range": f"bytes={have}-", "Accept-Encoding": "identity"}
    if have:
        headers["If-Range"] = tag.decode("ascii")
    try:
        with web.get(url, headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT) as (response, body):
            status = f"{response.status_code} {response.reason}"
            if response.status_code == 416 and have:
                if response.headers.get("Content-Range") != f"bytes */{have}":
                    part.unlink()  # longer than the file: begin again
                    raise _InterruptedError(status, pause=0.0)
            elif response.status_code in RETRIED:
                raise _InterruptedError(status, pause=web.asked_pause(response.headers))
            elif response.status_code >= 400:
                raise UnavailableError(status)
            else:
                _receive(response, body, part, etag, have)
    except requests.TooManyRedirects as error:
        raise UnavailableError("it redirects without end") from error
    except web.FINAL as error:
        raise UnavailableError(web.reason_of(error)) from error
    except requests.ConnectionError as error:
        raise _InterruptedError(web.reason_of(error), attempts=CONNECT_ATTEMPTS) from error
    except requests.RequestException as error:
        raise _InterruptedError(web.reason_of(error)) from error
    part.replace(file)
    etag.unlink(missing_ok=True)


def _receive(
    response: requests.Response, body: Iterator[bytes], part: Path, etag: Path, have: int
) -> None:
    if (packing := response.headers.get("Content-Encoding", "identity")) != "identity":
        raise UnavailableError(f"it answers packed by {packing:.40}, which was not asked for")
    if response.status_code != 206 or not have:
        have = 0  # the server sends the whole file
        part.unlink(missing_ok=True)
        etag.unlink(missing_ok=True)
        if tag := response.headers.get("ETag"):
            etag.write_text(tag, encoding="utf-8")
    length = web.content_length(response)
    total = None if length is None else have + length
    with part.open("ab") as stream, Bar(part.stem, size=total, done=have, in_bytes=True) as bar:
        for piece in body:
            stream.write(piece)
            bar.advance(len(piece))
            if stream.tell() > LARGEST:
                raise UnavailableError(f"it is larger than {LARGEST >> 30} GiB")
    size = part.stat().st_size
    if total is not None and size != total:
        raise _InterruptedError(f"the body ended after {size} of {total} bytes")


def cached_source(name: str, source: Source) -> KnownFile | None:
    """A source's file on this machine and the digest that it must have; None where it is not here.

    The digest is the manifest's, or the one that the Hub stated when the file came, or the name
    that the Hub's cache gives a large file. A cache that was copied without its links has none.
    """
    if source.kind == "hub":
        stated = cache.read_record("stated", _key(source), Stated)
        revision = source.revision or "main"
        if stated is not None and not _SHA1.fullmatch(revision):
            revision = stated.commit
        path = _from_hf_cache(source, revision)
        sha256 = source.sha256 or (stated.sha256 if stated is not None else None)
        if path is not None and sha256 is None and _SHA256.fullmatch(path.resolve().name):
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


def _from_hf_cache(source: Source, revision: str) -> Path | None:
    file = try_to_load_from_cache(str(source.repo_id), str(source.filename), revision=revision)
    return Path(file) if isinstance(file, str) and Path(file).is_file() else None


def _stated_by_hub(source: Source) -> Stated:
    """Commit and digest that the Hub states now; the same as ever, or IntegrityError."""
    stated = _metadata(source)
    before = cache.read_record("stated", _key(source), Stated)
    if before is not None and stated.sha256 not in (None, before.sha256):
        raise IntegrityError(
            f"{describe(source)} now states SHA-256 {stated.sha256} for {source.filename}, but "
            f"stated {before.sha256} before; if the change is meant, remove "
            f"{cache.folder() / 'stated'}"
        )
    return before if before is not None and before.commit == stated.commit else stated


def _metadata(source: Source) -> Stated:
    revision = source.revision or "main"
    url = hf_hub_url(str(source.repo_id), str(source.filename), revision=revision)
    with hub_error_context(source, revision):
        metadata = get_hf_file_metadata(url, library_name=LIBRARY, retry_on_errors=True)
    # The ETag of a large file is its SHA-256, of a small one its git object's SHA-1.
    commit, etag = metadata.commit_hash or "", metadata.etag or ""
    if not _SHA1.fullmatch(commit):
        raise UnavailableError("it does not answer as a Hub does: check HF_ENDPOINT")
    if not (_SHA1.fullmatch(etag) or _SHA256.fullmatch(etag)):
        raise UnavailableError(f"it states no digest ({etag!r:.80}): check HF_ENDPOINT")
    return Stated(
        commit=commit,
        sha256=etag if _SHA256.fullmatch(etag) else None,
        git_sha1=etag if _SHA1.fullmatch(etag) else None,
    )


def _download(source: Source, revision: str, again: bool) -> Path:
    """The file through huggingface_hub; a line that breaks or a store that is ill gets more."""
    for attempt in range(1, ATTEMPTS):
        try:
            return _download_once(source, revision, again)
        except UnavailableError as error:
            if not _may_pass(error.__cause__):
                raise
        time.sleep(BACKOFF_SECONDS * 2 ** (attempt - 1))
    return _download_once(source, revision, again)


def _download_once(source: Source, revision: str, again: bool) -> Path:
    with hub_error_context(source, revision):
        return Path(
            hf_hub_download(
                str(source.repo_id),
                str(source.filename),
                revision=revision,
                library_name=LIBRARY,
                force_download=again,
            )
        )


def _may_pass(error: BaseException | None) -> bool:
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in RETRIED
    # After a time-out huggingface_hub has tried again itself.
    kind = type(error).__name__
    return isinstance(error, HTTP_ERROR) and not kind.endswith(("TooManyRedirects", "Timeout"))


def _checked_download(source: Source, stated: Stated, where: str) -> KnownFile:
    """The file with the stated digest; a wrong one is dropped, and fetched once more.

    The one that the manifest pins counts more. Of a small file the Hub states no SHA-256: the one
    that it had when it came from this commit is recorded; then it had git's SHA-1.
    """
    commit = replace(source, revision=stated.commit)
    recorded = cache.read_record("stated", _key(commit), Stated)
    expected = source.sha256 or stated.sha256 or (recorded and recorded.sha256)
    for again in (False, True):
        path = _download(source, stated.commit, again)
        try:
            sha256 = expected or digest_of_blob(path, stated.git_sha1)
            cache.check(path, sha256)
        except IntegrityError:
            actual = digest(path)
            _drop(path)
            continue
        if source.sha256 is None:
            known = asdict(Stated(commit=stated.commit, sha256=sha256))
            for revision in {source.revision, stated.commit}:
                cache.write_record("stated", _key(replace(source, revision=revision)), known)
        return KnownFile(path=path, sha256=sha256, proof=source.proof)
    raise IntegrityError(
        f"{where} gave a file of SHA-256 {actual} twice, but "
        f"{expected or f'one that git names {stated.git_sha1}'} is expected; "
        "try another network or mirror (HF_ENDPOINT)"
    )


def _drop(file: Path) -> None:
    """Remove a wrong file of the Hub's cache; what a link there leads to elsewhere is not ours."""
    target = Path(os.path.realpath(file))
    file.unlink(missing_ok=True)
    if target.is_relative_to(os.path.realpath(constants.HF_HUB_CACHE)):
        target.unlink(missing_ok=True)


class _Masked(logging.Filter):
    """Lets every record pass, without its secrets."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = redact(record.getMessage()), None
        return True


_MASKED = _Masked()


@contextmanager
def hub_error_context(source: Source, revision: str) -> Iterator[None]:
    """Within it, what huggingface_hub raises becomes one plain reason, and what it logs is masked.

    It logs whole addresses, with what they ask by. What it is answered is checked first.
    """
    for handler in logging.getLogger("huggingface_hub").handlers:
        handler.addFilter(_MASKED)
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


def _hf_folder(source: Source) -> Path:
    name = f"models--{str(source.repo_id).replace('/', '--')}"
    return Path(constants.HF_HUB_CACHE) / name


def _key(source: Source) -> str:
    at = f"@{source.revision}" if source.revision else ""
    return f"{source.repo_id}{at}/{source.filename}"
