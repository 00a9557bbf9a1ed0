"""A file at an address, through a `.part` that a later call continues from."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

import requests

from deit_zoo.errors import FormatError
from deit_zoo.files import read_bytes
from deit_zoo.terminal import Bar
from deit_zoo.weights import web
from deit_zoo.weights.hub_constants import constants

ATTEMPTS, BACKOFF_SECONDS = 5, 1.0
CONNECT_ATTEMPTS = 2  # a refused connection or an unknown name seldom mends itself
LARGEST = 8 << 30  # bytes of a URL that states no size; CaiT-M48 has 1.4 GB
RETRIED = frozenset((429, 500, 502, 503, 504))
TAG_BYTES = 1 << 10
_STRONG_TAG = re.compile('"[!#-~]+"')
_SIZE = re.compile("[0-9]{1,18}")
_SPAN = re.compile("bytes ([0-9]{1,18})-[0-9]{1,18}/([0-9]{1,18})")


class UnavailableError(Exception):
    """A source has not got the file, and why; it never reaches a user."""


def download(url: str, file: Path) -> None:
    """Bring a URL to a file through a `.part` that a later call continues from.

    Raises UnavailableError with the last reason when the attempts are used up.
    """
    for attempt in range(1, ATTEMPTS + 1):
        try:
            _continue(url, file)
            return
        except _InterruptedError as error:
            if attempt >= error.attempts:
                raise UnavailableError(f"{error} ({attempt} attempts)") from error
            backoff = BACKOFF_SECONDS * 2 ** (attempt - 1)
            time.sleep(backoff if error.pause is None else error.pause)


class _InterruptedError(Exception):
    """A download that another attempt may complete, after the pause that the server asks for."""

    def __init__(self, reason: str, *, pause: float | None = None, attempts: int = ATTEMPTS):
        super().__init__(reason)
        self.pause, self.attempts = pause, attempts


def _continue(url: str, file: Path) -> None:
    """One attempt, from where the last one ended if the server still has the same file."""
    part, etag = file.with_name(f"{file.name}.part"), file.with_name(f"{file.name}.etag")
    have, tag = _begun(part, etag)
    headers = {"Accept-Encoding": "identity"}
    if have:
        headers |= {"Range": f"bytes={have}-", "If-Range": tag}
    else:
        _drop(part, etag)
    try:
        with web.get(url, headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT) as (response, body):
            status = f"{response.status_code} {response.reason}"
            if response.status_code == 416 and have:
                if response.headers.get("Content-Range") != f"bytes */{have}":
                    _drop(part, etag)  # longer than the file: begin again
                    raise _InterruptedError(status, pause=0.0)
            elif response.status_code in RETRIED:
                raise _InterruptedError(status, pause=web.asked_pause(response.headers))
            elif response.status_code not in (200, 206):
                raise UnavailableError(status)
            elif (packing := response.headers.get("Content-Encoding", "identity")) != "identity":
                raise UnavailableError(
                    f"it answers packed by {packing:.40}, which was not asked for"
                )
            elif response.headers.get("Content-Type", "").startswith("text/html"):
                raise UnavailableError("it answers with a web page (of a login?), not a file")
            elif response.status_code == 200:
                _drop(part, etag)
                if tag := response.headers.get("ETag", ""):
                    etag.write_text(tag, encoding="utf-8")
                stated = response.headers.get("Content-Length", "")
                _receive(body, part, int(stated) if _SIZE.fullmatch(stated) else None)
            elif (total := _continued(response, have, tag)) is not None:
                _receive(body, part, total)
            else:
                _drop(part, etag)
                raise _InterruptedError("it answers with another part of a file", pause=0.0)
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


def _drop(*files: Path) -> None:
    for file in files:
        file.unlink(missing_ok=True)


def _begun(part: Path, etag: Path) -> tuple[int, str]:
    """How many bytes of a file an earlier attempt left, and its tag; none where they may not be
    continued: a weak tag does not say that bytes are the same."""
    try:
        tag = read_bytes(etag, TAG_BYTES).decode("ascii")
    except (OSError, FormatError, UnicodeError):
        return 0, ""
    mine = part.is_file() and not part.is_symlink() and os.access(part, os.W_OK)
    return (part.stat().st_size, tag) if mine and _STRONG_TAG.fullmatch(tag) else (0, "")


def _continued(response: requests.Response, have: int, tag: str) -> int | None:
    """The size of the whole file whose bytes from `have` on are answered; None for others.

    Not every server heeds If-Range.
    """
    span = _SPAN.fullmatch(response.headers.get("Content-Range", ""))
    if span is None or int(span[1]) != have or (have and response.headers.get("ETag") != tag):
        return None
    return int(span[2])


def _receive(body: Iterator[bytes], part: Path, total: int | None) -> None:
    with (
        part.open("ab") as stream,
        Bar(part.stem, size=total, done=stream.tell(), in_bytes=True) as bar,
    ):
        for piece in body:
            stream.write(piece)
            bar.advance(len(piece))
            if stream.tell() > LARGEST:
                raise UnavailableError(f"it is larger than {LARGEST >> 30} GiB")
    size = part.stat().st_size
    if total is not None and size != total:
        raise _InterruptedError(f"the body ended after {size} of {total} bytes")
